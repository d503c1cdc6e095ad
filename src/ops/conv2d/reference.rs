//! Plain candle.

use candle_core::Tensor;

use super::Conv2dGeometry;
use crate::{error::Result, ops::LowRank};

pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
    branches: Option<LowRank<'_>>,
) -> Result<Tensor> {
    let Conv2dGeometry { stride, pad_before, pad_after } = geometry;
    let x = x.pad_with_zeros(1, pad_before, pad_after)?.pad_with_zeros(2, pad_before, pad_after)?;
    // Rows and columns that no kernel position reaches are cut off: candle's backward pads both directions by what is
    // left over in the first.
    let (_, _, kh, kw) = weight.dims4()?;
    let used = |n: usize, kernel: usize| n.saturating_sub(kernel) / stride * stride + kernel;
    let x = x.narrow(1, 0, used(x.dim(1)?, kh))?.narrow(2, 0, used(x.dim(2)?, kw))?;
    let x = x.permute((0, 3, 1, 2))?.contiguous()?; // b i h w
    let to_last = |y: Tensor| y.permute((0, 2, 3, 1));
    let mut y = to_last(x.conv2d(&weight.contiguous()?, 0, stride, 1, 1)?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(LowRank { down, up, scale }) = branches {
        let z = to_last(x.conv2d(&down.contiguous()?, 0, stride, 1, 1)?)?.broadcast_mul(scale)?; // b h w r
        y = (y + z.contiguous()?.broadcast_matmul(&up.t()?)?)?;
    }
    Ok(y.contiguous()?)
}
