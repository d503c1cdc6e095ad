//! Models from the Hugging Face hub, kept in the cache that every tool shares.
//!
//! A model that is complete in the cache is used without asking the hub. Otherwise only the files this program reads
//! are fetched: configs, tokenizers, and one precision of each component's safetensors.

use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
use super::fetch;
use super::{cache::HubCache, checkpoint::Checkpoint, diffusers::DiffusersModel, source::OpenOptions};
use crate::{
    error::{Error, Result},
    files,
    progress::{CancelToken, Observer},
};

/// Characters in a part of an id, as the hub has it.
const MAX_NAME: usize = 96;
/// Characters in a revision: it names files in the cache.
const MAX_REVISION: usize = 200;

/// A repository at a revision: names that are safe in an address and in a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repository<'a> {
    pub id: &'a str,
    pub revision: &'a str,
}

impl<'a> Repository<'a> {
    /// # Errors
    /// If one of them is nothing the hub would have.
    pub fn new(id: &'a str, revision: &'a str) -> Result<Self> {
        let plain = |s: &str, also: &str| s.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c));
        // As `validate_repo_id` of huggingface_hub; `--` stands for `/` in the cache.
        let name = |s: &str| {
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            let inside = plain(s, "-_.") && !s.contains("--") && !s.contains("..") && s.len() <= MAX_NAME;
            inside && ends(s.chars().next()) && ends(s.chars().next_back())
        };
        if !id.split_once('/').is_some_and(|(owner, model)| name(owner) && name(model)) {
            return Err(Error::invalid(format!("`{id}` is no hub id")).with_hint(
                "a hub id is owner/name: letters, digits, and between them `-`, `_` or `.`, none doubled",
            ));
        }
        let part = |s: &str| !s.is_empty() && plain(s, "-_.+") && !s.starts_with('.') && !s.contains("..");
        if revision.len() > MAX_REVISION || !revision.split('/').all(part) {
            return Err(Error::invalid(format!("`{revision}` is no revision of {id}"))
                .with_hint("after the `@` comes a branch, a tag or a commit: letters, digits, `-_.+/`"));
        }
        Ok(Self { id, revision })
    }
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
        let hint = "run once without `--offline` and HF_HUB_OFFLINE to fetch what is missing, or point HF_HOME to where it is";
        return Err(not_here(repository, &cache, incomplete, "this run is offline", hint));
    }
    #[cfg(feature = "hub")]
    {
        let folder = fetch::fetch(repository, &cache, options, observer, cancel)?;
        open_complete(&folder, options)
    }
    #[cfg(not(feature = "hub"))]
    {
        let _ = (observer, cancel);
        let hint = "build with the `hub` feature, or fetch it with `hf download`";
        Err(not_here(repository, &cache, incomplete, "this build cannot download", hint))
    }
}

/// The model is not in the cache, or only a part of it.
fn not_here(
    repository: Repository<'_>,
    cache: &HubCache,
    incomplete: Option<Error>,
    why: &str,
    hint: &str,
) -> Error {
    let (Repository { id, revision }, root) = (repository, cache.root().display());
    match incomplete {
        Some(error) => {
            error.context(format!("{id} (revision {revision}) is not usable as it is in {root}, and {why}"))
        }
        None => Error::invalid(format!("{id} (revision {revision}) is not in {root}, and {why}")),
    }
    .with_hint(hint)
}

/// Opens a snapshot and every component of it, so that a half-fetched one is noticed here.
fn open_complete(folder: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let checkpoint = if folder.join("model_index.json").exists() {
        let model = DiffusersModel::open(folder, options.variant.as_deref())?;
        if let Some(missing) = model.first_missing() {
            return Err(Error::file(folder.join(missing), "is missing, and `model_index.json` asks for it"));
        }
        Checkpoint::from_diffusers(model, folder.display())
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
    let set = files::variable("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
    options.offline || ["1", "true", "yes", "on"].iter().any(|yes| set == *yes)
}
