//! The masks of regional weights, from pictures.

use std::{path::Path, sync::Arc};

use crate::{
    adapter::strength::Mask,
    dataset::{Limits, decode},
    error::Result,
    files::walk,
};

/// A mask with its absolute path, which is what recipes name.
///
/// # Errors
/// If there is no such picture, or it cannot be read.
pub fn read_mask(path: &Path) -> Result<Mask> {
    let limits = Limits { min_side_px: 1, ..Limits::default() };
    let read = walk::expect(path, &decode::EXTENSIONS).and_then(|()| decode::read(path, &limits));
    let pixels = read.map_err(|e| e.context("the mask of an adapter's weight"))?.pixels;
    let picture = Arc::new(image::DynamicImage::from(pixels).into_luma8());
    Ok(Mask { path: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()), picture })
}
