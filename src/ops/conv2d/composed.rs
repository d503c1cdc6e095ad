//! Forward and written backward of a convolution with a branch, put together from plain convolutions.
//!
//! Those are a card's kernels, or candle's. Every convolution of candle's here has a contiguous kernel: cuDNN then runs all of them, and candle's Metal backend reads other
//! kernels wrongly.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Sizes, cuda};
use crate::{
    error::Result,
    ops::{
        cuda::{Card, card},
        low_rank::{Branch, Frozen, Gradients},
    },
};

/// What computes plain convolutions.
#[derive(Clone)]
pub(super) enum Plain {
    Candle,
    Card(Arc<dyn Card>),
}

impl Plain {
    /// For activations like `x`.
    pub fn of(x: &Tensor) -> Result<Self> {
        Ok(card(x.device())?.filter(|card| cuda::takes(&**card, x)).map_or(Self::Candle, Self::Card))
    }

    pub fn is_card(&self) -> bool {
        matches!(self, Self::Card(_))
    }

    /// x (b, h, w, i), as [`Self::convolve`] takes it.
    fn prepared(&self, x: &Tensor, s: Sizes) -> Result<Tensor> {
        match self {
            Self::Candle => Ok(padded(x, s)?.permute((0, 3, 1, 2))?.contiguous()?), // b i h w
            Self::Card(_) => Ok(x.clone()),
        }
    }

    fn convolve(
        &self,
        prepared: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        s: Sizes,
    ) -> Result<Tensor> {
        if let Self::Card(card) = self {
            return cuda::forward(&**card, prepared, weight, bias, s);
        }
        let y = prepared.conv2d(&weight.contiguous()?, 0, s.stride, 1, 1)?;
        let y = y.permute((0, 2, 3, 1))?.contiguous()?;
        Ok(bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))?)
    }

    fn input_gradient(&self, g: &Tensor, weight: &Tensor, s: Sizes) -> Result<Tensor> {
        match self {
            Self::Candle => input_gradient(g, weight, s),
            Self::Card(card) => cuda::input_gradient(&**card, g, weight, s),
        }
    }
}

/// y (b, h', w', o) and z = conv(x, down) ⊙ s (b h' w', r).
pub(super) fn forward(
    plain: &Plain,
    x: &Tensor,
    frozen: &Frozen,
    branch: Option<&Branch>,
    s: Sizes,
) -> Result<(Tensor, Option<Tensor>)> {
    let x = plain.prepared(x, s)?;
    let y = plain.convolve(&x, &frozen.weight, frozen.bias.as_ref(), s)?;
    let Some(Branch { down, up, scale }) = branch else {
        return Ok((y, None));
    };
    let z = plain.convolve(&x, down, None, s)?.reshape(((), scale.elem_count()))?.broadcast_mul(scale)?;
    let y = (&y + z.matmul(&up.t()?)?.reshape(y.shape())?)?;
    Ok((y, Some(z)))
}

/// The gradients that are wanted, for g (b, h', w', o).
pub(super) fn backward(
    plain: &Plain,
    x: Option<&Tensor>,
    g: &Tensor,
    weight: &Tensor,
    branch: Option<(&Branch, &Tensor)>,
    (s, wants_x): (Sizes, bool),
) -> Result<Gradients> {
    let mut grads = Gradients::default();
    if wants_x {
        grads.x = Some(plain.input_gradient(g, weight, s)?);
    }
    if let Some((Branch { down, up, scale }, z)) = branch {
        let rows = g.reshape(((), g.dim(3)?))?;
        let gz = rows.matmul(up)?.broadcast_mul(scale)?;
        if let Some(gx) = grads.x {
            let gz = gz.reshape((s.b, s.out_h, s.out_w, ()))?;
            grads.x = Some((gx + plain.input_gradient(&gz, down, s)?)?);
        }
        if let Some(x) = x {
            grads.down = Some(down_gradient(x, &gz, s)?);
            grads.up = Some(rows.t()?.matmul(z)?);
        }
    }
    Ok(grads)
}

fn padded(x: &Tensor, s: Sizes) -> Result<Tensor> {
    Ok(x.pad_with_zeros(1, s.pad_top, s.pad_after)?.pad_with_zeros(2, s.pad_left, s.pad_after)?)
}

/// A convolution of g, spread out by the stride, with the flipped and transposed kernel.
fn input_gradient(g: &Tensor, weight: &Tensor, s: Sizes) -> Result<Tensor> {
    let spread = |g: Tensor, dim: usize, to: usize, kernel: usize| -> Result<Tensor> {
        let n = g.dim(dim)?;
        let mut shape = g.dims().to_vec();
        shape.insert(dim + 1, 1);
        let g = g.reshape(shape.clone())?.pad_with_zeros(dim + 1, 0, s.stride - 1)?;
        shape.remove(dim + 1);
        shape[dim] = n * s.stride;
        let length = (n - 1) * s.stride + 1;
        let g = g.reshape(shape)?.narrow(dim, 0, length)?;
        let before = kernel - 1 - s.pad_top;
        Ok(g.pad_with_zeros(dim, before, to + kernel - 1 - length - before)?)
    };
    let g = spread(spread(g.clone(), 1, s.h, s.kh)?, 2, s.w, s.kw)?;
    let g = g.permute((0, 3, 1, 2))?.contiguous()?; // b o h w
    let flipped = weight.transpose(0, 1)?.contiguous()?.flip(&[2, 3])?.contiguous()?;
    Ok(g.conv2d(&flipped, 0, 1, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?)
}

/// One small product per tap of the kernel: (r, i, kh, kw).
fn down_gradient(x: &Tensor, gz: &Tensor, s: Sizes) -> Result<Tensor> {
    let x = padded(x, s)?;
    let gz = gz.t()?.contiguous()?; // r (b h' w')
    let steps = |first: usize, n: usize| {
        let at: Vec<u32> = (0..n).map(|i| (first + i * s.stride) as u32).collect();
        Tensor::new(at, x.device())
    };
    let mut taps = Vec::with_capacity(s.kh * s.kw);
    for ky in 0..s.kh {
        let rows = x.index_select(&steps(ky, s.out_h)?, 1)?;
        for kx in 0..s.kw {
            let seen = rows.index_select(&steps(kx, s.out_w)?, 2)?.reshape(((), s.c))?;
            taps.push(gz.matmul(&seen)?); // r i
        }
    }
    let (r, taps) = (gz.dim(0)?, Tensor::stack(&taps, 2)?);
    Ok(taps.reshape((r, s.c, s.kh, s.kw))?)
}
