//! Plain candle.

use candle_core::Tensor;

use super::LowRank;
use crate::error::Result;

pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    branches: Option<LowRank<'_>>,
) -> Result<Tensor> {
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
