//! What `scumble models` shows: the models that open without a download, and how to get more.

use std::path::PathBuf;

use super::{cache::HubCache, diffusers::DiffusersModel, embedded, family::Family, source::ALIASES};
use crate::error::Result;

/// A model that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// What to type after `--model`.
    pub name: String,
    /// Its family, where its files tell.
    pub family: Option<Family>,
    /// On the disk.
    pub size_bytes: u64,
    /// Where it is; `None` for the embedded one.
    pub folder: Option<PathBuf>,
    /// A download of it was interrupted.
    pub partial: bool,
}

/// A model worth fetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suggestion {
    /// The short name to type after `--model`.
    pub name: &'static str,
    /// Its id on the hub.
    pub id: &'static str,
}

/// The embedded model, then the cache's, by name.
///
/// # Errors
/// If the cache is there and cannot be read.
pub fn installed(cache: &HubCache) -> Result<Vec<Installed>> {
    let mini = Installed {
        name: embedded::NAME.into(),
        family: Some(Family::Mini),
        size_bytes: embedded::size_bytes(),
        folder: None,
        partial: false,
    };
    let cached = cache.list()?.into_iter().map(|model| Installed {
        family: DiffusersModel::open(&model.snapshot, None).ok().map(|m| m.family()),
        name: model.id,
        size_bytes: model.size_bytes,
        folder: Some(model.snapshot),
        partial: model.partial,
    });
    Ok(std::iter::once(mini).chain(cached).collect())
}

/// Well-known models that are not in `installed` yet.
pub fn suggestions(installed: &[Installed]) -> Vec<Suggestion> {
    let missing = ALIASES.iter().filter(|(_, id)| !installed.iter().any(|model| model.name == *id));
    missing.map(|(name, id)| Suggestion { name, id }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Error, files};

    #[test]
    fn the_cache_is_listed_with_families_and_sizes() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let cache = HubCache::new(folder.path());
        assert_eq!(installed(&HubCache::new(folder.path().join("none")))?.len(), 1);

        let repository = cache.repository("stabilityai/stable-diffusion-xl-base-1.0");
        let snapshot = repository.join("snapshots/0123");
        let index = br#"{"_class_name": "StableDiffusionXLPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}"#;
        files::write_bytes(snapshot.join("model_index.json"), index)?;
        files::write_bytes(snapshot.join("unet/config.json"), b"{}")?;
        files::write_bytes(repository.join("blobs/abc.incomplete"), &[0; 100])?;
        files::write_bytes(cache.repository("someone/dataset-tool").join("snapshots/0/x.txt"), b"")?;

        let models = installed(&cache)?;
        assert_eq!(models.len(), 2);
        assert_eq!((models[0].name.as_str(), models[0].family), ("mini", Some(Family::Mini)));
        let found = (models[1].family, models[1].size_bytes, models[1].partial);
        assert_eq!(found, (Some(Family::Sdxl), 100, true));
        files::write_bytes(repository.join("blobs/abc.incomplete"), b"")?;
        assert!(!installed(&cache)?[1].partial, "nothing of it was downloaded");
        assert_eq!(suggestions(&models).iter().map(|s| s.name).collect::<Vec<_>>(), ["sd15"]);
        Ok(())
    }
}
