//! Hashes of checkpoints, remembered between runs: a recipe names the model by its sha256, and reading gigabytes for
//! every picture would cost more than drawing it. A1111 keeps the same in its `cache.json`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::reader::SafetensorsFile;
use crate::{
    error::Result,
    files::{self, Stamp},
    progress::CancelToken,
};

/// A larger record is not ours.
const MAX_RECORD_BYTES: u64 = 16 << 20;
/// Beyond this, entries of files that are gone are dropped.
const MANY_ENTRIES: usize = 1000;

/// A file's sha256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Of the whole file.
    pub file: String,
    /// Of its tensors' bytes alone: editing metadata leaves it.
    pub data: String,
}

/// A record of files' sha256, good while size and modification time stay. It is never in the way: one that is damaged
/// or cannot be written only costs the time of computing again.
#[derive(Debug, Clone)]
pub struct HashCache {
    path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    stamp: Stamp,
    sha256: String,
    /// Of the tensors' bytes, if somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_sha256: Option<String>,
}

impl HashCache {
    /// In a given folder, which need not exist.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        Self { path: folder.as_ref().join("hashes.json") }
    }

    /// In [`files::cache_folder`].
    pub fn from_env() -> Self {
        Self::new(files::cache_folder())
    }

    /// The lower-case sha256 of a whole file.
    ///
    /// # Errors
    /// If the user asked to stop.
    pub fn sha256(&self, file: &SafetensorsFile, cancel: &CancelToken) -> Result<String> {
        // What is not mapped from the disk (the embedded model) is small.
        let Some(place) = Place::of(file) else { return digest(file, 0, cancel) };
        if let Some(hash) = named_by_hash(&place.path) {
            return Ok(hash);
        }
        if let Some(entry) = self.entry(&place) {
            return Ok(entry.sha256);
        }
        let sha256 = digest(file, 0, cancel)?;
        self.remember(&place, Entry { stamp: place.stamp, sha256: sha256.clone(), data_sha256: None });
        Ok(sha256)
    }

    /// Both of a file's hashes: remembered, or from reading all of it.
    ///
    /// # Errors
    /// If the user asked to stop.
    pub fn digests(&self, file: &SafetensorsFile, cancel: &CancelToken) -> Result<Digests> {
        if let Some(known) = self.known(file) {
            return Ok(known);
        }
        let place = Place::of(file);
        let tensors = file.header().data_start;
        let (whole, data) = rayon::join(|| digest(file, 0, cancel), || digest(file, tensors, cancel));
        let found = Digests { file: whole?, data: data? };
        if let Some(place) = place {
            let data_sha256 = Some(found.data.clone());
            self.remember(&place, Entry { stamp: place.stamp, sha256: found.file.clone(), data_sha256 });
        }
        Ok(found)
    }

    /// Both of a file's hashes if they are remembered: nothing of the file is read.
    pub fn known(&self, file: &SafetensorsFile) -> Option<Digests> {
        let entry = self.entry(&Place::of(file)?)?;
        Some(Digests { file: entry.sha256, data: entry.data_sha256? })
    }

    fn entry(&self, place: &Place) -> Option<Entry> {
        self.read().remove(&place.key).filter(|entry| entry.stamp == place.stamp)
    }

    fn read(&self) -> BTreeMap<String, Entry> {
        let small = fs::metadata(&self.path).is_ok_and(|m| m.len() <= MAX_RECORD_BYTES);
        let text = if small { fs::read(&self.path).unwrap_or_default() } else { Vec::new() };
        let mut entries: BTreeMap<String, Entry> = serde_json::from_slice(&text).unwrap_or_default();
        entries.retain(|_, entry| {
            is_sha256(&entry.sha256) && entry.data_sha256.as_deref().is_none_or(is_sha256)
        });
        entries
    }

    /// Of two programs at once the later one wins; the other's entry is computed again some day.
    fn remember(&self, place: &Place, entry: Entry) {
        if Stamp::of(&place.path) != Some(place.stamp) || !place.stamp.is_settled() {
            return;
        }
        let mut entries = self.read();
        if entries.len() >= MANY_ENTRIES {
            entries.retain(|path, _| Path::new(path).exists());
        }
        entries.insert(place.key.clone(), entry);
        if let Ok(text) = serde_json::to_vec_pretty(&entries) {
            files::write_bytes(&self.path, &text).ok();
        }
    }
}

/// Where a mapped file really is, and what tells whether it has changed.
struct Place {
    path: PathBuf,
    key: String,
    stamp: Stamp,
}

impl Place {
    fn of(file: &SafetensorsFile) -> Option<Self> {
        let path = file.mapped_path()?.canonicalize().ok()?;
        Some(Self { key: path.to_str()?.to_string(), stamp: Stamp::of(&path)?, path })
    }
}

/// Of the file from one of its bytes on.
fn digest(file: &SafetensorsFile, start: usize, cancel: &CancelToken) -> Result<String> {
    let mut hash = Sha256::new();
    file.pieces(start, |piece| {
        cancel.check()?;
        hash.update(piece);
        Ok(())
    })?;
    Ok(format!("{:x}", hash.finalize()))
}

/// The Hugging Face cache names large files by their sha256.
fn named_by_hash(real: &Path) -> Option<String> {
    let name = real.file_name().and_then(|n| n.to_str()).filter(|n| is_sha256(n))?;
    real.parent().is_some_and(|p| p.ends_with("blobs")).then(|| name.to_ascii_lowercase())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::{error::Error, weights::writer::SafetensorsWriter};

    /// A weights file whose time is long past.
    fn write(path: &Path, value: f32, age: Duration) -> Result<()> {
        let tensor = Tensor::new(&[value], &Device::Cpu)?;
        files::write_bytes(path, &SafetensorsWriter::new([("x", &tensor)])?.to_bytes(&BTreeMap::new())?)?;
        let file = fs::File::options().write(true).open(path).map_err(|e| Error::io(path, e))?;
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000) - age)
            .map_err(|e| Error::io(path, e))
    }

    fn of(path: &Path, cache: &HashCache) -> Result<String> {
        cache.sha256(&SafetensorsFile::open(path)?, &CancelToken::default())
    }

    #[test]
    fn a_file_is_read_once_until_its_time_changes() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let (path, cache) =
            (folder.path().join("m.safetensors"), HashCache::new(folder.path().join("cache")));
        write(&path, 1.0, Duration::ZERO)?;
        let first = of(&path, &cache)?;
        write(&path, 2.0, Duration::ZERO)?;
        assert_eq!(of(&path, &cache)?, first, "the file was read again");
        write(&path, 2.0, Duration::from_nanos(1000))?;
        let second = of(&path, &cache)?;
        assert_ne!(second, first);
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        assert_eq!(second, format!("{:x}", Sha256::digest(bytes)));
        Ok(())
    }

    #[test]
    fn a_file_of_this_moment_is_not_remembered() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let (path, cache) =
            (folder.path().join("m.safetensors"), HashCache::new(folder.path().join("cache")));
        let tensor = Tensor::new(&[1f32], &Device::Cpu)?;
        files::write_bytes(&path, &SafetensorsWriter::new([("x", &tensor)])?.to_bytes(&BTreeMap::new())?)?;
        of(&path, &cache)?;
        assert!(!cache.path.exists());
        Ok(())
    }

    #[test]
    fn a_record_that_is_damaged_or_not_to_be_written_is_no_error() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let (path, cache) = (folder.path().join("m.safetensors"), HashCache::new(folder.path()));
        write(&path, 1.0, Duration::ZERO)?;
        let right = of(&path, &cache)?;
        let wrong =
            serde_json::json!({ path.display().to_string(): { "bytes": 1, "modified": 1, "sha256": "../" } });
        for damaged in ["", "{", "[1]", &wrong.to_string()] {
            files::write_bytes(&cache.path, damaged.as_bytes())?;
            assert_eq!(of(&path, &cache)?, right, "{damaged}");
        }
        assert_eq!(cache.read().len(), 1, "the damaged record was replaced");
        // A file where the folder should be.
        assert_eq!(of(&path, &HashCache::new(&path))?, right);
        Ok(())
    }

    /// The hash of the tensors comes beside that of the file, and neither is read again.
    #[test]
    fn both_hashes_are_remembered() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let (path, cache) = (folder.path().join("m.safetensors"), HashCache::new(folder.path()));
        write(&path, 1.0, Duration::ZERO)?;
        let file = SafetensorsFile::open(&path)?;
        let whole = cache.sha256(&file, &CancelToken::default())?;
        assert_eq!(cache.known(&file), None, "of the tensors nothing is known yet");
        let both = cache.digests(&file, &CancelToken::default())?;
        assert_eq!((&both.file, both.data), (&whole, format!("{:x}", Sha256::digest(1f32.to_le_bytes()))));
        assert_eq!(cache.known(&file).map(|known| known.file), Some(whole));
        write(&path, 2.0, Duration::from_nanos(1000))?;
        assert_eq!(cache.known(&SafetensorsFile::open(&path)?), None);
        Ok(())
    }

    #[test]
    fn hashing_can_be_cancelled() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let (path, cancel) = (folder.path().join("m.safetensors"), CancelToken::default());
        write(&path, 1.0, Duration::ZERO)?;
        cancel.cancel();
        let file = SafetensorsFile::open(&path)?;
        assert!(digest(&file, 0, &cancel).is_err_and(|e| e.is_cancelled()));
        Ok(())
    }

    /// A checkpoint is hashed before or after it is copied: its pages must not count twice.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_was_hashed_does_not_stay_in_memory() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("m.safetensors");
        let tensor = Tensor::zeros(6 << 20, candle_core::DType::F32, &Device::Cpu)?;
        files::write_bytes(&path, &SafetensorsWriter::new([("x", &tensor)])?.to_bytes(&BTreeMap::new())?)?;
        let file = SafetensorsFile::open(&path)?;
        digest(&file, 0, &CancelToken::default())?;
        let maps = fs::read_to_string("/proc/self/smaps").map_err(|e| Error::io("/proc/self/smaps", e))?;
        let map = maps.split_once(&*path.to_string_lossy()).expect("the map").1;
        let resident = map.lines().find_map(|line| line.strip_prefix("Rss:")).expect("its size");
        let resident_kib: usize = resident.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(resident_kib < 2 << 10, "{resident_kib} KiB of 24 MiB");
        Ok(())
    }
}
