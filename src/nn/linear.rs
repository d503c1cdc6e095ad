//! y = x Wᵀ + bias, with a slot for low-rank branches.

use candle_core::Tensor;

use super::Branches;
use crate::{error::Result, ops, weights::Weights};

/// A frozen affine layer that can carry adapters.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    fused: Option<Tensor>,
    fused_bias: Option<Tensor>,
    branches: Option<Branches>,
}

impl Linear {
    /// Loads `weight` (out, in) and, if `bias`, `bias` (out). A weight stored as a 1×1 convolution is accepted.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize, bias: bool) -> Result<Self> {
        let weight = weights.get((output, input), "weight")?;
        let bias = if bias { Some(weights.get(output, "bias")?) } else { None };
        Ok(Self { weight, bias, fused: None, fused_bias: None, branches: None })
    }

    /// # Shapes
    /// - `x`: (…, in) → (…, out)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.fused.as_ref().unwrap_or(&self.weight);
        let bias = self.fused_bias.as_ref().or(self.bias.as_ref());
        if let Some((branches, regional)) = self.branches.as_ref().and_then(Branches::as_regional) {
            let y = ops::linear(x, weight, bias, None)?;
            let z = ops::linear(x, &branches.down, None, None)?;
            return Ok((y + regional.rise(&z, &branches.up)?)?);
        }
        ops::linear(x, weight, bias, self.branches.as_ref().map(Branches::as_low_rank))
    }

    /// The pristine base weight (out, in).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The base bias (out).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Attaches live branches, or removes them.
    pub fn set_branches(&mut self, branches: Option<Branches>) {
        self.branches = branches;
    }

    /// The live branches.
    pub fn branches(&self) -> Option<&Branches> {
        self.branches.as_ref()
    }

    /// Uses `weight` (computed from the pristine base) in place of the base weight, or goes back to the base.
    pub fn set_fused(&mut self, weight: Option<Tensor>) {
        self.fused = weight;
    }

    /// The same for the bias; a layer that has none can get one so.
    pub fn set_fused_bias(&mut self, bias: Option<Tensor>) {
        self.fused_bias = bias;
    }
}
