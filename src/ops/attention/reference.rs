//! Plain candle; stores the whole score matrix.

use candle_core::{D, Tensor};

use super::Mask;
use crate::error::Result;

pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (b, n, d) = q.dims3()?;
    let m = k.dim(1)?;
    let split = |t: &Tensor, n| t.reshape((b, n, heads, d / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, n)?, split(k, m)?, split(v, m)?);
    let scale = 1.0 / ((d / heads) as f64).sqrt();
    let mut scores = (q.matmul(&k.t()?)? * scale)?; // b heads n m
    if mask == Mask::Causal {
        scores = scores.broadcast_add(&super::blocked(0..n, m, &scores)?)?;
    }
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    Ok(weights.matmul(&v)?.transpose(1, 2)?.reshape((b, n, d))?)
}
