//! `GroupNorm`, optionally followed by `SiLU`, scale and shift frozen.

mod cpu;
mod cuda;
pub(crate) mod reference;

use std::sync::Arc;

use candle_core::Tensor;

use self::{cpu::Pictures, cuda::Found};
use super::cpu::{Values, narrow, widen};
use super::cuda::{Card, card};
use super::function::{self, Output};
use crate::error::{Error, Result};

/// Group normalisation (<https://arxiv.org/abs/1803.08494>), then `SiLU` if `then_silu`; computed in f32.
///
/// # Shapes
/// - `x`: (b, h, w, c), `weight`, `bias`: (c) → (b, h, w, c)
///
/// # Errors
/// If `groups` does not divide c, or shapes disagree.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    then_silu: bool,
) -> Result<Tensor> {
    let (_, h, w, c) = x.dims4()?;
    if groups == 0 || c == 0 || c % groups != 0 || h * w == 0 {
        return Err(Error::invalid(format!(
            "group_norm cannot split {h}x{w} pixels of {c} channels into {groups} groups"
        )));
    }
    if weight.dims() != [c] || bias.dims() != [c] {
        let (weight, bias) = (weight.shape(), bias.shape());
        return Err(Error::invalid(format!(
            "group_norm over {c} channels: weight is {weight:?}, bias {bias:?}"
        )));
    }
    let norm = GroupNorm { groups, eps, then_silu };
    if weight.track_op() || bias.track_op() {
        return reference::group_norm(x, weight, bias, norm);
    }
    if let Some(card) = card(x.device())? {
        return on_card(card, x, [weight, bias], norm);
    }
    if x.device().is_cpu() {
        return on_cpu(x, weight, bias, norm);
    }
    let kept = x.detach();
    let (weight, bias) = (widen(weight)?, widen(bias)?);
    let value = reference::group_norm(&widen(&kept)?, &weight, &bias, norm)?.to_dtype(x.dtype())?;
    function::apply(Output::Fresh(value), &[x], move |g| {
        let gx = backward_composed(&widen(&kept)?, &weight, &bias, norm, &widen(g)?)?;
        Ok(vec![Some(gx.to_dtype(kept.dtype())?)])
    })
}

/// How to normalise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNorm {
    pub groups: usize,
    pub eps: f64,
    pub then_silu: bool,
}

fn on_card(card: Arc<dyn Card>, x: &Tensor, affine: [&Tensor; 2], norm: GroupNorm) -> Result<Tensor> {
    let [weight, bias] = affine.map(|t| t.detach().to_dtype(x.dtype()));
    let (kept, weight, bias) = (x.detach(), weight?, bias?);
    let (value, moments) = cuda::forward(&*card, &kept, &weight, &bias, norm)?;
    function::apply(Output::Fresh(value), &[x], move |g| {
        let found = Found { weight: &weight, bias: &bias, moments: &moments };
        Ok(vec![Some(cuda::backward(&*card, &kept, found, norm, g)?)])
    })
}

fn on_cpu(x: &Tensor, weight: &Tensor, bias: &Tensor, norm: GroupNorm) -> Result<Tensor> {
    let area = x.dim(1)? * x.dim(2)?;
    let (kept, weight, bias) = (x.detach(), widen(weight)?, widen(bias)?);
    let (value, moments) = {
        let wide = widen(&kept)?;
        let (values, weight, bias) = (Values::of(&wide)?, Values::of(&weight)?, Values::of(&bias)?);
        let (y, moments) = cpu::forward(Pictures { x: &values, weight: &weight, bias: &bias, area }, norm);
        (narrow(y, x.shape(), x.dtype())?, moments)
    };
    function::apply(Output::Fresh(value), &[x], move |g| {
        let (wide, g) = (widen(&kept)?, widen(g)?);
        let (values, weight, bias) = (Values::of(&wide)?, Values::of(&weight)?, Values::of(&bias)?);
        let pictures = Pictures { x: &values, weight: &weight, bias: &bias, area };
        let gx = cpu::backward(pictures, norm, &moments, &Values::of(&g)?);
        Ok(vec![Some(narrow(gx, kept.shape(), kept.dtype())?)])
    })
}

/// gx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)) over each group, with ĝ = g y'(u) w and x̂ the normalised group.
fn backward_composed(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    norm: GroupNorm,
    g: &Tensor,
) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let grouped = |t: &Tensor| t.reshape((b, h * w, norm.groups, c / norm.groups));
    let x = grouped(x)?;
    let centred = x.broadcast_sub(&x.mean_keepdim((1, 3))?)?;
    let rstd = (centred.sqr()?.mean_keepdim((1, 3))? + norm.eps)?.sqrt()?.recip()?;
    let xhat = centred.broadcast_mul(&rstd)?;
    let mut g = g.clone();
    if norm.then_silu {
        let u = xhat.reshape((b, h, w, c))?.broadcast_mul(weight)?.broadcast_add(bias)?;
        let s = candle_nn::ops::sigmoid(&u)?;
        g = (g * (&s * ((u * (1.0 - &s)?)? + 1.0)?)?)?;
    }
    let g = grouped(&g.broadcast_mul(weight)?)?;
    let shared = xhat.broadcast_mul(&(&g * &xhat)?.mean_keepdim((1, 3))?)?;
    let gx = (g.broadcast_sub(&g.mean_keepdim((1, 3))?)? - shared)?.broadcast_mul(&rstd)?;
    Ok(gx.reshape((b, h, w, c))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_op, close, random};

    #[test]
    fn equals_its_reference() -> Result<()> {
        for (shape, groups) in [([2, 3, 5, 12], 4), ([1, 1, 2, 6], 1), ([1, 33, 31, 34], 17)] {
            let c = shape[3];
            let x = ((random(0, &shape)? * 2.0)? + 1.5)?;
            let (weight, bias) = (random(1, &[c])?, random(2, &[c])?);
            for then_silu in [false, true] {
                let norm = GroupNorm { groups, eps: 1e-5, then_silu };
                check_op(
                    &[&x],
                    |t| group_norm(&t[0], &weight, &bias, groups, 1e-5, then_silu),
                    |t| reference::group_norm(&t[0], &weight, &bias, norm),
                )?;
                let (g, x_leaf) = (random(3, &shape)?, candle_core::Var::from_tensor(&x)?);
                let y = group_norm(&x_leaf, &weight, &bias, groups, 1e-5, then_silu)?;
                let grads = function::backward(&(y * &g)?)?;
                let expected = grads.get(&x_leaf).expect("a gradient");
                close(&backward_composed(&x, &weight, &bias, norm, &g)?, expected, 1e-5)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_large_offset_does_not_cancel() -> Result<()> {
        let x = random(0, &[1, 16, 16, 8])?;
        let (one, zero) = (random(0, &[8])?.ones_like()?, random(0, &[8])?.zeros_like()?);
        let y = group_norm(&(&x + 1000.0)?, &one, &zero, 2, 1e-5, false)?;
        close(&y, &group_norm(&x, &one, &zero, 2, 1e-5, false)?, 2e-3)
    }

    #[test]
    fn refuses_groups_that_do_not_divide() -> Result<()> {
        let (x, w) = (random(0, &[1, 2, 2, 6])?, random(1, &[6])?);
        assert!(group_norm(&x, &w, &w, 4, 1e-5, false).is_err());
        assert!(group_norm(&x, &w, &w, 0, 1e-5, false).is_err());
        Ok(())
    }
}
