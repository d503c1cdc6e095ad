//! 2-D convolution on channels-last pictures, weight and bias frozen.

use candle_core::Tensor;

use super::LowRank;
use crate::error::Result;

/// Stride and zero padding of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGeometry {
    /// The same in both directions.
    pub stride: usize,
    /// Zeros added before the first row and column.
    pub pad_before: usize,
    /// Zeros added after the last row and column (the VAE encoder pads (0, 1)).
    pub pad_after: usize,
}

impl Conv2dGeometry {
    /// The same padding on every side.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride, pad_before: padding, pad_after: padding }
    }
}

/// # Shapes
/// - `x`: (b, h, w, i), `weight`: (o, i, kh, kw), `bias`: (o) → (b, h', w', o)
/// - `branches.down`: (r, i, kh, kw), `branches.up`: (o, r)
///
/// # Errors
/// If shapes, dtypes or devices disagree.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
    branches: Option<LowRank<'_>>,
) -> Result<Tensor> {
    let Conv2dGeometry { stride, pad_before, pad_after } = geometry;
    let x = x.pad_with_zeros(1, pad_before, pad_after)?.pad_with_zeros(2, pad_before, pad_after)?;
    let x = x.permute((0, 3, 1, 2))?.contiguous()?; // b i h w
    let to_last = |y: Tensor| y.permute((0, 2, 3, 1));
    let mut y = to_last(x.conv2d(weight, 0, stride, 1, 1)?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(LowRank { down, up, scale }) = branches {
        let z = to_last(x.conv2d(down, 0, stride, 1, 1)?)?.broadcast_mul(scale)?; // b h w r
        y = (y + z.contiguous()?.broadcast_matmul(&up.t()?)?)?;
    }
    Ok(y.contiguous()?)
}
