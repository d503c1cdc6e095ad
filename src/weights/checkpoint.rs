//! An opened model: whatever its layout was, its components come out under diffusers' names.

use std::{fmt, path::Path, sync::Arc};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    detect::PredictionHint,
    diffusers::{DiffusersModel, TokenizerFiles},
    family::{Component, Family},
    ldm::SingleFile,
    reader::SafetensorsFile,
    store::Store,
    tree::Tree,
};
use crate::error::{Error, Result};

/// A base model whose files have been found and checked; weights are read when a component is asked for.
#[derive(Debug)]
pub struct Checkpoint {
    /// Which family it belongs to.
    pub family: Family,
    /// What to call it: `mini`, a path, or a hub id with its revision.
    pub origin: String,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    Diffusers(DiffusersModel),
    Single(SingleFile),
}

/// One component of a [`Checkpoint`].
#[derive(Debug, Clone)]
pub struct ComponentFiles {
    /// Its `config.json`; single files have none, their family says it all.
    pub config: Option<Value>,
    /// Its weights under diffusers' (Hugging Face's) names.
    pub store: Arc<dyn Store>,
}

impl Checkpoint {
    /// Opens a diffusers folder; `variant` as in [`DiffusersModel::open`].
    ///
    /// # Errors
    /// If it is none, or not supported.
    pub fn open_folder(folder: impl AsRef<Path>, variant: Option<&str>) -> Result<Self> {
        let folder = folder.as_ref();
        Ok(Self::from_diffusers(DiffusersModel::open(folder, variant)?, folder.display()))
    }

    /// Opens a single-file (LDM) checkpoint.
    ///
    /// # Errors
    /// If it is none, or not supported.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::from_single_file(SingleFile::open(path)?, path.display()))
    }

    /// Opens a model that is compiled in.
    ///
    /// # Errors
    /// If the program was built with an incomplete model.
    pub fn open_tree(tree: Tree, origin: impl fmt::Display) -> Result<Self> {
        Ok(Self::from_diffusers(DiffusersModel::new(tree, None)?, origin))
    }

    /// Takes an opened diffusers model.
    pub fn from_diffusers(model: DiffusersModel, origin: impl fmt::Display) -> Self {
        Self { family: model.family(), origin: origin.to_string(), layout: Layout::Diffusers(model) }
    }

    /// Takes an opened single file.
    pub fn from_single_file(file: SingleFile, origin: impl fmt::Display) -> Self {
        Self { family: file.detected().family, origin: origin.to_string(), layout: Layout::Single(file) }
    }

    /// A component's config and weights.
    ///
    /// # Errors
    /// If the model lacks it, by name; if its files are not what they should be.
    pub fn component(&self, component: Component) -> Result<ComponentFiles> {
        if !self.family.components().contains(&component) {
            let message = format!("{}: a {} model has no `{component}`", self.origin, self.family.title());
            return Err(Error::invalid(message));
        }
        match &self.layout {
            Layout::Diffusers(model) => {
                Ok(ComponentFiles { config: model.config(component)?, store: model.store(component)? })
            }
            Layout::Single(file) => {
                Ok(ComponentFiles { config: None, store: Arc::new(file.component(component)?) })
            }
        }
    }

    /// The noise scheduler's config; single files have none.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn scheduler_config(&self) -> Result<Option<Value>> {
        match &self.layout {
            Layout::Diffusers(model) => model.scheduler_config(),
            Layout::Single(_) => Ok(None),
        }
    }

    /// What the model says of its own output.
    pub fn prediction(&self) -> PredictionHint {
        match &self.layout {
            Layout::Diffusers(model) => model.prediction(),
            Layout::Single(file) => file.prediction().clone(),
        }
    }

    /// Channels the UNet takes: 4, or 9 in an inpainting model.
    pub fn in_channels(&self) -> usize {
        match &self.layout {
            Layout::Diffusers(model) => {
                let config = model.config(Component::Unet).ok().flatten().unwrap_or_default();
                config["in_channels"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(4)
            }
            Layout::Single(file) => file.detected().in_channels,
        }
    }

    /// The first or second tokenizer; `None` where the model brings none, and CLIP's own is meant.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn tokenizer_files(&self, second: bool) -> Result<Option<TokenizerFiles>> {
        match &self.layout {
            Layout::Diffusers(model) => model.tokenizer_files(second),
            Layout::Single(_) => Ok(None),
        }
    }

    /// What image recipes call `Model hash`: the first 10 digits of the sha256 of the file (AutoV2), or of the UNet's
    /// files where there are many. Reads all of them unless the Hugging Face cache has named them by it.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn hash(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match &self.layout {
            Layout::Single(file) => match file.file() {
                Some(file) => return Ok(file_hash(file)[..10].to_string()),
                None => return Err(Error::invalid(format!("{}: has no file", self.origin))),
            },
            Layout::Diffusers(model) => {
                let files = model.weight_files(Component::Unet)?;
                if let [only] = files.as_slice() {
                    return Ok(file_hash(&model.tree().safetensors(only)?)[..10].to_string());
                }
                for file in files {
                    hash.update(file_hash(&model.tree().safetensors(&file)?));
                }
            }
        }
        Ok(format!("{:x}", hash.finalize())[..10].to_string())
    }
}

/// Lower-case sha256 of a whole file. The Hugging Face cache names large files by theirs.
fn file_hash(file: &SafetensorsFile) -> String {
    let real = file.path().canonicalize().unwrap_or_default();
    let name = real.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let in_cache = real.parent().is_some_and(|p| p.ends_with("blobs"));
    if in_cache && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return name.to_ascii_lowercase();
    }
    format!("{:x}", Sha256::digest(file.file_bytes()))
}
