//! The Hugging Face cache on this machine: where every tool that uses the hub keeps its models.
//!
//! `models--owner--name/refs/<revision>` holds a commit, `snapshots/<commit>/` the files of it as links into `blobs/`.
//! The layout is hf-hub's. Where the cache is, is decided here: hf-hub does not read `HF_HUB_CACHE` and
//! `XDG_CACHE_HOME`.

use std::path::{Path, PathBuf};

use hf_hub::Repo;

use crate::{
    error::{Error, Result},
    files::{user_cache, variable},
};

/// The cache folder.
#[derive(Debug, Clone)]
pub struct HubCache(hf_hub::Cache);

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// `owner/name`.
    pub id: String,
    /// Bytes on the disk, all revisions together.
    pub size_bytes: u64,
    /// The newest snapshot's folder.
    pub snapshot: PathBuf,
    /// Started and not finished: some blob is there in part.
    pub partial: bool,
}

impl HubCache {
    /// A cache in a given folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(hf_hub::Cache::new(root.into()))
    }

    /// Where `huggingface_hub` looks: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub fn from_env() -> Self {
        let direct = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        direct.map_or_else(Self::at_home, Self::new)
    }

    /// Beside the token that the Hugging Face tools write.
    fn at_home() -> Self {
        let home = variable("HF_HOME").map(PathBuf::from);
        Self::new(home.unwrap_or_else(|| user_cache().join("huggingface")).join("hub"))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// Everything of one repository.
    pub fn repository(&self, id: &str) -> PathBuf {
        self.root().join(Repo::model(id.into()).folder_name())
    }

    /// The folder of a commit's files, whether or not it exists.
    pub fn snapshot(&self, id: &str, commit: &str) -> PathBuf {
        self.0.model(id.into()).pointer_path(commit)
    }

    /// The file that holds the commit a revision stands for. (hf-hub's own writer would leave half of it after a crash.)
    pub(super) fn reference(&self, id: &str, revision: &str) -> PathBuf {
        self.repository(id).join("refs").join(revision)
    }

    /// The folder of a revision's files, if it is in the cache. A commit may be given as the revision, for which hf-hub
    /// has no answer.
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
        let root = self.root();
        if !root.is_dir() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(root).map_err(|e| Error::io(root, e))?;
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

#[cfg(feature = "hub")]
impl HubCache {
    /// For hf-hub's own use.
    pub(super) fn hf(&self) -> &hf_hub::Cache {
        &self.0
    }

    /// The file of a content's hash.
    pub(super) fn blob(&self, id: &str, hash: &str) -> PathBuf {
        self.0.model(id.into()).blob_path(hash)
    }

    /// Who the user is to the hub: `HF_TOKEN`, else the file that `hf auth login` wrote.
    pub(super) fn token_from_env() -> Option<String> {
        let given = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let given = given.and_then(|token| token.into_string().ok());
        given.or_else(|| match variable("HF_TOKEN_PATH") {
            Some(path) => std::fs::read_to_string(path).ok(),
            None => Self::at_home().0.token(),
        })
    }
}

fn cached_model(repository: &Path, name: &str) -> Option<CachedModel> {
    let snapshots = std::fs::read_dir(repository.join("snapshots")).ok()?.flatten().map(|e| e.path());
    let newest = snapshots
        .filter(|path| path.join("model_index.json").exists())
        .max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok())?;
    let (mut size_bytes, mut partial) = (0, false);
    for blob in std::fs::read_dir(repository.join("blobs")).ok().into_iter().flatten().flatten() {
        let bytes = blob.metadata().map_or(0, |m| m.len());
        size_bytes += bytes;
        // An empty one is what a download leaves that was refused or never began.
        partial |= bytes > 0 && blob.file_name().to_str().is_some_and(|n| n.ends_with(".incomplete"));
    }
    Some(CachedModel { id: name.replacen("--", "/", 1), size_bytes, snapshot: newest, partial })
}
