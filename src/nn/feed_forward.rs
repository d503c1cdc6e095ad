//! The gated feed-forward layer of the UNet's transformers.

use candle_core::Tensor;

use super::{Adaptable, LayerPath, Linear, adaptable::Visitor};
use crate::{error::Result, ops, weights::Weights};

/// W₂ GEGLU(W₁ x) (<https://arxiv.org/abs/2002.05202>), four times as wide inside.
#[derive(Debug, Clone)]
pub struct FeedForward {
    gate: Linear,
    out: Linear,
}

impl FeedForward {
    /// Loads `net.0.proj` (8 d, d) and `net.2` (d, 4 d).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self {
            gate: Linear::load(&weights.pp("net.0.proj"), width, 8 * width, true)?,
            out: Linear::load(&weights.pp("net.2"), 4 * width, width, true)?,
        })
    }

    /// # Shapes
    /// - `x`: (b, n, d) → (b, n, d)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&ops::geglu(&self.gate.forward(x)?)?)
    }
}

impl Adaptable for FeedForward {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.gate.visit(&path.join("net.0.proj"), f)?;
        self.out.visit(&path.join("net.2"), f)
    }
}
