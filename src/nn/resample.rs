//! Halving and doubling pictures.

use candle_core::Tensor;

use super::{Adaptable, Conv2d, LayerPath, adaptable::Visitor};
use crate::{
    error::Result,
    ops::{self, Conv2dGeometry},
    weights::Weights,
};

/// Halves height and width by a strided convolution, `conv`.
#[derive(Debug, Clone)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// `padding` 1 pads every side (the UNet); 0 pads only after the last row and column (the VAE's encoder).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, channels: usize, padding: usize) -> Result<Self> {
        let geometry = match padding {
            0 => Conv2dGeometry { stride: 2, pad_before: 0, pad_after: 1 },
            _ => Conv2dGeometry::new(2, padding),
        };
        Ok(Self { conv: Conv2d::load(&weights.pp("conv"), channels, channels, 3, geometry)? })
    }

    /// # Shapes
    /// - `x`: (b, h, w, c) → (b, h / 2, w / 2, c), rounded up if padded on every side
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(x)
    }
}

impl Adaptable for Downsample {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.conv.visit(&path.join("conv"), f)
    }
}

/// Enlarges by repeating pixels, then smooths by a convolution, `conv`.
#[derive(Debug, Clone)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Loads `conv`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, channels: usize) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::load(&weights.pp("conv"), channels, channels, 3, Conv2dGeometry::new(1, 1))?,
        })
    }

    /// Doubles, unless `size` (height, width) says otherwise: it does where an odd picture was halved on the way down.
    ///
    /// # Shapes
    /// - `x`: (b, h, w, c) → (b, height, width, c)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let (_, h, w, _) = x.dims4()?;
        let (height, width) = size.unwrap_or((2 * h, 2 * w));
        self.conv.forward(&ops::upsample_nearest(x, height, width)?)
    }
}

impl Adaptable for Upsample {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.conv.visit(&path.join("conv"), f)
    }
}
