//! The residual convolution block of the UNet and the VAE.

use candle_core::Tensor;

use super::{Adaptable, Conv2d, GroupNorm, LayerPath, Linear, adaptable::Visitor};
use crate::{
    error::Result,
    ops::{self, Conv2dGeometry},
    weights::Weights,
};

/// The shape of a [`ResnetBlock`].
#[derive(Debug, Clone, Copy)]
pub struct ResnetConfig {
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// Width of the time embedding; none in the VAE.
    pub time: Option<usize>,
    /// Groups of both normalisations.
    pub groups: usize,
    /// Added to variances.
    pub eps: f64,
}

/// x + conv(silu(norm(conv(silu(norm(x))) + time))): diffusers' `ResnetBlock2D`.
#[derive(Debug, Clone)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Loads the block; `conv_shortcut` exists where the number of channels changes.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &ResnetConfig) -> Result<Self> {
        let ResnetConfig { input, output, time, groups, eps } = *config;
        let same = Conv2dGeometry::new(1, 1);
        let shortcut =
            || Conv2d::load(&weights.pp("conv_shortcut"), input, output, 1, Conv2dGeometry::new(1, 0));
        Ok(Self {
            norm1: GroupNorm::load(&weights.pp("norm1"), input, groups, eps)?,
            conv1: Conv2d::load(&weights.pp("conv1"), input, output, 3, same)?,
            time_emb_proj: time
                .map(|time| Linear::load(&weights.pp("time_emb_proj"), time, output, true))
                .transpose()?,
            norm2: GroupNorm::load(&weights.pp("norm2"), output, groups, eps)?,
            conv2: Conv2d::load(&weights.pp("conv2"), output, output, 3, same)?,
            conv_shortcut: (input != output).then(shortcut).transpose()?,
        })
    }

    /// # Shapes
    /// - `x`: (b, h, w, input), `time`: (b, time width) → (b, h, w, output)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut y = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        if let (Some(proj), Some(time)) = (&self.time_emb_proj, time) {
            let time = proj.forward(&ops::silu(time)?)?; // b output
            y = ops::add_per_picture(&y, &time)?;
        }
        let y = self.conv2.forward(&self.norm2.forward_silu(&y)?)?;
        match &self.conv_shortcut {
            Some(shortcut) => ops::add(&shortcut.forward(x)?, &y),
            None => ops::add(x, &y),
        }
    }
}

impl Adaptable for ResnetBlock {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.norm1.visit(&path.join("norm1"), f)?;
        self.conv1.visit(&path.join("conv1"), f)?;
        if let Some(proj) = &mut self.time_emb_proj {
            proj.visit(&path.join("time_emb_proj"), f)?;
        }
        self.norm2.visit(&path.join("norm2"), f)?;
        self.conv2.visit(&path.join("conv2"), f)?;
        match &mut self.conv_shortcut {
            Some(shortcut) => shortcut.visit(&path.join("conv_shortcut"), f),
            None => Ok(()),
        }
    }
}
