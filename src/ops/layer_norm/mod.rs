//! `LayerNorm`, scale and shift frozen.

mod cpu;
mod cuda;
pub(crate) mod reference;

use candle_core::{D, DType, Tensor};

use super::cpu::{Values, narrow, widen};
use super::cuda::card;
use super::function::{self, Output};
use crate::error::{Error, Result};

/// Layer normalisation over the last dimension (<https://arxiv.org/abs/1607.06450>), computed in f32.
///
/// # Shapes
/// - `x`: (…, d), `weight`, `bias`: (d) → (…, d)
///
/// # Errors
/// If shapes disagree.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let d = x.dim(D::Minus1)?;
    if weight.dims() != [d] || bias.dims() != [d] || d == 0 {
        let (weight, bias) = (weight.shape(), bias.shape());
        return Err(Error::invalid(format!(
            "layer_norm over {d} values: weight is {weight:?}, bias {bias:?}"
        )));
    }
    if weight.track_op() || bias.track_op() {
        return reference::layer_norm(x, weight, bias, eps);
    }
    let (kept, scale) = (x.detach(), weight.clone());
    let value = forward(&kept, weight, bias, eps)?;
    function::apply(Output::Fresh(value), &[x], move |g| Ok(vec![Some(backward(&kept, &scale, g, eps)?)]))
}

fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if let Some(card) = card(x.device())? {
        let (weight, bias) = (weight.to_dtype(x.dtype())?, bias.to_dtype(x.dtype())?);
        return cuda::forward(&*card, x, &weight, &bias, eps);
    }
    let (wide, weight, bias) = (widen(x)?, widen(weight)?, widen(bias)?);
    if !x.device().is_cpu() {
        return Ok(reference::layer_norm(&wide, &weight, &bias, eps)?.to_dtype(x.dtype())?);
    }
    let y = cpu::forward(&Values::of(&wide)?, &Values::of(&weight)?, &Values::of(&bias)?, eps as f32);
    narrow(y, x.shape(), x.dtype())
}

fn backward(x: &Tensor, weight: &Tensor, g: &Tensor, eps: f64) -> Result<Tensor> {
    if let Some(card) = card(x.device())? {
        return cuda::backward(&*card, x, &weight.to_dtype(x.dtype())?, g, eps);
    }
    let (wide, weight, g) = (widen(x)?, widen(weight)?, widen(g)?);
    if !x.device().is_cpu() {
        return Ok(backward_composed(&wide, &weight, &g, eps)?.to_dtype(x.dtype())?);
    }
    let gx = cpu::backward(&Values::of(&wide)?, &Values::of(&weight)?, &Values::of(&g)?, eps as f32);
    narrow(gx, x.shape(), x.dtype())
}

/// gx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)), with ĝ = g w and x̂ the normalised row.
fn backward_composed(x: &Tensor, weight: &Tensor, g: &Tensor, eps: f64) -> Result<Tensor> {
    debug_assert_eq!(x.dtype(), DType::F32);
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let rstd = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let xhat = centred.broadcast_mul(&rstd)?;
    let g = g.broadcast_mul(weight)?;
    let shared = xhat.broadcast_mul(&(&g * &xhat)?.mean_keepdim(D::Minus1)?)?;
    Ok((g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)? - shared)?.broadcast_mul(&rstd)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_op, close, random};

    #[test]
    fn equals_its_reference() -> Result<()> {
        for shape in [vec![2, 3, 37], vec![1, 16], vec![70, 5]] {
            let d = shape[shape.len() - 1];
            let x = ((random(0, &shape)? * 3.0)? + 2.0)?;
            let (w, b) = (random(1, &[d])?, random(2, &[d])?);
            check_op(
                &[&x],
                |t| layer_norm(&t[0], &w, &b, 1e-5),
                |t| reference::layer_norm(&t[0], &w, &b, 1e-5),
            )?;
            let g = random(3, &shape)?;
            close(&backward_composed(&x, &w, &g, 1e-5)?, &backward(&x, &w, &g, 1e-5)?, 1e-5)?;
            assert!(layer_norm(&x, &random(1, &[d + 1])?, &b, 1e-5).is_err());
        }
        Ok(())
    }
}
