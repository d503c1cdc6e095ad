//! Folders of PEFT's `save_pretrained`: `adapter_config.json` beside `adapter_model.safetensors`, one folder a component.
//!
//! Such a folder says the same as one file of diffusers', whose metadata hold the config; so it is read as that file.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};

use super::peft::{CONFIG_KEY, component};
use crate::{
    error::{Error, Result},
    files::walk::{has_ending, missing},
    nn::Part,
    weights::reader::SafetensorsFile,
};

pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
pub(super) const CONFIG: &str = "adapter_config.json";
/// What PEFT puts before the names of a component's own modules.
pub(super) const ROOT: &str = "base_model.model.";
/// The name diffusers gives adapters it saves into a folder.
const DIFFUSERS: &str = "pytorch_lora_weights.safetensors";

/// Reads an adapter's file, or a folder in PEFT's or diffusers' layout: a component's own, or one with a folder for
/// each component.
///
/// # Errors
/// If there is none, or a file in it is damaged.
pub fn open(path: &Path) -> Result<SafetensorsFile> {
    open_by(path, &|path| SafetensorsFile::read(path))
}

/// [`open`] for what goes through all of a file once: a single file is mapped.
///
/// # Errors
/// As [`open`].
pub fn map(path: &Path) -> Result<SafetensorsFile> {
    open_by(path, &|path| SafetensorsFile::open(path))
}

/// [`open`] for looking only: of a single file, the header and single numbers (alphas) are read.
///
/// # Errors
/// As [`open`].
pub fn look(path: &Path) -> Result<SafetensorsFile> {
    open_by(path, &|path| SafetensorsFile::open_numbers(path))
}

fn open_by(path: &Path, single: &dyn Fn(&Path) -> Result<SafetensorsFile>) -> Result<SafetensorsFile> {
    let beside = path.parent().filter(|_| path.file_name().is_some_and(|name| name == WEIGHTS));
    if let Some(folder) = beside.filter(|folder| folder.join(CONFIG).is_file()) {
        return join(path, &[read_component(folder)?]);
    }
    if !path.is_dir() {
        return match path.try_exists() {
            Ok(false) => Err(missing(path, &is_adapter)),
            _ => single(path),
        };
    }
    if path.join(CONFIG).is_file() {
        return join(path, &[read_component(path)?]);
    }
    let folders = Part::ALL.map(|part| path.join(component(part)));
    let components: Vec<Saved> = folders
        .iter()
        .filter(|folder| folder.join(CONFIG).is_file())
        .map(|folder| read_component(folder))
        .collect::<Result<_>>()?;
    if !components.is_empty() {
        return join(path, &components);
    }
    if path.join(DIFFUSERS).is_file() {
        return single(&path.join(DIFFUSERS));
    }
    let message = format!("holds no adapter: there is neither `{CONFIG}` nor `{DIFFUSERS}`");
    let library = format!("`scumble library {}` lists those in a folder", path.display());
    Err(Error::file(path, message)
        .with_hint(format!("point to one adapter's `.safetensors` file; {library}")))
}

/// What may be meant by a path where nothing is.
pub fn is_adapter(path: &Path) -> bool {
    has_ending(path, &["safetensors"]) || path.join(CONFIG).is_file() || path.join(DIFFUSERS).is_file()
}

/// One component as PEFT saved it.
struct Saved {
    /// `None` where neither config nor folder tell.
    part: Option<Part>,
    file: SafetensorsFile,
    config: Map<String, Value>,
}

fn read_component(folder: &Path) -> Result<Saved> {
    let at = folder.join(CONFIG);
    let text = std::fs::read_to_string(&at).map_err(|e| Error::io(&at, e))?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| Error::file(&at, format!("is not JSON: {e}")))?;
    let Value::Object(config) = config else {
        return Err(Error::file(&at, "holds no JSON object, expected PEFT's config"));
    };
    if !folder.join(WEIGHTS).is_file() && folder.join("adapter_model.bin").is_file() {
        return Err(Error::file(folder, "holds its weights as a pickle, expected safetensors")
            .with_hint("save it again with `safe_serialization=True`; loading a pickle can run any code"));
    }
    let file = SafetensorsFile::read(folder.join(WEIGHTS))?;
    Ok(Saved { part: part_of(folder, &config), file, config })
}

/// The folder's name tells, else the class PEFT noted.
fn part_of(folder: &Path, config: &Map<String, Value>) -> Option<Part> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(part) = Part::ALL.into_iter().find(|part| component(*part) == name) {
        return Some(part);
    }
    match config.get("auto_mapping")?.get("base_model_class")?.as_str()? {
        "CLIPTextModel" => Some(Part::TextEncoder),
        "CLIPTextModelWithProjection" => Some(Part::TextEncoder2),
        class if class.starts_with("UNet") => Some(Part::Unet),
        _ => None,
    }
}

/// The components as one file in memory: names below their component's, configs in the metadata.
fn join(origin: &Path, components: &[Saved]) -> Result<SafetensorsFile> {
    let (mut header, mut data, mut configs) = (Map::new(), Vec::new(), Map::new());
    for saved in components {
        for (key, entry) in &saved.file.header().tensors {
            let name = match (saved.part, key.strip_prefix(ROOT)) {
                (Some(part), Some(rest)) => format!("{}.{rest}", component(part)),
                _ => key.clone(),
            };
            let begin = data.len();
            data.extend_from_slice(saved.file.tensor_bytes(key).unwrap_or_default());
            let entry = json!({
                "dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [begin, data.len()],
            });
            if header.insert(name.clone(), entry).is_some() {
                return Err(Error::file(origin, format!("`{name}` is in it twice")));
            }
        }
        // Names of networks and text encoders never coincide, so one config can stand for whichever it is.
        for part in Part::ALL.into_iter().filter(|part| saved.part.is_none_or(|said| said == *part)) {
            for (field, value) in &saved.config {
                configs.insert(format!("{}.{field}", component(part)), value.clone());
            }
        }
    }
    let mut metadata: BTreeMap<String, String> = BTreeMap::new();
    for saved in components {
        metadata.extend(saved.file.metadata().iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    metadata.insert(CONFIG_KEY.into(), Value::Object(configs).to_string());
    header.insert("__metadata__".into(), json!(metadata));
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    SafetensorsFile::from_bytes(origin, bytes)
}
