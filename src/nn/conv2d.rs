//! 2-D convolution on channels-last pictures, with a slot for low-rank branches.

use candle_core::Tensor;

use super::Branches;
use crate::{
    error::Result,
    ops::{self, Conv2dGeometry},
    weights::Weights,
};

/// A frozen convolution that can carry adapters.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    geometry: Conv2dGeometry,
    fused: Option<Tensor>,
    fused_bias: Option<Tensor>,
    branches: Option<Branches>,
}

impl Conv2d {
    /// Loads `weight` (output, input, kernel, kernel) and `bias` (output).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        input: usize,
        output: usize,
        kernel: usize,
        geometry: Conv2dGeometry,
    ) -> Result<Self> {
        let mut weight = weights.get((output, input, kernel, kernel), "weight")?;
        // Turned once here rather than in every call. `record_shapes` hands out one number seen as a whole tensor:
        // that stays as small as it is.
        if weight.stride().iter().any(|stride| *stride != 0) {
            weight = ops::conv2d::channels_last(&weight)?;
        }
        let bias = Some(weights.get(output, "bias")?);
        Ok(Self { weight, bias, geometry, fused: None, fused_bias: None, branches: None })
    }

    /// # Shapes
    /// - `x`: (b, h, w, input) → (b, h', w', output)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.fused.as_ref().unwrap_or(&self.weight);
        let bias = self.fused_bias.as_ref().or(self.bias.as_ref());
        if let Some((branches, regional)) = self.branches.as_ref().and_then(Branches::as_regional) {
            let y = ops::conv2d(x, weight, bias, self.geometry, None)?;
            let z = ops::conv2d(x, &branches.down, None, self.geometry, None)?;
            return Ok((y + regional.rise(&z, &branches.up)?)?);
        }
        let branches = self.branches.as_ref().map(Branches::as_low_rank);
        ops::conv2d(x, weight, bias, self.geometry, branches)
    }

    /// The pristine base weight (output, input, kernel, kernel).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The base bias (output).
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
        // Any layout is right; this one is fast.
        self.fused = weight.map(|w| ops::conv2d::channels_last(&w).unwrap_or(w));
    }

    /// The same for the bias.
    pub fn set_fused_bias(&mut self, bias: Option<Tensor>) {
        self.fused_bias = bias;
    }
}
