//! The pictures of the history: PNG files with their recipes, named so that they sort by age.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use image::RgbImage;
use scumble::{
    dataset::{Limits, decode},
    error::{Error, Result},
    pipeline::infotext::{self, Recipe},
};

use crate::logic;

/// A picture of an earlier run.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its file.
    pub file: PathBuf,
    /// As drawn.
    pub image: RgbImage,
    /// How.
    pub recipe: Recipe,
}

/// What the names of this run's files begin with, in the folder of everything.
pub fn prefix(folder: &Path) -> PathBuf {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Two windows may write at once.
    folder.join("history").join(format!("{:013}-{}", since.as_millis(), std::process::id()))
}

/// A picture's file.
pub fn file(prefix: &Path, number: u64) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(format!("-{number:08}.png"));
    name.into()
}

/// Reads the pictures of runs before the one with this prefix, the newest first, until `each` says to stop. Those beyond
/// what the history holds are removed; one that cannot be read is left where it is.
pub fn read(prefix: &Path, mut each: impl FnMut(Result<Kept>) -> bool) {
    let (Some(folder), Some(now)) = (prefix.parent(), prefix.file_name()) else { return };
    let (mut pictures, mut bytes) = (0, 0);
    for name in names(folder, now) {
        let file = folder.join(name);
        if pictures >= logic::HISTORY.0 || bytes > logic::HISTORY.1 {
            std::fs::remove_file(&file).ok();
            continue;
        }
        let kept = one(file);
        if let Ok(kept) = &kept {
            (pictures, bytes) = (pictures + 1, bytes + kept.image.as_raw().len());
        }
        if !each(kept) {
            return;
        }
    }
}

/// The newest first.
fn names(folder: &Path, before: &OsStr) -> Vec<OsString> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.map(|entry| entry.file_name()).filter(|name| {
        let text = name.to_string_lossy();
        text.ends_with(".png") && text.starts_with(|c: char| c.is_ascii_digit()) && name.as_os_str() < before
    });
    let mut names: Vec<OsString> = named.collect();
    names.sort_by(|a, b| b.cmp(a));
    names
}

/// A picture with the recipe in its file.
///
/// # Errors
/// If it cannot be read, or has no recipe.
pub fn picture(file: &Path) -> Result<(RgbImage, Recipe)> {
    let text = infotext::read_text(file)?;
    let text =
        text.ok_or_else(|| Error::file(file, "has no recipe, expected one as this program writes it"))?;
    let limits = Limits { min_side_px: 1, ..Limits::default() };
    Ok((decode::read(file, &limits)?.pixels, Recipe::parse(&text)))
}

fn one(file: PathBuf) -> Result<Kept> {
    let (image, recipe) = picture(&file)?;
    Ok(Kept { file, image, recipe })
}
