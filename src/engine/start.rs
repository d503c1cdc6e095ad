//! Pictures to start from, read from files that may be anything.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::{
    dataset::{Limits, decode},
    error::Result,
    files::walk,
    pipeline::{InitImage, InitSource},
};

/// Reads a picture to start from, of which `strength` will be drawn anew.
///
/// # Errors
/// If the file cannot be read, is no picture, is broken, or absurdly large or small.
pub fn read(path: &Path, strength: f64) -> Result<InitImage> {
    walk::expect(path, &decode::EXTENSIONS)?;
    let bytes = decode::load(path)?;
    let pixels = decode::decode(path, &bytes, &Limits::default())?.pixels;
    let hash = format!("{:x}", Sha256::digest(&bytes))[..10].to_owned();
    let source = Some(InitSource { path: path.to_path_buf(), hash });
    Ok(InitImage { source, ..InitImage::new(pixels, strength) })
}
