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

/// Writes a mask into the folder of everything; answers its file.
///
/// # Errors
/// If the folder cannot be written.
pub fn keep(folder: &Path, mask: &GrayImage) -> Result<PathBuf> {
    let folder = folder.join("masks");
    let mark = super::of_pixels(mask.dimensions(), mask.as_raw());
    let path = folder.join(format!("mask-{mark:032x}.png"));
    let mut bytes = Cursor::new(Vec::new());
    mask.write_to(&mut bytes, ImageFormat::Png).map_err(|e| Error::file(&path, e.to_string()))?;
    files::write_bytes(&path, &bytes.into_inner())?;
    Ok(path)
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
