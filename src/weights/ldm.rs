//! Single-file checkpoints in the layout of the original (LDM) code, seen as diffusers' components.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use super::{
    detect::{self, Detected, LDM_UNET, PredictionHint},
    family::{Component, Family},
    names::NameTable,
    open_clip::{self, Depth},
    reader::{SafetensorsFile, SafetensorsStore},
    store::Store,
    view::{Transform, View},
};
use crate::error::{Error, Result};

/// Where a VAE may be: in a whole checkpoint, wrapped alone, or bare.
const VAE_PREFIXES: &[&str] = &["first_stage_model.", "vae.", ""];

/// Where a CLIP text encoder in Hugging Face's layout may be, the first and the second.
const HF_TEXT_PREFIXES: [&[&str]; 2] = [
    &["cond_stage_model.transformer.", "conditioner.embedders.0.transformer."],
    &["conditioner.embedders.1.transformer."],
];

/// A checkpoint in one file.
#[derive(Debug)]
pub struct SingleFile {
    store: Arc<SafetensorsStore>,
    detected: Detected,
    prediction: PredictionHint,
}

impl SingleFile {
    /// Maps a checkpoint and finds out what it is.
    ///
    /// # Errors
    /// If it is no safetensors file, or none of a family that is supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(SafetensorsFile::open(path)?)
    }

    /// Takes a checked file.
    ///
    /// # Errors
    /// If it is of no family that is supported.
    pub fn new(file: SafetensorsFile) -> Result<Self> {
        let detected = detect::detect(&file)?;
        Self::with_family(file, detected)
    }

    /// Takes a checked file whose family is known already: the way to read models with sizes of their own.
    ///
    /// # Errors
    /// None today; a file that lacks a component says so when it is asked for.
    pub fn with_family(file: SafetensorsFile, detected: Detected) -> Result<Self> {
        let prediction = detect::prediction_hint(&file, detected.family);
        let origin = file.path().display().to_string();
        let store = Arc::new(SafetensorsStore::new(vec![file], origin)?);
        Ok(Self { store, detected, prediction })
    }

    /// What it turned out to be.
    pub fn detected(&self) -> Detected {
        self.detected
    }

    /// What it says about its own output.
    pub fn prediction(&self) -> &PredictionHint {
        &self.prediction
    }

    /// The one file.
    pub fn file(&self) -> Option<&SafetensorsFile> {
        self.store.files().first()
    }

    /// All its tensors under their own keys.
    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// A component under diffusers' names.
    ///
    /// # Errors
    /// If the file lacks it.
    pub fn component(&self, component: Component) -> Result<View> {
        let store: Arc<dyn Store> = self.store.clone();
        let view = match component {
            Component::Unet => unet(store),
            Component::Vae => vae(store),
            Component::TextEncoder => self.text_encoder(store),
            Component::TextEncoder2 => self.text_encoder_2(store),
        };
        if view.is_empty() { Err(detect::missing_component(&*self.store, component)) } else { Ok(view) }
    }

    fn text_encoder(&self, store: Arc<dyn Store>) -> View {
        let mut entries = hugging_face(&*store, HF_TEXT_PREFIXES[0]);
        if entries.is_empty() && self.detected.family == Family::Sd2 {
            entries = ["cond_stage_model.model.", "conditioner.embedders.0.model."]
                .iter()
                .flat_map(|prefix| open_clip::entries(&*store, prefix, Depth::Penultimate))
                .collect();
        }
        View::new(store, entries)
    }

    fn text_encoder_2(&self, store: Arc<dyn Store>) -> View {
        let mut entries = hugging_face(&*store, HF_TEXT_PREFIXES[1]);
        if entries.is_empty() {
            let prefix = match self.detected.family {
                Family::SdxlRefiner => "conditioner.embedders.0.model.",
                _ => "conditioner.embedders.1.model.",
            };
            entries = open_clip::entries(&*store, prefix, Depth::Whole);
        }
        View::new(store, entries)
    }
}

/// A VAE of its own in one file, in LDM's or diffusers' names.
///
/// # Errors
/// If the file is no safetensors file or holds no VAE.
pub fn standalone_vae(path: impl AsRef<Path>) -> Result<View> {
    let path = path.as_ref();
    let store = Arc::new(SafetensorsStore::open(path)?);
    let diffusers = store.names().into_iter().any(|n| n.starts_with("decoder.up_blocks."));
    let view = if diffusers { super::diffusers::vae_view(store) } else { vae(store) };
    if view.is_empty() {
        return Err(Error::file(path, "holds no VAE: there are no `decoder.` tensors"));
    }
    Ok(view)
}

fn unet(store: Arc<dyn Store>) -> View {
    let names = store.names();
    let inner: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix(LDM_UNET)).collect();
    let table = NameTable::unet_from_ldm(inner.iter().copied());
    let entries: Vec<_> = inner
        .iter()
        .filter_map(|name| Some((table.to_diffusers(name)?, (format!("{LDM_UNET}{name}"), Transform::Keep))))
        .collect();
    View::new(store, entries)
}

fn vae(store: Arc<dyn Store>) -> View {
    let names = store.names();
    let prefix = VAE_PREFIXES.iter().find(|p| store.info(&format!("{p}decoder.conv_in.weight")).is_some());
    let Some(prefix) = prefix else { return View::new(store, []) };
    let inner: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix(prefix)).collect();
    let levels: BTreeSet<&str> =
        inner.iter().filter_map(|n| n.strip_prefix("decoder.up.")?.split('.').next()).collect();
    let table = NameTable::vae(levels.len());
    let entries: Vec<_> = inner
        .iter()
        .filter_map(|name| {
            // LDM's attention is made of 1×1 convolutions, diffusers' of matrices.
            let matrix = name.contains(".attn_1.") && name.ends_with(".weight");
            let transform = if matrix { Transform::Matrix } else { Transform::Keep };
            Some((table.to_diffusers(name)?, (format!("{prefix}{name}"), transform)))
        })
        .collect();
    View::new(store, entries)
}

/// A text encoder that is in Hugging Face's names already; old files lack the `text_model.` level.
pub(super) fn hugging_face(store: &dyn Store, prefixes: &[&str]) -> Vec<(String, (String, Transform))> {
    let mut entries = Vec::new();
    for key in store.names() {
        let Some(name) = prefixes.iter().find_map(|p| key.strip_prefix(p)) else { continue };
        let name = match name.split('.').next() {
            Some("text_model" | "text_projection") => name.to_string(),
            Some("embeddings" | "encoder" | "final_layer_norm") => format!("text_model.{name}"),
            _ => continue,
        };
        if name.ends_with("position_ids") {
            continue;
        }
        entries.push((name, (key, Transform::Keep)));
    }
    entries
}
