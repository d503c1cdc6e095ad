//! A blend put into a base model's weights for good, as a checkpoint file or a diffusers folder. Tensors are read, changed
//! and written one at a time, so memory holds one of them however large the model is.

mod plan;
mod record;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use candle_core::DType;

use super::{Blend, layers::Progress};
use crate::{
    error::{Error, Result},
    files,
    progress::{CancelToken, Event, Observer, Stage},
    weights::{
        Checkpoint, Component,
        ldm::SingleFile,
        stream::{self, Planned},
    },
};
use plan::Output;

/// What to write.
#[derive(Debug, Clone, Default)]
pub struct BakeOptions {
    /// Of the model's weights; `None` keeps each tensor's own.
    pub dtype: Option<DType>,
    /// The files beside the weights of a folder, path and text, for a base that brings none.
    pub configs: Vec<(String, String)>,
}

/// Writes a single-file (LDM) checkpoint.
///
/// # Errors
/// If the blend has layers the model lacks, the family has no such layout, a result leaves its dtype's range, or the
/// file cannot be written.
pub fn to_file(
    base: &Checkpoint,
    blend: &Blend,
    out: &Path,
    options: &BakeOptions,
    progress: &mut Progress<'_>,
) -> Result<()> {
    check(blend, base)?;
    let mut metadata =
        base.single_file().and_then(SingleFile::file).map(|f| f.metadata().clone()).unwrap_or_default();
    let outputs = match base.single_file() {
        Some(file) => plan::stored(base, file)?,
        None => {
            metadata.extend(record::model_spec(base.family, &base.prediction()));
            plan::renamed(base)?
        }
    };
    record::recipe(&mut metadata, base, blend);
    let mut baker = Baker::new(blend, options, outputs)?;
    baker.finish_with(progress, |baker, progress| baker.write(None, out, &metadata, progress))
}

/// Writes a folder in diffusers' layout; it must not exist yet, or be empty. The configs are those of the base if
/// it is in that layout too, else those of `options`.
///
/// # Errors
/// As [`to_file`]; if `out` has something in it.
pub fn to_folder(
    base: &Checkpoint,
    blend: &Blend,
    out: &Path,
    options: &BakeOptions,
    progress: &mut Progress<'_>,
) -> Result<()> {
    check(blend, base)?;
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::file(out, "is not empty").with_hint("name a folder that does not exist yet"));
    }
    let mut outputs = Vec::new();
    for component in base.family.components() {
        outputs.extend(plan::same_names(base, *component)?);
    }
    let mut baker = Baker::new(blend, options, outputs)?;
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    record::recipe(&mut metadata, base, blend);
    files::write_folder(out, false, |folder| {
        match base.tree() {
            Some(tree) => record::copy_configs(tree, base.family, folder)?,
            None => record::write_configs(&options.configs, folder)?,
        }
        baker.finish_with(progress, |baker, progress| {
            for component in base.family.components() {
                let file = match component {
                    Component::Unet | Component::Vae => "diffusion_pytorch_model.safetensors",
                    Component::TextEncoder | Component::TextEncoder2 => "model.safetensors",
                };
                let path = folder.join(component.name()).join(file);
                baker.write(Some(*component), &path, &metadata, progress)?;
            }
            Ok(())
        })
    })
}

/// Makes the result's tensors when they are asked for.
struct Baker<'a> {
    blend: &'a Blend,
    outputs: BTreeMap<(Option<Component>, String), Output>,
    done: u64,
}

impl<'a> Baker<'a> {
    fn new(blend: &'a Blend, options: &BakeOptions, outputs: Vec<Output>) -> Result<Self> {
        plan::check_layers(blend, &outputs)?;
        let outputs = outputs.into_iter().map(|mut output| {
            if let Some(dtype) = options.dtype.filter(|_| output.dtype.is_float()) {
                output.dtype = dtype;
            }
            ((output.component, output.key.clone()), output)
        });
        Ok(Self { blend, outputs: outputs.collect(), done: 0 })
    }

    fn finish_with(
        &mut self,
        progress: &mut Progress<'_>,
        work: impl FnOnce(&mut Self, &mut Progress<'_>) -> Result<()>,
    ) -> Result<()> {
        let total = self.outputs.len() as u64;
        progress.observer.observe(&Event::Started { stage: Stage::Save, total });
        work(self, progress)?;
        progress.observer.observe(&Event::Finished { stage: Stage::Save });
        Ok(())
    }

    /// One component into a file, or all of it.
    fn write(
        &mut self,
        only: Option<Component>,
        out: &Path,
        metadata: &BTreeMap<String, String>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let wanted = self.outputs.iter().filter(|((component, _), _)| only.is_none() || *component == only);
        let by_key: HashMap<&str, &Output> =
            wanted.map(|((_, key), output)| (key.as_str(), output)).collect();
        let plan =
            by_key.values().map(|o| Planned { name: o.key.clone(), dtype: o.dtype, shape: o.shape.clone() });
        let (blend, total) = (self.blend, self.outputs.len() as u64);
        let mut done = self.done;
        let Progress { observer, cancel } = progress;
        let (observer, cancel): (&mut dyn Observer, &CancelToken) = (&mut **observer, cancel);
        stream::write(out, plan.collect(), metadata, &mut |key| {
            cancel.check()?;
            let tensor = by_key[key].make(blend).map_err(|e| e.context(format!("`{key}`")))?;
            done += 1;
            observer.observe(&Event::Advanced { stage: Stage::Save, done, total });
            Ok(tensor)
        })?;
        self.done = done;
        Ok(())
    }
}

/// Weights must be numbers, and vectors of them count this family's blocks.
fn check(blend: &Blend, base: &Checkpoint) -> Result<()> {
    blend.check_fixed()?;
    blend.check_family(base.family)
}
