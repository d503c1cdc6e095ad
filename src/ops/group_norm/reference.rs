//! Plain candle.

use candle_core::Tensor;

use super::GroupNorm;
use crate::error::Result;

pub(crate) fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, norm: GroupNorm) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let g = x.reshape((b, h * w, norm.groups, c / norm.groups))?;
    let mean = g.mean_keepdim((1, 3))?;
    let centred = g.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim((1, 3))?;
    let y = centred.broadcast_div(&(var + norm.eps)?.sqrt()?)?.reshape((b, h, w, c))?;
    let y = y.broadcast_mul(weight)?.broadcast_add(bias)?;
    if norm.then_silu { Ok(y.silu()?) } else { Ok(y) }
}
