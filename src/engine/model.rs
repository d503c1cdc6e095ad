//! The model in memory, with the adapters that were read for it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Event, Mix, ModelFacts, TokenCounter,
    masks::read_mask,
    worker::{Task, Worker},
};
use crate::{
    adapter::{Adapter, Blend, BlendMode, LoadOptions, format::folder, metadata::FileHashes},
    error::{Error, Result},
    files::Stamp,
    pipeline::{Pipeline, infotext},
    progress::Stage,
    weights::{ModelSource, OpenOptions, hashes::HashCache},
};

/// Adapters kept although no blend has them now.
const KEPT: usize = 16;

#[derive(Debug)]
pub(super) struct Loaded {
    pub name: String,
    pub pipeline: Pipeline,
    /// For recipes.
    pub hash: Option<String>,
    adapters: HashMap<PathBuf, Known>,
    /// The adapters whose overlaps have been computed.
    pub compared: Vec<PathBuf>,
}

/// An adapter that was read.
#[derive(Debug)]
struct Known {
    stamp: Option<Stamp>,
    adapter: Arc<Adapter>,
    hash: String,
}

impl Worker {
    /// The model of that name: the one in memory, or opened now.
    pub fn open(&mut self, name: &str, task: Task<'_>) -> Result<&mut Loaded> {
        if self.loaded.as_ref().is_none_or(|loaded| loaded.name != name) {
            // The old model leaves memory before the new one comes.
            self.loaded = None;
            let loaded = self.read(name, task)?;
            task.send(Event::Model(task.id, Box::new(loaded.facts()?)));
            self.loaded = Some(loaded);
        }
        self.loaded.as_mut().ok_or_else(|| Error::invalid("the model is not open"))
    }

    fn read(&self, name: &str, task: Task<'_>) -> Result<Loaded> {
        let device = self.device.open()?;
        let source = ModelSource::parse(name)?;
        let checkpoint = source.open(&OpenOptions::default(), &mut task.observer(), task.cancel)?;
        task.cancel.check()?;
        task.send(Event::Progress { job: task.id, stage: Stage::Load, done: 0, total: 1 });
        let pipeline = Pipeline::load(&checkpoint, &device, self.precision.dtype(&device))?;
        // A picture whose model cannot be named is still a picture.
        let hash = match checkpoint.hash(&HashCache::from_env(), task.cancel) {
            Err(e) if e.is_cancelled() => return Err(e),
            hash => hash.ok(),
        };
        let (adapters, compared) = (HashMap::new(), Vec::new());
        Ok(Loaded { name: name.to_owned(), pipeline, hash, adapters, compared })
    }
}

impl Loaded {
    fn facts(&self) -> Result<ModelFacts> {
        let pipeline = &self.pipeline;
        let size = pipeline.size();
        let encoder = pipeline.text.encoders.first();
        let encoder = encoder.ok_or_else(|| Error::invalid("the model has no text encoder"))?;
        Ok(ModelFacts {
            name: self.name.clone(),
            family: pipeline.family,
            native_px: size.native_px,
            step_px: size.step_px,
            cfg_scale: pipeline.conventions.cfg_scale,
            blocks: blocks(pipeline.unet.config().block_out_channels.len()),
            tokens: TokenCounter(encoder.tokenizer.clone()),
        })
    }

    /// A mix's blend, and what recipes say of each of its styles. Reads only what is not in memory.
    pub fn blend(&mut self, mix: &Mix, task: Task<'_>) -> Result<(Blend, Vec<infotext::LoraUse>)> {
        if self.adapters.len() > mix.loras.len() + KEPT {
            self.adapters.retain(|path, _| mix.loras.iter().any(|lora| lora.path == *path));
        }
        // Only a live blend follows a slider at once.
        let mut blend = Blend { mode: BlendMode::Live, normalize: mix.normalize, ..Blend::new() };
        let mut used = Vec::new();
        for lora in &mix.loras {
            let (adapter, hash) = self.adapter(&lora.path, task)?;
            let (name, mut strength) = (stem(&lora.path), lora.strength.clone());
            strength.read_mask(&mut read_mask).map_err(|e| e.context(format!("the style `{name}`")))?;
            let hash = Some(hash);
            used.push(infotext::LoraUse { name: name.clone(), strength: strength.clone(), hash });
            blend = blend.with(name, adapter, strength);
        }
        Ok((blend, used))
    }

    fn adapter(&mut self, path: &Path, task: Task<'_>) -> Result<(Arc<Adapter>, String)> {
        let stamp = Stamp::of(path);
        if let Some(known) = self.adapters.get(path).filter(|known| known.stamp == stamp) {
            return Ok((known.adapter.clone(), known.hash.clone()));
        }
        let adapter = self.pipeline.load_adapter(path, &LoadOptions::default())?;
        let report = &adapter.report;
        for warning in report.warnings.iter().cloned().chain(report.unmatched.iter().map(ToString::to_string))
        {
            task.warn(format!("{}: {warning}", stem(path)));
        }
        let digests = HashCache::from_env().digests(&folder::map(path)?, task.cancel)?;
        let hash = FileHashes::short(&digests).auto_v3;
        let known = Known { stamp, adapter: adapter.clone(), hash: hash.clone() };
        self.adapters.insert(path.to_path_buf(), known);
        Ok((adapter, hash))
    }
}

/// What a weight may have factors on: the text encoders, and the network's blocks in the words of a weight. `in00` is
/// its first convolution, which is in no level; time embeddings and the last convolution have no word.
fn blocks(levels: usize) -> Vec<String> {
    let side = |name: &'static str| (0..levels).map(move |level| format!("{name}.{level}"));
    ["te", "in00"]
        .map(str::to_owned)
        .into_iter()
        .chain(side("down"))
        .chain(["mid".to_owned()])
        .chain(side("up"))
        .collect()
}

/// What a file is called in recipes.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}
