//! Pointwise non-linearities.

mod cpu;
mod cuda;
pub(crate) mod reference;

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use candle_core::{D, DType, Tensor};

use super::cpu::{Values, narrow, widen};
use super::cuda::card;
use super::function::{self, Output};
use crate::error::{Error, Result};

/// x · σ(x).
///
/// # Errors
/// If the device fails.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::Silu, x)
}

/// The exact GELU (with erf), which diffusers' GEGLU and Hugging Face's `gelu` mean.
///
/// # Errors
/// If the device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::Gelu, x)
}

/// x · σ(1.702 x), CLIP-L's activation.
///
/// # Errors
/// If the device fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::QuickGelu, x)
}

/// The first half of the last dimension times the GELU of the second (<https://arxiv.org/abs/2002.05202>).
///
/// # Shapes
/// - `x`: (…, 2 d) → (…, d)
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width == 0 || width % 2 != 0 {
        return Err(Error::invalid(format!("geglu expects an even, non-zero last dimension, got {width}")));
    }
    let kept = x.detach();
    let value = geglu_forward(&kept)?;
    function::apply(Output::Fresh(value), &[x], move |g| Ok(vec![Some(geglu_backward(&kept, g)?)]))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pointwise {
    Silu,
    Gelu,
    QuickGelu,
}

fn pointwise(kind: Pointwise, x: &Tensor) -> Result<Tensor> {
    let kept = x.detach();
    let value = forward(kind, &kept)?;
    function::apply(Output::Fresh(value), &[x], move |g| Ok(vec![Some(backward(kind, &kept, g)?)]))
}

fn forward(kind: Pointwise, x: &Tensor) -> Result<Tensor> {
    if let Some(card) = card(x.device())? {
        return cuda::forward(&*card, kind, x);
    }
    if x.device().is_cpu() {
        let wide = widen(x)?;
        return narrow(cpu::forward(kind, &Values::of(&wide)?), x.shape(), x.dtype());
    }
    match kind {
        Pointwise::Silu => reference::silu(x),
        Pointwise::Gelu => reference::gelu(x),
        Pointwise::QuickGelu => reference::quick_gelu(x),
    }
}

fn backward(kind: Pointwise, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    if let Some(card) = card(x.device())? {
        return cuda::backward(&*card, kind, x, g);
    }
    if x.device().is_cpu() {
        let (wide, g) = (widen(x)?, widen(g)?);
        return narrow(cpu::backward(kind, &Values::of(&wide)?, &Values::of(&g)?), x.shape(), x.dtype());
    }
    Ok((g * slope(kind, x)?)?)
}

/// f'(x) from candle's ops.
fn slope(kind: Pointwise, x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let swish = |beta: f64| -> Result<Tensor> {
        let s = candle_nn::ops::sigmoid(&(&wide * beta)?)?;
        Ok((&s * (((&wide * beta)? * (1.0 - &s)?)? + 1.0)?)?)
    };
    let slope = match kind {
        Pointwise::Silu => swish(1.0)?,
        Pointwise::QuickGelu => swish(1.702)?,
        Pointwise::Gelu => {
            let cdf = (&wide * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
            let pdf = ((wide.sqr()? * -0.5)?.exp()? * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2))?;
            (cdf + &wide * pdf)?
        }
    };
    Ok(slope.to_dtype(x.dtype())?)
}

fn geglu_forward(x: &Tensor) -> Result<Tensor> {
    if let Some(card) = card(x.device())? {
        return cuda::geglu(&*card, x);
    }
    if !x.device().is_cpu() {
        return reference::geglu(x);
    }
    let mut shape = x.dims().to_vec();
    let d = shape.pop().unwrap_or_default() / 2;
    shape.push(d);
    let wide = widen(x)?;
    narrow(cpu::geglu(&Values::of(&wide)?, d), shape, x.dtype())
}

fn geglu_backward(x: &Tensor, g: &Tensor) -> Result<Tensor> {
    if let Some(card) = card(x.device())? {
        return cuda::geglu_backward(&*card, x, g);
    }
    if x.device().is_cpu() {
        let (wide, g) = (widen(x)?, widen(g)?);
        let d = x.dim(D::Minus1)? / 2;
        return narrow(cpu::geglu_backward(&Values::of(&wide)?, &Values::of(&g)?, d), x.shape(), x.dtype());
    }
    geglu_backward_composed(x, g)
}

fn geglu_backward_composed(x: &Tensor, g: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    let gate = halves[1].contiguous()?;
    let value_gradient = (g * reference::gelu(&gate)?)?;
    let gate_gradient = ((g * &halves[0])? * slope(Pointwise::Gelu, &gate)?)?;
    Ok(Tensor::cat(&[value_gradient, gate_gradient], D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_op, close, random};

    #[test]
    fn equal_their_references() -> Result<()> {
        for shape in [vec![3, 5, 34], vec![1, 2]] {
            let x = (random(0, &shape)? * 2.0)?;
            check_op(&[&x], |t| silu(&t[0]), |t| reference::silu(&t[0]))?;
            check_op(&[&x], |t| gelu(&t[0]), |t| reference::gelu(&t[0]))?;
            check_op(&[&x], |t| quick_gelu(&t[0]), |t| reference::quick_gelu(&t[0]))?;
            check_op(&[&x], |t| geglu(&t[0]), |t| reference::geglu(&t[0]))?;
        }
        assert!(geglu(&random(0, &[2, 3])?).is_err());
        Ok(())
    }

    #[test]
    fn composed_backward_equals_the_kernel() -> Result<()> {
        let (x, g) = (random(0, &[4, 18])?, random(1, &[4, 18])?);
        for kind in [Pointwise::Silu, Pointwise::Gelu, Pointwise::QuickGelu] {
            close(&(&g * slope(kind, &x)?)?, &backward(kind, &x, &g)?, 1e-5)?;
        }
        let g = random(1, &[4, 9])?;
        close(&geglu_backward_composed(&x, &g)?, &geglu_backward(&x, &g)?, 1e-5)
    }

    #[test]
    fn half_precision_keeps_its_dtype() -> Result<()> {
        let x = random(0, &[4, 18])?;
        for dtype in [DType::F16, DType::BF16] {
            let y = geglu(&x.to_dtype(dtype)?)?;
            assert_eq!(y.dtype(), dtype);
            close(&y.to_dtype(DType::F32)?, &geglu(&x)?, 2e-2)?;
        }
        Ok(())
    }
}
