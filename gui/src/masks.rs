//! Painted masks as files, named by what is in them: a mask that a picture's recipe names never changes.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
};

use image::{GrayImage, ImageFormat};
use scumble::{
    error::{Error, Result},
    files,
};

/// Where they lie, beside the settings.
pub fn folder() -> PathBuf {
    eframe::storage_dir("scumble").unwrap_or_else(files::cache_folder).join("masks")
}

/// Writes a mask; answers its file.
///
/// # Errors
/// If the folder cannot be written.
pub fn keep(folder: &Path, mask: &GrayImage) -> Result<PathBuf> {
    let path = folder.join(format!("mask-{:032x}.png", fingerprint(mask)));
    let mut bytes = Cursor::new(Vec::new());
    mask.write_to(&mut bytes, ImageFormat::Png).map_err(|e| Error::file(&path, e.to_string()))?;
    files::create_folder(folder)?;
    files::write_bytes(&path, &bytes.into_inner())?;
    Ok(path)
}

/// FNV-1a of size and pixels (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn fingerprint(mask: &GrayImage) -> u128 {
    let size = [mask.width(), mask.height()].map(u32::to_le_bytes);
    let bytes = size.iter().flatten().chain(mask.as_raw());
    bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_one_name() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::invalid(e.to_string()))?;
        let (mut a, b) = (GrayImage::new(16, 8), GrayImage::new(8, 16));
        let first = keep(folder.path(), &a)?;
        assert_eq!(keep(folder.path(), &a)?, first);
        assert_ne!(keep(folder.path(), &b)?, first);
        a.put_pixel(3, 3, image::Luma([7]));
        let changed = keep(folder.path(), &a)?;
        assert_ne!(changed, first);
        assert_eq!(*scumble::engine::read_mask(&changed)?.picture, a);
        Ok(())
    }
}
