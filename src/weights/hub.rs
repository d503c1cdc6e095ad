//! Models from the Hugging Face hub, kept in the cache that every tool shares.
//!
//! A model that is complete in the cache is used without asking the hub. Otherwise only the files this program reads
//! are fetched: configs, tokenizers, and one precision of each component's safetensors.

use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
use super::fetch;
use super::{cache::HubCache, checkpoint::Checkpoint, source::OpenOptions};
use crate::{
    error::{Error, Result},
    progress::{CancelToken, Observer},
};

/// A repository at a revision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repository<'a> {
    pub id: &'a str,
    pub revision: &'a str,
}

/// Opens a model of the hub: from the cache if it is complete there, else after fetching what is missing.
///
/// # Errors
/// If it is neither in the cache nor to be had, or is not a model that is supported.
pub(super) fn open(
    repository: Repository<'_>,
    options: &OpenOptions,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<Checkpoint> {
    let cache = options.cache.clone().map_or_else(HubCache::from_env, HubCache::new);
    let cached = cache.find(repository.id, repository.revision);
    let incomplete = match cached.as_deref().map(|folder| open_complete(folder, options)) {
        Some(Ok(checkpoint)) => return Ok(checkpoint),
        Some(Err(error)) => Some(error),
        None => None,
    };
    if offline(options) {
        let Repository { id, revision } = repository;
        return Err(incomplete.unwrap_or_else(|| {
            let root = cache.root().display();
            Error::invalid(format!("{id} (revision {revision}) is not in {root}, and this run is offline"))
                .with_hint("run once without `--offline` and HF_HUB_OFFLINE, or point HF_HOME to where it is")
        }));
    }
    #[cfg(feature = "hub")]
    {
        let folder = fetch::fetch(repository, &cache, options, observer, cancel)?;
        open_complete(&folder, options)
    }
    #[cfg(not(feature = "hub"))]
    {
        let _ = (observer, cancel);
        Err(incomplete.unwrap_or_else(|| {
            let root = cache.root().display();
            Error::invalid(format!("{} is not in {root}, and this build cannot download", repository.id))
                .with_hint("build with the `hub` feature, or fetch it with `hf download`")
        }))
    }
}

/// Opens a snapshot and every component of it, so that a half-fetched one is noticed here.
fn open_complete(folder: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let checkpoint = if folder.join("model_index.json").exists() {
        Checkpoint::open_folder(folder, options.variant.as_deref())?
    } else {
        Checkpoint::open_file(lone_checkpoint(folder)?)?
    };
    for component in checkpoint.family.components() {
        checkpoint.component(*component)?;
    }
    Ok(checkpoint)
}

fn lone_checkpoint(folder: &Path) -> Result<PathBuf> {
    let names = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten().map(|e| e.path());
    let mut files = names.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    match (files.next(), files.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(Error::file(folder, "has neither a `model_index.json` nor one single checkpoint")),
    }
}

fn offline(options: &OpenOptions) -> bool {
    let set = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    options.offline || matches!(set.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}
