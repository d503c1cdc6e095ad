//! A mask that is being painted.

use std::{path::PathBuf, sync::Arc};

use image::GrayImage;

/// A mask that is being painted.
#[derive(Debug, Clone)]
pub struct Painting {
    /// The style's file.
    pub style: PathBuf,
    /// White acts.
    pub mask: Arc<GrayImage>,
    /// Another one for every change.
    pub version: u64,
    /// False until a mask that was there has been read.
    pub ready: bool,
    /// What it is painted with.
    pub brush: Brush,
    /// Where the brush is while it paints, in shares of the picture's sides.
    pub at: Option<(f32, f32)>,
}

/// What a mask is painted with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Brush {
    /// Its radius as a share of the longer side.
    pub radius: f32,
    /// The share of the radius in which it fades out.
    pub soft: f32,
    /// Takes away.
    pub erase: bool,
}

impl Default for Brush {
    fn default() -> Self {
        Self { radius: 0.08, soft: 0.4, erase: false }
    }
}
