//! The sample styles, for a first start with something to blend.

use std::path::Path;

use scumble::{error::Result, files};

use crate::state::Style;

macro_rules! sample {
    ($name:literal, $weight:literal) => {
        (
            $name,
            $weight,
            include_bytes!(concat!("../../sample-data/adapters/", $name, ".safetensors")).as_slice(),
            include_bytes!(concat!("../../sample-data/", $name, "/fox.jpg")).as_slice(),
        )
    };
}

/// Name, weight at the first start, file, what it looks like.
static STYLES: [(&str, f64, &[u8], &[u8]); 3] =
    [sample!("blueprint", 0.8), sample!("stained-glass", 0.0), sample!("riso", 0.0)];

/// The styles as files below a cache folder, written where they are not there.
///
/// # Errors
/// If they cannot be written.
pub fn styles(cache: &Path) -> Result<Vec<Style>> {
    let folder = cache.join("sample-styles");
    let write = |(name, weight, adapter, picture): &(&str, f64, &[u8], &[u8])| {
        let path = folder.join(format!("{name}.safetensors"));
        for (path, bytes) in [(path.clone(), adapter), (path.with_extension("jpg"), picture)] {
            if std::fs::metadata(&path).map_or(0, |there| there.len()) != bytes.len() as u64 {
                files::create_folder(&folder)?;
                files::write_bytes(&path, bytes)?;
            }
        }
        Ok(Style::new(path, *weight))
    };
    STYLES.iter().map(write).collect()
}
