//! How the network is told the time.

use candle_core::{DType, Tensor};

use super::{Adaptable, LayerPath, Linear, adaptable::Visitor};
use crate::{error::Result, ops, weights::Weights};

/// Sines and cosines of a number at geometrically spaced frequencies.
#[derive(Debug, Clone, Copy)]
pub struct Sinusoid {
    /// Values per number.
    pub width: usize,
    /// Cosines first?
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the exponent.
    pub freq_shift: f64,
}

impl Sinusoid {
    /// Always computed in f32: a timestep past 256 has no exact bf16.
    ///
    /// # Shapes
    /// - `t`: (n) → (n, width) f32
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, t: &Tensor) -> Result<Tensor> {
        let half = self.width / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| (-(10_000f64.ln()) * i as f64 / (half as f64 - self.freq_shift)).exp() as f32)
            .collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
        let angle = t.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?; // n half
        let (sin, cos) = (angle.sin()?, angle.cos()?);
        let y =
            if self.flip_sin_to_cos { Tensor::cat(&[cos, sin], 1)? } else { Tensor::cat(&[sin, cos], 1)? };
        Ok(y.pad_with_zeros(1, 0, self.width % 2)?)
    }
}

/// Two linear layers with `SiLU` between: diffusers' `TimestepEmbedding`.
#[derive(Debug, Clone)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    cond_proj: Option<Linear>,
}

impl TimestepEmbedding {
    /// Loads `linear_1` (output, input), `linear_2` (output, output) and, where the guidance scale is embedded too,
    /// `cond_proj` (input, guidance).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize, guidance: Option<usize>) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&weights.pp("linear_1"), input, output, true)?,
            linear_2: Linear::load(&weights.pp("linear_2"), output, output, true)?,
            cond_proj: guidance
                .map(|width| Linear::load(&weights.pp("cond_proj"), width, input, false))
                .transpose()?,
        })
    }

    /// # Shapes
    /// - `x`: (b, input), `guidance`: (b, guidance) → (b, output)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor, guidance: Option<&Tensor>) -> Result<Tensor> {
        let x = match (&self.cond_proj, guidance) {
            (Some(cond_proj), Some(guidance)) => (x + cond_proj.forward(guidance)?)?,
            _ => x.clone(),
        };
        self.linear_2.forward(&ops::silu(&self.linear_1.forward(&x)?)?)
    }
}

impl Adaptable for TimestepEmbedding {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.linear_1.visit(&path.join("linear_1"), f)?;
        self.linear_2.visit(&path.join("linear_2"), f)?;
        match &mut self.cond_proj {
            Some(cond_proj) => cond_proj.visit(&path.join("cond_proj"), f),
            None => Ok(()),
        }
    }
}
