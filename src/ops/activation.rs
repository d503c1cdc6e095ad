//! Pointwise non-linearities.

use candle_core::{D, Tensor};

use crate::error::Result;

/// x · σ(x).
///
/// # Errors
/// If the device fails.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Ok(x.silu()?)
}

/// The exact GELU (with erf), which diffusers' GEGLU and Hugging Face's `gelu` mean.
///
/// # Errors
/// If the device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu_erf()?)
}

/// x · σ(1.702 x), CLIP-L's activation.
///
/// # Errors
/// If the device fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    Ok((x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?)
}

/// The first half of the last dimension times the GELU of the second (<https://arxiv.org/abs/2002.05202>).
///
/// # Shapes
/// - `x`: (…, 2 d) → (…, d)
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    Ok((&halves[0] * gelu(&halves[1].contiguous()?)?)?)
}
