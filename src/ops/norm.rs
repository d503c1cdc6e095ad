//! `GroupNorm` (optionally followed by `SiLU`) and `LayerNorm`, scale and shift frozen.

use candle_core::{D, Tensor};

use super::silu;
use crate::error::Result;

/// Group normalisation (<https://arxiv.org/abs/1803.08494>), then `SiLU` if `then_silu`.
///
/// # Shapes
/// - `x`: (b, h, w, c), `weight`, `bias`: (c) → (b, h, w, c)
///
/// # Errors
/// If `groups` does not divide c.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    then_silu: bool,
) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let g = x.reshape((b, h * w, groups, c / groups))?;
    let mean = g.mean_keepdim((1, 3))?;
    let centred = g.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim((1, 3))?;
    let y = centred.broadcast_div(&(var + eps)?.sqrt()?)?.reshape((b, h, w, c))?;
    let y = y.broadcast_mul(weight)?.broadcast_add(bias)?;
    if then_silu { silu(&y) } else { Ok(y) }
}

/// Layer normalisation over the last dimension (<https://arxiv.org/abs/1607.06450>).
///
/// # Shapes
/// - `x`: (…, d), `weight`, `bias`: (d) → (…, d)
///
/// # Errors
/// If shapes disagree.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(var + eps)?.sqrt()?)?;
    Ok(y.broadcast_mul(weight)?.broadcast_add(bias)?)
}
