//! y = x Wᵀ + bias + ((x Aᵀ) ⊙ s) Bᵀ, with W and bias frozen.

pub(super) mod cpu;
mod cuda;
pub(crate) mod reference;

use candle_core::{D, DType, Tensor};

use self::cpu::Affine;
use super::cpu::{Numbers, Stored, Values, factor, narrow, widen};
use super::flops;
use super::function::{self, Output};
use super::low_rank::{Branch, Frozen, Gradients, Kept, LowRank, Wanted, compute_dtype, stored};
use crate::error::{Error, Result};

/// # Shapes
/// - `x`: (…, in), `weight`: (out, in), `bias`: (out) → (…, out)
///
/// # Errors
/// If shapes or devices disagree.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    branches: Option<LowRank<'_>>,
) -> Result<Tensor> {
    check(x, weight, bias, branches)?;
    if [Some(weight), bias, branches.map(|b| b.scale)].iter().flatten().any(|t| t.track_op()) {
        return reference::linear(x, weight, bias, branches);
    }
    let frozen = Frozen { weight: weight.clone(), bias: bias.cloned() };
    let Some(LowRank { down, up, scale }) = branches else {
        let (y, _) = forward(&x.detach(), &frozen, None)?;
        let wanted = Wanted { x: true, branch: false };
        let kept = Kept::of(x, wanted);
        return function::apply(Output::Fresh(y), &[x], move |g| {
            backward(&kept, g, &frozen, None, wanted)?.in_dtypes(&[kept.dtype])
        });
    };
    let wanted = Wanted { x: x.track_op(), branch: down.track_op() || up.track_op() };
    // A card's kernels read f32 beside half-precision activations.
    let in_f32 = cuda::taking(x, weight, scale.elem_count())?.is_some();
    let dtype = if in_f32 { DType::F32 } else { compute_dtype(x) };
    let branch = Branch::new(LowRank { down, up, scale }, dtype)?;
    let (y, z) = forward(&x.detach(), &frozen, Some(&branch))?;
    let (kept, dtypes) = (Kept::of(x, wanted), [x.dtype(), down.dtype(), up.dtype()]);
    function::apply(Output::Fresh(y), &[x, down, up], move |g| {
        backward(&kept, g, &frozen, z.as_ref().map(|z| (&branch, z)), wanted)?.in_dtypes(&dtypes)
    })
}

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, branches: Option<LowRank<'_>>) -> Result<()> {
    let refuse =
        |what: String| Err(Error::invalid(format!("linear with weight {:?}: {what}", weight.shape())));
    let (outputs, inputs) = weight.dims2()?;
    if x.dim(D::Minus1)? != inputs || inputs == 0 || outputs == 0 {
        return refuse(format!("input is {:?}", x.shape()));
    }
    if let Some(bias) = bias.filter(|b| b.dims() != [outputs]) {
        return refuse(format!("bias is {:?}", bias.shape()));
    }
    if let Some(LowRank { down, up, scale }) = branches {
        let r = scale.elem_count();
        if r == 0 || down.dims() != [r, inputs] || up.dims() != [outputs, r] || scale.dims() != [r] {
            let (down, up, scale) = (down.shape(), up.shape(), scale.shape());
            return refuse(format!("branches are down {down:?}, up {up:?}, scale {scale:?}"));
        }
    }
    Ok(())
}

/// y, and z = (x downᵀ) ⊙ s (m, r), which the backward pass needs.
fn forward(x: &Tensor, frozen: &Frozen, branch: Option<&Branch>) -> Result<(Tensor, Option<Tensor>)> {
    let (outputs, inputs) = frozen.weight.dims2()?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(outputs);
    let m = x.elem_count() / inputs;
    flops::count(m * (inputs * outputs + branch.map_or(0, |b| b.rank() * (inputs + outputs))));
    let card = cuda::taking(x, &frozen.weight, branch.map_or(0, Branch::rank))?;
    if !x.device().is_cpu() || card.is_some() {
        let rows = x.contiguous()?.reshape(((), inputs))?;
        let frozen = frozen.to_dtype(x.dtype())?;
        let (y, z) = match card {
            Some(card) => cuda::forward(&*card, &rows, &frozen, branch)?,
            None => forward_composed(&rows, &frozen, branch)?,
        };
        return Ok((y.reshape(shape)?, z));
    }
    let (x_stored, weight) = (factor(x, &frozen.weight)?, stored(&frozen.weight)?);
    let bias = frozen.bias.as_ref().map(widen).transpose()?;
    let (weight, bias) = (Stored::of(&weight)?, bias.as_ref().map(Values::of).transpose()?);
    let affine = Affine { weight: weight.numbers(), bias: bias.as_deref(), inputs, outputs };
    let values = branch.map(Branch::values).transpose()?;
    let (y, z) = cpu::forward(Stored::of(&x_stored)?.numbers(), m, affine, values.as_ref());
    let z = branch.map(|b| narrow(z, (m, b.rank()), DType::F32)).transpose()?;
    Ok((narrow(y, shape, x.dtype())?, z))
}

/// The gradients that are wanted; a branch comes with its saved z.
fn backward(
    x: &Kept,
    g: &Tensor,
    frozen: &Frozen,
    branch: Option<(&Branch, &Tensor)>,
    wanted: Wanted,
) -> Result<Gradients> {
    let (outputs, inputs) = frozen.weight.dims2()?;
    let m = x.shape.elem_count() / inputs;
    flops::count(m * wanted.products(inputs, outputs, branch.map_or(0, |(b, _)| b.rank())));
    let card = cuda::taking(g, &frozen.weight, branch.map_or(0, |(b, _)| b.rank()))?;
    if !g.device().is_cpu() || card.is_some() {
        let rows = x.values.as_ref().map(|x| x.contiguous()?.reshape(((), inputs))).transpose()?;
        let (g, weight) = (g.reshape(((), outputs))?, frozen.weight.to_dtype(x.dtype)?.contiguous()?);
        let mut grads = match card {
            Some(card) => cuda::backward(&*card, rows.as_ref(), &g, &weight, (branch, wanted))?,
            None => backward_composed(rows.as_ref(), &g, &weight, branch, wanted.x)?,
        };
        grads.x = grads.x.map(|gx| gx.reshape(&x.shape)).transpose()?;
        return Ok(grads);
    }
    let (g, weight) = (factor(g, &frozen.weight)?, stored(&frozen.weight)?);
    let (g, weight) = (Stored::of(&g)?, Stored::of(&weight)?);
    let g = g.numbers();
    let values = branch.map(|(b, _)| b.values()).transpose()?;
    let gz = values.as_ref().map(|b| cpu::rank_gradient(g, m, outputs, b));
    let mut grads = Gradients::default();
    if wanted.x {
        let affine = Affine { weight: weight.numbers(), bias: None, inputs, outputs };
        let low_rank = values.as_ref().zip(gz.as_deref()).map(|(b, gz)| (gz, &*b.down));
        grads.x = Some(narrow(cpu::input_gradient(g, m, affine, low_rank), &x.shape, x.dtype)?);
    }
    if let (Some(x), Some((branch, z)), Some(gz)) = (&x.values, branch, gz) {
        let r = branch.rank();
        let x = factor(x, &frozen.weight)?;
        let gdown = cpu::outer(Numbers::F32(&gz), Stored::of(&x)?.numbers(), (m, r, inputs));
        let gup = cpu::outer(g, Stored::of(z)?.numbers(), (m, outputs, r));
        grads.down = Some(narrow(gdown, (r, inputs), DType::F32)?);
        grads.up = Some(narrow(gup, (outputs, r), DType::F32)?);
    }
    Ok(grads)
}

fn forward_composed(
    x: &Tensor,
    frozen: &Frozen,
    branch: Option<&Branch>,
) -> Result<(Tensor, Option<Tensor>)> {
    let mut y = x.matmul(&frozen.weight.t()?)?;
    if let Some(bias) = &frozen.bias {
        y = y.broadcast_add(bias)?;
    }
    let Some(Branch { down, up, scale }) = branch else {
        return Ok((y, None));
    };
    let z = x.matmul(&down.t()?)?.broadcast_mul(scale)?;
    Ok(((y + z.matmul(&up.t()?)?)?, Some(z)))
}

fn backward_composed(
    x: Option<&Tensor>,
    g: &Tensor,
    weight: &Tensor,
    branch: Option<(&Branch, &Tensor)>,
    wants_x: bool,
) -> Result<Gradients> {
    let mut grads = Gradients::default();
    if wants_x {
        grads.x = Some(g.matmul(weight)?);
    }
    if let Some((Branch { down, up, scale }, z)) = branch {
        let gz = g.matmul(up)?.broadcast_mul(scale)?;
        if let Some(gx) = grads.x {
            grads.x = Some((gx + gz.matmul(down)?)?);
        }
        if let Some(x) = x {
            grads.down = Some(gz.t()?.matmul(x)?);
            grads.up = Some(g.t()?.matmul(z)?);
        }
    }
    Ok(grads)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing::{check_half, check_op, close, random};

    fn check_sizes(rows: &[usize], inputs: usize, outputs: usize, r: usize) -> Result<()> {
        let mut shape = rows.to_vec();
        shape.push(inputs);
        let (x, weight, bias) = (random(0, &shape)?, random(1, &[outputs, inputs])?, random(2, &[outputs])?);
        let (down, up, scale) = (random(3, &[r, inputs])?, random(4, &[outputs, r])?, random(5, &[r])?);
        let branch =
            |t: &[Tensor],
             f: fn(&Tensor, &Tensor, Option<&Tensor>, Option<LowRank<'_>>) -> Result<Tensor>| {
                f(&t[0], &weight, Some(&bias), Some(LowRank { down: &t[1], up: &t[2], scale: &scale }))
            };
        check_op(&[&x, &down, &up], |t| branch(t, linear), |t| branch(t, reference::linear))?;
        check_op(
            &[&x],
            |t| linear(&t[0], &weight, None, None),
            |t| reference::linear(&t[0], &weight, None, None),
        )?;

        // The composed path other devices take.
        let frozen = Frozen { weight: weight.clone(), bias: Some(bias.clone()) };
        let branch = Branch::new(LowRank { down: &down, up: &up, scale: &scale }, DType::F32)?;
        let (y, z) = forward(&x, &frozen, Some(&branch))?;
        let flat = x.reshape(((), inputs))?;
        let (y2, z2) = forward_composed(&flat, &frozen, Some(&branch))?;
        close(&y2, &y.reshape(((), outputs))?, 1e-5)?;
        let (g, z, z2) = (random(6, y2.dims())?, z.expect("a branch"), z2.expect("a branch"));
        close(&z2, &z, 1e-5)?;
        let wanted = Wanted { x: true, branch: true };
        let a = backward(&Kept::of(&flat, wanted), &g, &frozen, Some((&branch, &z)), wanted)?;
        let b = backward_composed(Some(&flat), &g, &weight, Some((&branch, &z2)), true)?;
        for (a, b) in [(a.x, b.x), (a.down, b.down), (a.up, b.up)] {
            close(&a.expect("wanted"), &b.expect("wanted"), 2e-5)?;
        }
        Ok(())
    }

    #[test]
    fn equals_its_reference() -> Result<()> {
        check_sizes(&[2, 77], 13, 9, 3)?;
        check_sizes(&[300], 16, 31, 1)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(m in 1usize..140, inputs in 1usize..20, outputs in 1usize..20, r in 1usize..5) {
            check_sizes(&[m], inputs, outputs, r).expect("shapes agree");
        }
    }

    #[test]
    fn frozen_operands_get_no_gradient_and_a_zero_branch_changes_no_bit() -> Result<()> {
        let (x, weight, bias) = (random(0, &[5, 8])?, random(1, &[6, 8])?, random(2, &[6])?);
        let down = Var::from_tensor(&random(3, &[2, 8])?)?;
        let up = Var::from_tensor(&random(4, &[6, 2])?.zeros_like()?)?;
        let scale = random(5, &[2])?;
        let plain = linear(&x, &weight, Some(&bias), None)?;
        let y = linear(&x, &weight, Some(&bias), Some(LowRank { down: &down, up: &up, scale: &scale }))?;
        assert_eq!(plain.to_vec2::<f32>()?, y.to_vec2::<f32>()?);
        let grads = function::backward(&y.sqr()?)?;
        for frozen in [&x, &weight, &bias, &scale] {
            assert!(grads.get(frozen).is_none());
        }
        assert!(grads.get(&up).expect("up").abs()?.sum_all()?.to_scalar::<f32>()? > 0.0);
        Ok(())
    }

    #[test]
    fn a_tracked_weight_is_trained_by_the_reference() -> Result<()> {
        let (x, weight) = (random(0, &[5, 8])?, Var::from_tensor(&random(1, &[6, 8])?)?);
        let grads = function::backward(&linear(&x, &weight, None, None)?)?;
        assert!(grads.get(&weight).is_some());
        Ok(())
    }

    #[test]
    fn half_precision_activations_with_f32_branches() -> Result<()> {
        for (m, inputs, outputs) in [(5, 8, 6), (1, 1, 3), (70, 33, 150), (130, 330, 34)] {
            let (weight, scale) = (random(1, &[outputs, inputs])?, random(5, &[2])?);
            let (bias, up) = (random(2, &[outputs])?, random(4, &[outputs, 2])?);
            let down = Var::from_tensor(&random(3, &[2, inputs])?)?;
            let branch = LowRank { down: &down, up: &up, scale: &scale };
            check_half(&random(0, &[m, inputs])?, &down, |x| {
                linear(x, &weight.to_dtype(x.dtype())?, Some(&bias), Some(branch))
            })?;
        }
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_disagree() -> Result<()> {
        let (x, weight) = (random(0, &[5, 7])?, random(1, &[6, 8])?);
        assert!(linear(&x, &weight, None, None).is_err());
        let x = random(0, &[5, 8])?;
        assert!(linear(&x, &weight, Some(&random(1, &[5])?), None).is_err());
        let (down, up, scale) = (random(1, &[2, 8])?, random(1, &[6, 3])?, random(1, &[2])?);
        assert!(linear(&x, &weight, None, Some(LowRank { down: &down, up: &up, scale: &scale })).is_err());
        Ok(())
    }
}
