//! Models as diffusers stores them: a folder with one sub-folder a component.

use std::{path::Path, sync::Arc};

use serde_json::Value;

use super::{
    detect::PredictionHint,
    family::{Component, Family},
    ldm,
    reader::SafetensorsStore,
    shards,
    store::Store,
    tree::Tree,
    view::{Transform, View},
};
use crate::error::{Error, Result};

/// Pipelines this program can take the parts of.
const PIPELINES: &[&str] = &[
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
];

/// Widths and depths above these are an attack or a mistake, not a model.
const MAX_WIDTH: u64 = 16_384;
const MAX_DEPTH: u64 = 1024;

/// How diffusers' attention was called before 0.15, and since, inside a VAE.
const OLD_VAE_ATTENTION: &[(&str, &str)] =
    &[(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

/// Files of a tokenizer, as bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerFiles {
    /// `vocab.json`: token to id.
    pub vocab: Vec<u8>,
    /// `merges.txt`: byte pairs in order.
    pub merges: Vec<u8>,
    /// `tokenizer_config.json`.
    pub config: Option<Value>,
}

/// A model in diffusers' layout, on the disk or compiled in.
#[derive(Debug)]
pub struct DiffusersModel {
    tree: Tree,
    index: Value,
    family: Family,
    variant: Option<String>,
}

impl DiffusersModel {
    /// Opens a folder. `variant` (`fp16`) is preferred where given; without it the full files are taken if there, else
    /// the `fp16` ones.
    ///
    /// # Errors
    /// If it is no diffusers folder, or of a pipeline or family that is not supported.
    pub fn open(folder: impl AsRef<Path>, variant: Option<&str>) -> Result<Self> {
        Self::new(Tree::folder(folder)?, variant)
    }

    /// As [`DiffusersModel::open`], over any files.
    ///
    /// # Errors
    /// As [`DiffusersModel::open`].
    pub fn new(tree: Tree, variant: Option<&str>) -> Result<Self> {
        let path = tree.path_of("model_index.json");
        let Some(index) = tree.json("model_index.json")? else {
            return Err(not_a_model(&tree));
        };
        check_pipeline(&index).map_err(|message| Error::file(&path, message))?;
        let unet = tree.json("unet/config.json")?.ok_or_else(|| {
            Error::file(tree.path_of("unet/config.json"), "is missing, and a model needs a UNet")
        })?;
        let family = family_of(&index, &unet);
        Ok(Self { tree, index, family, variant: variant.map(String::from) })
    }

    /// By its pipeline and the UNet's widths.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Its files.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// A component's config.
    ///
    /// # Errors
    /// If it cannot be read or has absurd sizes.
    pub fn config(&self, component: Component) -> Result<Option<Value>> {
        let relative = format!("{component}/config.json");
        let config = self.tree.json(&relative)?;
        if let Some(config) = &config {
            check_sizes(config).map_err(|message| Error::file(self.tree.path_of(&relative), message))?;
        }
        Ok(config)
    }

    /// A component's weights under diffusers' current names.
    ///
    /// # Errors
    /// If the model lacks it, or its files are pickles, incomplete or not what they claim.
    pub fn store(&self, component: Component) -> Result<Arc<dyn Store>> {
        self.check_class(component)?;
        let store: Arc<dyn Store> = Arc::new(self.open_weights(component)?);
        Ok(match component {
            Component::Unet => store,
            Component::Vae => Arc::new(vae_view(store)),
            Component::TextEncoder | Component::TextEncoder2 => {
                let entries = ldm::hugging_face(&*store, &[""]);
                Arc::new(View::new(store, entries))
            }
        })
    }

    /// The files a component's weights are in, relative to the model: one, or the shards.
    ///
    /// # Errors
    /// If the model lacks them.
    pub fn weight_files(&self, component: Component) -> Result<Vec<String>> {
        let folder = component.name();
        match find_weights(&self.tree.list(folder), component, self.variant.as_deref()) {
            Some(name) if name.ends_with(".json") => {
                let store = shards::open(&self.tree, folder, &name)?;
                let names = store.files().iter().filter_map(|f| f.path().file_name()?.to_str());
                Ok(names.map(|n| format!("{folder}/{n}")).collect())
            }
            Some(name) => Ok(vec![format!("{folder}/{name}")]),
            None => Err(self.no_weights(component)),
        }
    }

    /// A small file that `model_index.json` asks for and that is not there: a snapshot that other tools fetched in part
    /// would otherwise be drawn with another schedule or vocabulary than its own.
    pub(super) fn first_missing(&self) -> Option<String> {
        let named = |part: &str| self.index[part][1].is_string();
        // A link to a blob that somebody deleted is not a file.
        let has = |part: &str, name: &str| self.tree.path_of(part).join(name).is_file();
        let configs = [
            ("scheduler", "scheduler_config.json"),
            ("unet", "config.json"),
            ("vae", "config.json"),
            ("text_encoder", "config.json"),
            ("text_encoder_2", "config.json"),
        ];
        let config = configs.into_iter().find(|(part, name)| named(part) && !has(part, name));
        let vocabulary = || {
            let complete = |part: &str| {
                has(part, "tokenizer.json") || (has(part, "vocab.json") && has(part, "merges.txt"))
            };
            let part =
                ["tokenizer", "tokenizer_2"].into_iter().find(|part| named(part) && !complete(part))?;
            let name = if has(part, "vocab.json") { "merges.txt" } else { "vocab.json" };
            Some((part, name))
        };
        config.or_else(vocabulary).map(|(part, name)| format!("{part}/{name}"))
    }

    /// The noise scheduler's config.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn scheduler_config(&self) -> Result<Option<Value>> {
        self.tree.json("scheduler/scheduler_config.json")
    }

    /// What the scheduler's config says of the model's output.
    pub fn prediction(&self) -> PredictionHint {
        let config = self.scheduler_config().ok().flatten().unwrap_or_default();
        PredictionHint {
            prediction_type: config["prediction_type"].as_str().map(String::from),
            zero_terminal_snr: config["rescale_betas_zero_snr"].as_bool(),
        }
    }

    /// The first or second tokenizer; `None` if the model brings none. A lone `tokenizer.json` is taken apart.
    ///
    /// # Errors
    /// If its files cannot be read, or one of the pair is missing.
    pub fn tokenizer_files(&self, second: bool) -> Result<Option<TokenizerFiles>> {
        let folder = if second { "tokenizer_2" } else { "tokenizer" };
        let config = self.tree.json(&format!("{folder}/tokenizer_config.json"))?;
        let vocab = self.tree.read(&format!("{folder}/vocab.json"))?;
        let merges = self.tree.read(&format!("{folder}/merges.txt"))?;
        match (vocab, merges) {
            (Some(vocab), Some(merges)) => {
                Ok(Some(TokenizerFiles { vocab: vocab.into_owned(), merges: merges.into_owned(), config }))
            }
            (None, None) => self.fast_tokenizer(folder, config),
            (vocab, _) => {
                let missing = if vocab.is_some() { "merges.txt" } else { "vocab.json" };
                let path = self.tree.path_of(&format!("{folder}/{missing}"));
                Err(Error::file(path, "is missing, and its other half is there"))
            }
        }
    }

    fn fast_tokenizer(&self, folder: &str, config: Option<Value>) -> Result<Option<TokenizerFiles>> {
        let relative = format!("{folder}/tokenizer.json");
        let Some(fast) = self.tree.json(&relative)? else { return Ok(None) };
        let model = &fast["model"];
        let lines: Option<Vec<String>> = model["merges"].as_array().and_then(|merges| {
            let line = |m: &Value| match m {
                Value::String(pair) => Some(pair.clone()),
                Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
                _ => None,
            };
            merges.iter().map(line).collect()
        });
        match (model["vocab"].as_object(), lines) {
            (Some(vocab), Some(lines)) => Ok(Some(TokenizerFiles {
                vocab: serde_json::json!(vocab).to_string().into_bytes(),
                merges: format!("#version: 0.2\n{}\n", lines.join("\n")).into_bytes(),
                config,
            })),
            _ => Err(Error::file(self.tree.path_of(&relative), "is not a byte-pair tokenizer")),
        }
    }

    fn open_weights(&self, component: Component) -> Result<SafetensorsStore> {
        let folder = component.name();
        match find_weights(&self.tree.list(folder), component, self.variant.as_deref()) {
            Some(name) if name.ends_with(".json") => shards::open(&self.tree, folder, &name),
            Some(name) => {
                let file = self.tree.safetensors(&format!("{folder}/{name}"))?;
                let origin = file.path().display().to_string();
                SafetensorsStore::new(vec![file], origin)
            }
            None => Err(self.no_weights(component)),
        }
    }

    fn no_weights(&self, component: Component) -> Error {
        let folder = self.tree.path_of(component.name());
        let files = self.tree.list(component.name());
        let ends = |suffix: &str| files.iter().any(|f| f.ends_with(suffix));
        if ends(".bin") || ends(".ckpt") || ends(".pt") {
            return Error::file(folder, "has only pickled weights (`.bin`), expected `.safetensors`").with_hint(
                "loading a pickle can run any code; get the safetensors version, or convert it in a sandbox",
            );
        }
        if files.is_empty() {
            return Error::file(folder, format!("the model lacks its `{component}`"));
        }
        Error::file(folder, format!("has no `{}.safetensors`", base_name(component)))
    }

    /// A component that is listed as absent, or is of a class that is not ours to read.
    fn check_class(&self, component: Component) -> Result<()> {
        let known: &[&str] = match component {
            Component::Unet => &["UNet2DConditionModel"],
            Component::Vae => &["AutoencoderKL"],
            Component::TextEncoder | Component::TextEncoder2 => {
                &["CLIPTextModel", "CLIPTextModelWithProjection"]
            }
        };
        let path = self.tree.path_of("model_index.json");
        match &self.index[component.name()] {
            Value::Array(entry) => match entry.get(1) {
                Some(Value::String(class)) if known.contains(&class.as_str()) => Ok(()),
                Some(Value::Null) | None => {
                    Err(Error::file(path, format!("the model lacks its `{component}`")))
                }
                Some(class) => {
                    let message = format!("`{component}` is a {class}, expected {}", known.join(" or "));
                    Err(Error::file(path, message))
                }
            },
            // Listed nowhere: let the folder decide.
            _ => Ok(()),
        }
    }
}

/// A VAE's weights under the current names of its attention.
pub(super) fn vae_view(store: Arc<dyn Store>) -> View {
    let entries: Vec<_> = store
        .names()
        .into_iter()
        .map(|key| {
            let old = OLD_VAE_ATTENTION.iter().find(|(old, _)| key.contains(old));
            let name = old.map_or_else(|| key.clone(), |(old, new)| key.replace(old, new));
            let matrix = key.contains(".attentions.") && key.ends_with(".weight");
            (name, (key, if matrix { Transform::Matrix } else { Transform::Keep }))
        })
        .collect();
    View::new(store, entries)
}

fn base_name(component: Component) -> &'static str {
    match component {
        Component::Unet | Component::Vae => "diffusion_pytorch_model",
        Component::TextEncoder | Component::TextEncoder2 => "model",
    }
}

/// Which of a folder's files to read: the weights or the index of their shards. Also used to choose what to download.
pub(super) fn find_weights(files: &[String], component: Component, variant: Option<&str>) -> Option<String> {
    let base = base_name(component);
    let plain = || vec![format!("{base}.safetensors"), format!("{base}.safetensors.index.json")];
    let of = |variant: &str| {
        vec![
            format!("{base}.{variant}.safetensors"),
            format!("{base}.safetensors.index.{variant}.json"),
            format!("{base}.{variant}.safetensors.index.json"),
        ]
    };
    let wanted = match variant {
        Some(variant) => [of(variant), plain()].concat(),
        None => [plain(), of("fp16")].concat(),
    };
    wanted.into_iter().find(|name| files.contains(name))
}

fn family_of(index: &Value, unet: &Value) -> Family {
    let class = index["_class_name"].as_str().unwrap_or_default();
    let width = unet["cross_attention_dim"].as_u64();
    if class.contains("StableDiffusionXL") {
        let second_only = index["text_encoder"][1].is_null() && !index["text_encoder_2"][1].is_null();
        return if second_only { Family::SdxlRefiner } else { Family::Sdxl };
    }
    match width {
        Some(768) => Family::Sd1,
        Some(1024) => Family::Sd2,
        _ => Family::Mini,
    }
}

fn check_pipeline(index: &Value) -> Result<(), String> {
    match &index["_class_name"] {
        Value::String(class) if PIPELINES.contains(&class.as_str()) => Ok(()),
        Value::String(class) => {
            Err(format!("is a {class}; Stable Diffusion 1, 2 and XL pipelines are supported"))
        }
        Value::Array(_) => Err("asks for Python code of its own, which is not run".into()),
        _ => Err("names no pipeline (`_class_name`)".into()),
    }
}

fn not_a_model(tree: &Tree) -> Error {
    let files = tree.list("");
    let error = Error::file(tree.path_of(""), "is not a diffusers model: there is no `model_index.json`");
    let hint = if files.iter().any(|f| f.ends_with(".safetensors")) {
        "to use a single-file checkpoint, give the path of the `.safetensors` file itself"
    } else if files.iter().any(|f| f == "config.json" || f == "diffusion_pytorch_model.safetensors") {
        "this is one component; give the folder above it"
    } else {
        "give the folder that holds `unet`, `vae` and `text_encoder`"
    };
    error.with_hint(hint)
}

/// Refuses sizes no model has before anything is allocated by them.
fn check_sizes(config: &Value) -> Result<(), String> {
    let largest = |key: &str| -> u64 {
        fn of(value: &Value) -> u64 {
            match value {
                Value::Array(values) => values.iter().map(of).max().unwrap_or(0),
                // A float or a negative number is refused by the model's own config type.
                value => value.as_u64().unwrap_or(0),
            }
        }
        of(&config[key])
    };
    let widths =
        ["block_out_channels", "cross_attention_dim", "hidden_size", "intermediate_size", "projection_dim"];
    let depths =
        ["layers_per_block", "num_hidden_layers", "num_attention_heads", "transformer_layers_per_block"];
    let too_large = widths
        .iter()
        .map(|key| (key, MAX_WIDTH))
        .chain(depths.iter().map(|key| (key, MAX_DEPTH)))
        .find(|(key, max)| largest(key) > *max);
    match too_large {
        Some((key, max)) => Err(format!("`{key}` is {}, at most {max} is believed", largest(key))),
        None => Ok(()),
    }
}
