//! Multi-head scaled dot-product attention.

use candle_core::{D, Tensor};

use crate::error::Result;

/// Which keys a query may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those not after it (CLIP's text encoder).
    Causal,
}

/// softmax(q kᵀ / √(d / heads)) v per head (<https://arxiv.org/abs/1706.03762>).
///
/// # Shapes
/// - `q`: (b, n, d), `k`, `v`: (b, m, d) → (b, n, d); d is split into `heads` equal parts
///
/// # Errors
/// If `heads` does not divide d, or shapes disagree.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (b, n, d) = q.dims3()?;
    let m = k.dim(1)?;
    let split = |t: &Tensor, n| t.reshape((b, n, heads, d / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, n)?, split(k, m)?, split(v, m)?);
    let scale = 1.0 / ((d / heads) as f64).sqrt();
    let mut scores = (q.matmul(&k.t()?)? * scale)?; // b heads n m
    if mask == Mask::Causal {
        let blocked: Vec<f32> =
            (0..n * m).map(|i| if i % m > i / m { f32::NEG_INFINITY } else { 0.0 }).collect();
        let blocked = Tensor::from_vec(blocked, (n, m), q.device())?.to_dtype(scores.dtype())?;
        scores = scores.broadcast_add(&blocked)?;
    }
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    Ok(weights.matmul(&v)?.transpose(1, 2)?.reshape((b, n, d))?)
}
