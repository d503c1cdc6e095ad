//! The files of a model, in a folder or in the program itself.

use std::{
    borrow::Cow,
    fmt,
    path::{Component as PathPart, Path, PathBuf},
};

use super::reader::SafetensorsFile;
use crate::error::{Error, Result};

/// Configs and vocabularies are small; anything above is not what it claims to be.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A file of the program: its path in the model, and its bytes.
pub type EmbeddedFile = (&'static str, &'static [u8]);

/// Read-only files under relative paths with `/`.
#[derive(Clone)]
pub enum Tree {
    /// On the disk.
    Folder {
        /// The folder.
        root: PathBuf,
        /// Where links in it may lead: the folder itself, or the cache of the repository it is a snapshot of.
        allowed: PathBuf,
    },
    /// Compiled in.
    Embedded {
        /// What messages call it.
        name: &'static str,
        /// All of them.
        files: &'static [EmbeddedFile],
    },
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({})", self.path_of("").display())
    }
}

impl Tree {
    /// A folder on the disk. In the Hugging Face cache a snapshot is made of links into `../../blobs`.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn folder(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let real = root.canonicalize().map_err(|e| Error::io(root, e))?;
        if !real.is_dir() {
            return Err(Error::file(root, "is a file, expected a folder"));
        }
        let repository = real.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent);
        let allowed = repository.filter(|r| r.join("blobs").is_dir()).unwrap_or(&real).to_path_buf();
        Ok(Self::Folder { root: root.to_path_buf(), allowed })
    }

    /// What messages call a file of this tree.
    pub fn path_of(&self, relative: &str) -> PathBuf {
        match self {
            Self::Folder { root, .. } => root.join(relative),
            Self::Embedded { name, .. } => Path::new(name).join(relative),
        }
    }

    /// True if there is such a file.
    pub fn has(&self, relative: &str) -> bool {
        match self {
            // A link to nowhere is there, and reading it says what is wrong.
            Self::Folder { root, .. } => {
                let path = root.join(relative);
                path.is_file() || path.is_symlink()
            }
            Self::Embedded { files, .. } => files.iter().any(|(name, _)| *name == relative),
        }
    }

    /// The names of the files in a sub-folder (`""` for the root), sorted.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Folder { root, .. } => std::fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_string()))
                .collect(),
            Self::Embedded { files, .. } => {
                let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
                let inside = files.iter().filter_map(|(name, _)| name.strip_prefix(prefix.as_str()));
                inside.filter(|name| !name.contains('/')).map(String::from).collect()
            }
        };
        names.sort();
        names
    }

    /// A small file whole; `None` if it is not there.
    ///
    /// # Errors
    /// If it cannot be read, is absurdly large, or is a link that leads out of the model.
    pub fn read(&self, relative: &str) -> Result<Option<Cow<'static, [u8]>>> {
        if !self.has(relative) {
            return Ok(None);
        }
        match self {
            Self::Folder { .. } => {
                let path = self.checked_path(relative)?;
                let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
                if bytes > MAX_TEXT_BYTES {
                    return Err(Error::file(path, format!("is {bytes} bytes long, expected a small text")));
                }
                std::fs::read(&path).map(|b| Some(Cow::Owned(b))).map_err(|e| Error::io(&path, e))
            }
            Self::Embedded { files, .. } => {
                Ok(files.iter().find(|(name, _)| *name == relative).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
        }
    }

    /// A JSON file; `None` if it is not there.
    ///
    /// # Errors
    /// As [`Tree::read`], and if it is not JSON.
    pub fn json(&self, relative: &str) -> Result<Option<serde_json::Value>> {
        let Some(bytes) = self.read(relative)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|e| Error::file(self.path_of(relative), format!("is not valid JSON: {e}")))
    }

    /// Maps a safetensors file.
    ///
    /// # Errors
    /// If it is not there, or is not one, or is a link that leads out of the model.
    pub fn safetensors(&self, relative: &str) -> Result<SafetensorsFile> {
        match self {
            Self::Folder { .. } => SafetensorsFile::open(self.checked_path(relative)?),
            Self::Embedded { files, .. } => match files.iter().find(|(name, _)| *name == relative) {
                Some((_, bytes)) => SafetensorsFile::from_bytes(self.path_of(relative), *bytes),
                None => Err(Error::file(self.path_of(relative), "is missing")),
            },
        }
    }

    /// The path of a file, once it is known to stay inside the model, links followed.
    fn checked_path(&self, relative: &str) -> Result<PathBuf> {
        let path = self.path_of(relative);
        let Self::Folder { allowed, .. } = self else { return Ok(path) };
        let plain = Path::new(relative).components().all(|part| matches!(part, PathPart::Normal(_)));
        let real = path.canonicalize().map_err(|e| Error::io(&path, e))?;
        if plain && real.starts_with(allowed) {
            return Ok(path);
        }
        let message = format!("leads out of the model's folder, to {}", real.display());
        Err(Error::file(path, message).with_hint("put the file itself into the folder, or a hard link to it"))
    }
}

/// True for a bare file name: nothing that could lead elsewhere on any system.
pub(super) fn is_bare_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}
