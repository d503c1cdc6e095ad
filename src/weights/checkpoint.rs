//! An opened model: whatever its layout was, its components come out under diffusers' names.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    detect::PredictionHint,
    diffusers::{DiffusersModel, TokenizerFiles},
    family::{Component, Family},
    hashes::HashCache,
    ldm::SingleFile,
    store::Store,
    tree::Tree,
};
use crate::{
    error::{Error, Result},
    progress::CancelToken,
};

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
    Memory(BTreeMap<Component, Arc<dyn Store>>),
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

    /// A model of the family's own sizes that is in no file.
    pub fn in_memory(
        family: Family,
        components: BTreeMap<Component, Arc<dyn Store>>,
        origin: impl fmt::Display,
    ) -> Self {
        Self { family, origin: origin.to_string(), layout: Layout::Memory(components) }
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
            Layout::Memory(stores) => match stores.get(&component) {
                Some(store) => Ok(ComponentFiles { config: None, store: Arc::clone(store) }),
                None => Err(Error::invalid(format!("{}: has no `{component}`", self.origin))),
            },
        }
    }

    /// Its name without the folders it lies in.
    pub fn name(&self) -> String {
        let path = Path::new(&self.origin);
        let name = path.file_name().filter(|_| self.single_file().is_some() || path.is_dir());
        name.map_or_else(|| self.origin.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// The single file it is; `None` for diffusers' layout.
    pub fn single_file(&self) -> Option<&SingleFile> {
        match &self.layout {
            Layout::Single(file) => Some(file),
            Layout::Diffusers(_) | Layout::Memory(_) => None,
        }
    }

    /// All files of diffusers' layout; `None` for a single file.
    pub fn tree(&self) -> Option<&Tree> {
        match &self.layout {
            Layout::Diffusers(model) => Some(model.tree()),
            Layout::Single(_) | Layout::Memory(_) => None,
        }
    }

    /// The noise scheduler's config; single files have none.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn scheduler_config(&self) -> Result<Option<Value>> {
        match &self.layout {
            Layout::Diffusers(model) => model.scheduler_config(),
            Layout::Single(_) | Layout::Memory(_) => Ok(None),
        }
    }

    /// What the model says of its own output.
    pub fn prediction(&self) -> PredictionHint {
        match &self.layout {
            Layout::Diffusers(model) => model.prediction(),
            Layout::Single(file) => file.prediction().clone(),
            Layout::Memory(_) => PredictionHint::default(),
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
            Layout::Memory(_) => 4,
        }
    }

    /// The first or second tokenizer; `None` where the model brings none, and CLIP's own is meant.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn tokenizer_files(&self, second: bool) -> Result<Option<TokenizerFiles>> {
        match &self.layout {
            Layout::Diffusers(model) => model.tokenizer_files(second),
            Layout::Single(_) | Layout::Memory(_) => Ok(None),
        }
    }

    /// What image recipes call `Model hash`: the first 10 digits of the sha256 of the file (AutoV2), or of the UNet's
    /// files where there are many. Reads all of them unless `known` has their hashes or the Hugging Face cache named
    /// them so.
    ///
    /// # Errors
    /// If a file cannot be read, or the user asked to stop.
    pub fn hash(&self, known: &HashCache, cancel: &CancelToken) -> Result<String> {
        let sha256 = match &self.layout {
            Layout::Single(file) => match file.file() {
                Some(file) => known.sha256(file, cancel)?,
                None => return Err(Error::invalid(format!("{}: has no file", self.origin))),
            },
            Layout::Memory(_) => return Err(Error::invalid(format!("{}: has no file", self.origin))),
            Layout::Diffusers(model) => {
                let of = |name: &String| known.sha256(&model.tree().safetensors(name)?, cancel);
                let hashes =
                    model.weight_files(Component::Unet)?.iter().map(of).collect::<Result<Vec<_>>>()?;
                match hashes.as_slice() {
                    [only] => only.clone(),
                    many => format!("{:x}", Sha256::digest(many.concat())),
                }
            }
        };
        Ok(sha256[..10].to_string())
    }
}
