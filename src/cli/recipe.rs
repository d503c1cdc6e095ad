//! From options, and the recipe of an earlier picture, to a request; and back to a recipe.

use std::path::{Path, PathBuf};

use super::{Context, embeddings, generate::Args, loras::Wanted, seed};
use crate::{
    adapter::BlendMode,
    dataset::decode,
    engine::start,
    error::{Error, Result},
    files::walk,
    pipeline::{
        GenerateRequest, Hires, InitSource,
        infotext::{
            self, CFG_RESCALE, EMPHASIS, EmbeddingUse, INIT_IMAGE, INIT_IMAGE_HASH, LORA_MODE,
            LORA_NORMALIZE, LoraUse, Recipe,
        },
    },
};

/// One more key of ours that the web UI has no word for.
const WHOLE_LOKR_SCALE: &str = "Whole LoKr scale";

/// What will be drawn.
#[derive(Debug)]
pub(super) struct Plan {
    pub request: GenerateRequest,
    pub model: String,
    /// The recipe that is repeated; an empty one if there is none.
    pub repeats: Recipe,
    pub loras: Wanted,
    pub embeddings: embeddings::Wanted,
}

/// Joins options and recipe: an option given by the user always wins.
pub(super) fn plan(args: &Args, context: &Context) -> Result<Plan> {
    let recipe = args.from.as_deref().map(read).transpose()?.unwrap_or_default();
    let (prompt, mut named) = match &args.prompt {
        Some(typed) => LoraUse::extract(typed)?,
        None => (recipe.prompt.clone(), Vec::new()),
    };
    let repeated = !args.blending.names_any() && named.is_empty();
    if repeated {
        named.clone_from(&recipe.loras);
    }
    let init = args.init.clone().or_else(|| recipe.other(INIT_IMAGE).map(PathBuf::from));
    let hires = hires(args, &recipe)?;
    if init.is_none() && hires.is_none() && recipe.denoising_strength.is_some() {
        return Err(Error::invalid(
            "this picture was drawn over another one, which its recipe does not name",
        )
        .with_hint("name that picture with `--init`"));
    }
    if init.is_none() && args.strength.is_some() {
        return Err(Error::invalid("`--strength` says how much of a picture is redrawn; there is none")
            .with_hint("name one with `--init`"));
    }
    let seed = args.seed.map(|seed| seed.number(&context.console));
    let strength = args.strength.or(recipe.denoising_strength).unwrap_or(0.75);
    let init = init.map(|path| start::read(&path, strength)).transpose()?;
    let source = init.as_ref().and_then(|init| init.source.as_ref());
    if let (None, Some(InitSource { path, hash }), Some(noted)) =
        (&args.init, source, recipe.other(INIT_IMAGE_HASH))
        && hash != noted
    {
        let path = path.display();
        context
            .console
            .note(&format!("warning: {path} is not the picture it was: {hash}, the recipe says {noted}"));
    }
    let request = GenerateRequest {
        prompt,
        init,
        hires,
        seed: seed.or(recipe.seed).unwrap_or_else(seed::fresh),
        ..request(args, &recipe)?
    };
    let mut loras = args.blending.wanted(named)?;
    let beside = args.from.as_deref().and_then(Path::parent).map(folder_or_here);
    loras.folders.splice(args.blending.lora_dir.len()..args.blending.lora_dir.len(), beside);
    loras.folders.push(args.out.clone());
    if repeated {
        loras.normalize |= recipe.other(LORA_NORMALIZE).is_some();
        let scale = recipe.other(WHOLE_LOKR_SCALE).and_then(|scale| scale.parse().ok());
        loras.loading.whole_lokr_scale = loras.loading.whole_lokr_scale.or(scale);
        loras.mode = recipe.other(LORA_MODE).and_then(|mode| mode.parse().ok()).unwrap_or_default();
    }
    loras.mode = args.lora_mode.unwrap_or(loras.mode);
    loras.other_adapters = args.allow_other_adapters;
    let embeddings = embeddings(args, &recipe, &request);
    if args.from.is_some() && args.model.is_none() && recipe.model.is_none() {
        context.console.note("warning: the recipe names no model; `mini` is used");
    }
    let model = args.model.clone().or_else(|| recipe.model.clone()).unwrap_or_else(|| "mini".into());
    Ok(Plan { request, model, repeats: recipe, loras, embeddings })
}

/// Of a recipe's embeddings those whose names are in the prompts, whether these are the recipe's or not.
fn embeddings(args: &Args, recipe: &Recipe, request: &GenerateRequest) -> embeddings::Wanted {
    let mut folders: Vec<PathBuf> =
        args.from.as_deref().and_then(Path::parent).map(folder_or_here).into_iter().collect();
    folders.extend([PathBuf::from("."), PathBuf::from("embeddings")]);
    // In a recipe's list names have no commas and colons.
    let plain = |text: &str| text.replace([',', ':'], "").to_lowercase();
    let prompts = [plain(&request.prompt), plain(&request.negative)];
    let called = |word: &&EmbeddingUse| prompts.iter().any(|prompt| prompt.contains(&plain(&word.name)));
    let named = recipe.embeddings.iter().filter(called).cloned().collect();
    embeddings::Wanted { given: args.embedding.clone(), named, folders }
}

/// The second pass: that of the recipe, changed by options.
fn hires(args: &Args, recipe: &Recipe) -> Result<Option<Hires>> {
    let noted = Hires::of(recipe).filter(|_| args.init.is_none());
    let Some(hires) = args.hires.map(|scale| Hires { scale, ..noted.unwrap_or_default() }).or(noted) else {
        if args.hires_strength.is_some() || args.hires_steps.is_some() {
            return Err(Error::invalid(
                "`--hires-strength` and `--hires-steps` belong to a second pass; there is none",
            )
            .with_hint("ask for one with `--hires 1.5`"));
        }
        return Ok(None);
    };
    let strength = args.hires_strength.unwrap_or(hires.strength);
    Ok(Some(Hires { strength, steps: args.hires_steps.or(hires.steps), ..hires }))
}

fn request(args: &Args, recipe: &Recipe) -> Result<GenerateRequest> {
    let defaults = GenerateRequest::default();
    let sampler = recipe.sampler.as_deref().map(str::parse).transpose();
    let schedule = recipe.schedule.as_deref().map(str::parse).transpose();
    let rescale = recipe.other(CFG_RESCALE).and_then(|v| v.parse().ok());
    let emphasis = recipe.other(EMPHASIS).map(|v| v.to_lowercase().replace(' ', "_"));
    let emphasis = emphasis.as_deref().map(str::parse).transpose();
    Ok(GenerateRequest {
        negative: args.negative.clone().unwrap_or_else(|| recipe.negative_prompt.clone()),
        size_px: args.size.or(recipe.size_px),
        steps: args.steps.or(recipe.steps).unwrap_or(defaults.steps),
        sampler: args.sampler.map_or(sampler, |s| Ok(Some(s)))?.unwrap_or(defaults.sampler),
        schedule: args.scheduler.map_or(schedule, |s| Ok(Some(s)))?.unwrap_or(defaults.schedule),
        cfg_scale: args.cfg.or(recipe.cfg_scale),
        cfg_rescale: args.cfg_rescale.or(rescale).unwrap_or(defaults.cfg_rescale),
        count: args.count.unwrap_or(1),
        batch: args.batch,
        clip_skip: args.clip_skip.or(recipe.clip_skip),
        emphasis: args.emphasis.map_or(emphasis, |e| Ok(Some(e)))?.unwrap_or_default(),
        eta: args.eta.or(recipe.eta),
        ..defaults
    })
}

impl Plan {
    /// What the file of one picture says.
    pub fn recipe(
        &self,
        seed: u64,
        size_px: (usize, usize),
        (loras, mode): (&[LoraUse], BlendMode),
        embeddings: &[EmbeddingUse],
        model_hash: Option<String>,
    ) -> Recipe {
        let mut recipe = Recipe {
            loras: loras.to_vec(),
            embeddings: embeddings.to_vec(),
            seed: Some(seed),
            size_px: Some(size_px),
            model: Some(self.model.clone()),
            model_hash,
            ..Recipe::of(&self.request)
        };
        if !loras.is_empty() {
            recipe.note_mode(mode, self.loras.normalize);
        }
        if let Some(scale) = self.loras.loading.whole_lokr_scale.filter(|_| !loras.is_empty()) {
            recipe.other.push((WHOLE_LOKR_SCALE.to_owned(), scale.to_string()));
        }
        recipe
    }
}

/// The recipe in a picture's file.
fn read(path: &Path) -> Result<Recipe> {
    walk::expect(path, &decode::EXTENSIONS)?;
    match infotext::read_text(path)? {
        Some(text) => Ok(Recipe::parse(&text)),
        None => Err(Error::file(path, "the picture has no recipe in it")
            .with_hint("messengers and galleries often strip it; use a picture as it was saved")),
    }
}

fn folder_or_here(folder: &Path) -> PathBuf {
    if folder.as_os_str().is_empty() { ".".into() } else { folder.to_path_buf() }
}
