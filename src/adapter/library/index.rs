//! What was found in a library's files, remembered between runs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Card, Entry};
use crate::files::{self, Stamp};

/// Raised whenever a card means something else than before.
const VERSION: u32 = 2;
/// A larger index is not ours.
const MAX_BYTES: u64 = 256 << 20;

/// A library's index. It is never in the way: one that is damaged, of another version or cannot be written is ignored.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// `None` where nothing shall be remembered.
    path: Option<PathBuf>,
    files: BTreeMap<String, Known>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    version: u32,
    files: BTreeMap<String, Known>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    content: Result<Card, String>,
}

impl Index {
    /// The index of the library at `root`.
    pub fn open(root: &Path, cache: Option<&Path>) -> Self {
        let path = cache.zip(root.canonicalize().ok()).map(|(cache, real)| {
            let hash = format!("{:x}", Sha256::digest(real.to_string_lossy().as_bytes()));
            cache.join("libraries").join(format!("{}.json", &hash[..16]))
        });
        let files = path.as_deref().and_then(read).unwrap_or_default();
        Self { path, files }
    }

    /// What is known of a file, if it has not changed.
    pub fn get(&mut self, path: &Path, stamp: Stamp) -> Option<Result<Card, String>> {
        let known = self.files.remove(path.to_str()?)?;
        (known.stamp == stamp).then_some(known.content)
    }

    /// Remembers the library as it is now, if something was read or a file is gone. Nothing is said of folders more than
    /// `depth` deep: what is known of them stays.
    pub fn keep(&mut self, entries: &[Entry], depth: usize, changed: bool) {
        let unasked = self.files.len();
        self.files.retain(|path, _| Path::new(path).components().count() > depth + 1);
        let changed = changed || self.files.len() < unasked;
        let Some(path) = self.path.as_deref().filter(|_| changed) else { return };
        let known = |entry: &Entry| {
            let known = Known { stamp: entry.stamp, content: entry.content.clone() };
            Some((entry.path.to_str()?.to_string(), known))
        };
        let settled = entries.iter().filter(|entry| entry.stamp.is_settled());
        let mut files = std::mem::take(&mut self.files);
        files.extend(settled.filter_map(known));
        let record = Record { version: VERSION, files };
        if let Ok(text) = serde_json::to_vec(&record) {
            files::write_bytes(path, &text).ok();
        }
    }
}

fn read(path: &Path) -> Option<BTreeMap<String, Known>> {
    let small = fs::metadata(path).ok()?.len() <= MAX_BYTES;
    let record: Record = serde_json::from_slice(&small.then(|| fs::read(path).ok())??).ok()?;
    (record.version == VERSION).then_some(record.files)
}
