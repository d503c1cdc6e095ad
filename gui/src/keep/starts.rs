//! Pictures to start from: copies that are there when the file that was dropped is not, named by what is in them. They are
//! never changed: recipes name them.

use std::path::{Path, PathBuf};

use image::RgbImage;
use scumble::{
    dataset::decode,
    engine::start,
    error::Result,
    files,
    pipeline::{InitImage, sheet},
};

use crate::state::StartFile;

/// Copies kept.
const KEPT: usize = 200;
/// What the names of pictures begin with that were drawn here, before their seed.
pub const DRAWN: &str = "drawn-";

/// Where they lie.
fn place(folder: &Path) -> PathBuf {
    folder.join("starts")
}

/// The picture in a file, or the copy of it in the folder of everything; a new one is copied. `None` if a picture that
/// was there once is gone.
///
/// # Errors
/// If there is a file and it cannot be read as a picture.
pub fn read(folder: Option<&Path>, file: &StartFile) -> Result<Option<InitImage>> {
    let copy = folder.zip(file.hash.as_deref()).and_then(|(folder, hash)| find(folder, hash));
    let is_there = file.path.is_file();
    if copy.is_none() && file.hash.is_some() && !is_there {
        return Ok(None);
    }
    let from = copy.as_ref().unwrap_or(&file.path);
    let mut init = start::read(from, 1.0)?;
    if let Some(source) = init.source.as_mut() {
        if let Some(folder) = folder.filter(|folder| copy.is_none() && !from.starts_with(place(folder))) {
            // A start that cannot be copied is still one.
            keep(folder, from, &source.hash).ok();
        }
        if is_there {
            source.path.clone_from(&file.path);
        }
    }
    Ok(Some(init))
}

/// Keeps a picture that was drawn here, so that recipes can name it.
///
/// # Errors
/// If it cannot be written.
pub fn drawn(folder: &Path, picture: &RgbImage, seed: u64) -> Result<InitImage> {
    let mark = super::of_pixels(picture.dimensions(), picture.as_raw());
    let path = place(folder).join(format!("{DRAWN}{seed}-{mark:032x}.png"));
    if !path.is_file() {
        sheet::write_png(&path, picture)?;
        trim(folder);
    }
    start::read(&path, 1.0)
}

fn find(folder: &Path, hash: &str) -> Option<PathBuf> {
    // It may come from a file of anybody's.
    let is_hash = !hash.is_empty() && hash.chars().all(|c| c.is_ascii_hexdigit());
    let mut names = decode::EXTENSIONS.iter().map(|ending| format!("{hash}.{ending}"));
    names.find_map(|name| Some(place(folder).join(name)).filter(|path| is_hash && path.is_file()))
}

fn keep(folder: &Path, from: &Path, hash: &str) -> Result<()> {
    let ending = from.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let path = place(folder).join(format!("{hash}.{ending}"));
    if !path.is_file() {
        files::write_bytes(path, &decode::load(from)?)?;
        trim(folder);
    }
    Ok(())
}

fn trim(folder: &Path) {
    for path in super::beyond(&place(folder), KEPT) {
        std::fs::remove_file(path).ok();
    }
}
