//! The Hugging Face cache on this machine: where every tool that uses the hub keeps its models.
//!
//! `models--owner--name/refs/<revision>` holds a commit, `snapshots/<commit>/` the files of it as links into `blobs/`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubCache {
    root: PathBuf,
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// `owner/name`.
    pub id: String,
    /// Bytes on the disk, all revisions together.
    pub size_bytes: u64,
    /// The newest snapshot's folder.
    pub snapshot: PathBuf,
    /// Started and not finished: some blob is incomplete.
    pub partial: bool,
}

impl HubCache {
    /// A cache in a given folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where `huggingface_hub` looks: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let direct = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        Self { root: direct.unwrap_or_else(|| hub_home().join("hub")) }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything of one repository.
    pub fn repository(&self, id: &str) -> PathBuf {
        self.root.join(format!("models--{}", id.replace('/', "--")))
    }

    /// The file that holds the commit a revision stands for.
    pub fn reference(&self, id: &str, revision: &str) -> PathBuf {
        self.repository(id).join("refs").join(revision)
    }

    /// The folder of a commit's files, whether or not it exists.
    pub fn snapshot(&self, id: &str, commit: &str) -> PathBuf {
        self.repository(id).join("snapshots").join(commit)
    }

    /// The folder of a revision's files, if it is in the cache.
    pub fn find(&self, id: &str, revision: &str) -> Option<PathBuf> {
        let commit = std::fs::read_to_string(self.reference(id, revision)).ok();
        let commit = commit.as_deref().map_or(revision, str::trim);
        // The commit comes from a file: it must not lead anywhere else.
        let is_commit = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_hexdigit());
        let folder = self.snapshot(id, commit);
        (is_commit && folder.is_dir()).then_some(folder)
    }

    /// The models of the cache that look like Stable Diffusion: folders with a `model_index.json`.
    ///
    /// # Errors
    /// If the folder is there and cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>> {
        if !self.root.is_dir() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&self.root).map_err(|e| Error::io(&self.root, e))?;
        let mut models: Vec<CachedModel> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                cached_model(&entry.path(), name.strip_prefix("models--")?)
            })
            .collect();
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(models)
    }
}

fn cached_model(repository: &Path, name: &str) -> Option<CachedModel> {
    let snapshots = std::fs::read_dir(repository.join("snapshots")).ok()?.flatten().map(|e| e.path());
    let newest = snapshots
        .filter(|path| path.join("model_index.json").exists())
        .max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok())?;
    let (mut size_bytes, mut partial) = (0, false);
    for blob in std::fs::read_dir(repository.join("blobs")).ok().into_iter().flatten().flatten() {
        size_bytes += blob.metadata().map_or(0, |m| m.len());
        partial |= blob.file_name().to_str().is_some_and(|n| n.ends_with(".incomplete"));
    }
    Some(CachedModel { id: name.replacen("--", "/", 1), size_bytes, snapshot: newest, partial })
}

/// Where the Hugging Face tools keep what is not a model: the token.
pub(super) fn hub_home() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("HF_HOME").unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME");
        let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
        cache.unwrap_or_else(std::env::temp_dir).join("huggingface")
    })
}
