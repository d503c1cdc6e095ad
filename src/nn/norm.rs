//! `GroupNorm` and `LayerNorm`: a learned scale and shift after a normalisation.

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    ops,
    weights::Weights,
};

/// The scale and shift of a normalisation: what `full` and `norm` adapters change.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: Tensor,
    bias: Tensor,
    fused: Option<(Tensor, Tensor)>,
}

impl Norm {
    /// Loads `weight` (width) and `bias` (width).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self { weight: weights.get(width, "weight")?, bias: weights.get(width, "bias")?, fused: None })
    }

    /// The pristine scale (width).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The pristine shift (width).
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Uses this scale and shift (computed from the pristine base) in their place, or goes back to the base.
    pub fn set_fused(&mut self, fused: Option<(Tensor, Tensor)>) {
        self.fused = fused;
    }

    /// The scale and shift in use.
    fn current(&self) -> (&Tensor, &Tensor) {
        self.fused.as_ref().map_or((&self.weight, &self.bias), |(weight, bias)| (weight, bias))
    }
}

/// Group normalisation (<https://arxiv.org/abs/1803.08494>), optionally followed by `SiLU`.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    pub(super) norm: Norm,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Loads a normalisation of `width` channels in `groups`.
    ///
    /// # Errors
    /// If the groups do not divide the channels, or a tensor is missing or has another shape.
    pub fn load(weights: &Weights, width: usize, groups: usize, eps: f64) -> Result<Self> {
        if groups == 0 || !width.is_multiple_of(groups) {
            return Err(Error::invalid(format!(
                "{groups} groups (`norm_num_groups`) do not divide {width} channels"
            )));
        }
        Ok(Self { norm: Norm::load(weights, width)?, groups, eps })
    }

    /// # Shapes
    /// - `x`: (b, h, w, c) → (b, h, w, c)
    ///
    /// # Errors
    /// If the groups do not divide c.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.norm.current();
        ops::group_norm(x, weight, bias, self.groups, self.eps, false)
    }

    /// [`GroupNorm::forward`], then `SiLU`.
    ///
    /// # Errors
    /// If the groups do not divide c.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.norm.current();
        ops::group_norm(x, weight, bias, self.groups, self.eps, true)
    }
}

/// Layer normalisation (<https://arxiv.org/abs/1607.06450>).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    pub(super) norm: Norm,
    eps: f64,
}

impl LayerNorm {
    /// Loads a normalisation of `width` values.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, width: usize, eps: f64) -> Result<Self> {
        Ok(Self { norm: Norm::load(weights, width)?, eps })
    }

    /// # Shapes
    /// - `x`: (…, d) → (…, d)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.norm.current();
        ops::layer_norm(x, weight, bias, self.eps)
    }
}
