//! What is kept on the disk between runs, beside the settings: the history's pictures, what pictures started from,
//! painted masks, and how trainings went.

pub mod history;
pub mod line;
pub mod masks;
pub mod runs;
pub mod starts;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use scumble::files;

/// The folder of all of it, with eframe's own file of settings.
pub fn folder() -> PathBuf {
    eframe::storage_dir(crate::APP_ID).unwrap_or_else(files::cache_folder)
}

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn fingerprint<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u128 {
    bytes.into_iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// [`fingerprint`] of a picture.
fn of_pixels((width, height): (u32, u32), pixels: &[u8]) -> u128 {
    let size = [width, height].map(u32::to_le_bytes);
    fingerprint(size.iter().flatten().chain(pixels))
}

/// Entries of a folder beyond so many, the least lately changed ones.
fn beyond(folder: &Path, most: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified());
    let aged = entries.map(|entry| (changed(&entry.path()).unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
    let mut aged: Vec<_> = aged.collect();
    aged.sort_by(|a, b| b.cmp(a));
    aged.into_iter().skip(most).map(|(_, path)| path).collect()
}
