//! y = x Wᵀ + bias + ((x Aᵀ) ⊙ s) Bᵀ, with W and bias frozen.

use candle_core::Tensor;

use crate::error::Result;

/// The stacked low-rank branches of a layer (LoRA, <https://arxiv.org/abs/2106.09685>): ΔW = B diag(s) A.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// A: (r, in), or (r, in, kh, kw) on a convolution.
    pub down: &'a Tensor,
    /// B: (out, r).
    pub up: &'a Tensor,
    /// s: (r), alpha / rank times the user's weight.
    pub scale: &'a Tensor,
}

/// # Shapes
/// - `x`: (…, in), `weight`: (out, in), `bias`: (out) → (…, out)
///
/// # Errors
/// If shapes, dtypes or devices disagree.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, branches: Option<LowRank<'_>>) -> Result<Tensor> {
    let mut y = x.broadcast_matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(LowRank { down, up, scale }) = branches {
        let z = x.broadcast_matmul(&down.t()?)?.broadcast_mul(scale)?;
        y = (y + z.broadcast_matmul(&up.t()?)?)?;
    }
    Ok(y)
}
