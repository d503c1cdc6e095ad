//! Rotations made from skew-symmetric blocks: what the orthogonal algorithms share.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{Stored, math};
use crate::error::{Error, Result};

/// (I + Q)(I - Q)⁻¹ of each block of Q = B - Bᵀ (the Cayley transform), f32 on the CPU.
///
/// `limit` caps the Frobenius norm of all blocks together.
///
/// # Shapes
/// - `blocks`: (…, b, b) → (…, b, b)
///
/// # Errors
/// If the blocks are not square.
pub(super) fn cayley(blocks: &Tensor, limit: Option<f64>) -> Result<Tensor> {
    let blocks = math::f32_of(blocks)?;
    let mut q = (&blocks - blocks.t()?)?;
    if let Some(limit) = limit {
        let norm = f64::from(q.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
        if norm > limit {
            q = (q * (limit / norm))?;
        }
    }
    solve_each(&q, |b, q, i_minus_q, i_plus_q| {
        for at in 0..b * b {
            let one = f64::from(u8::from(at % (b + 1) == 0));
            (i_minus_q[at], i_plus_q[at]) = (one - q[at], one + q[at]);
        }
    })
}

/// (I - Q)(I + Q)⁻¹: the other orientation, which is what PEFT computes with `use_cayley_neumann=False`.
///
/// # Errors
/// If the blocks are not square.
pub(super) fn cayley_inverse(q: &Tensor) -> Result<Tensor> {
    solve_each(q, |b, q, i_plus_q, i_minus_q| {
        for at in 0..b * b {
            let one = f64::from(u8::from(at % (b + 1) == 0));
            (i_plus_q[at], i_minus_q[at]) = (one + q[at], one - q[at]);
        }
    })
}

/// I + 2 Q + 2 Q² + … + Q^(terms-1): the Neumann series of (I + Q)(I - Q)⁻¹ as PEFT cuts it off.
///
/// # Shapes
/// - `q`: (n, b, b) → (n, b, b)
///
/// # Errors
/// If the blocks are not square.
pub(super) fn neumann(q: &Tensor, terms: usize) -> Result<Tensor> {
    let mut sum = identity_like(q)?;
    if terms < 2 {
        return Ok(sum);
    }
    sum = (sum + (q * 2.0)?)?;
    if terms < 3 {
        return Ok(sum);
    }
    let mut power = q.matmul(q)?;
    sum = (sum + (&power * 2.0)?)?;
    for _ in 3..terms.saturating_sub(1) {
        power = power.matmul(q)?;
        sum = (sum + (&power * 2.0)?)?;
    }
    Ok((sum + power.matmul(q)?)?)
}

/// I + m (R - I): the rotation at the user's strength.
///
/// # Errors
/// If the blocks are not square.
pub(super) fn at_strength(rotations: &Tensor, strength: f64) -> Result<Tensor> {
    if strength == 1.0 {
        return Ok(rotations.clone());
    }
    let identity = identity_like(rotations)?;
    Ok((&identity + ((rotations - &identity)? * strength)?)?)
}

/// 1 + m (rescale - 1), as (out, 1, …): 1 at strength 0, so that the weight goes to the base.
///
/// # Errors
/// If it is not one value an output.
pub(super) fn rescaled(weight: &Tensor, rescale: Option<&Tensor>, strength: f64) -> Result<Tensor> {
    let Some(rescale) = rescale else { return Ok(weight.clone()) };
    let mut shape = vec![1; weight.dims().len()];
    shape[0] = weight.dims()[0];
    let factor = math::f32_on(rescale, weight.device())?.affine(strength, 1.0 - strength)?;
    Ok(weight.broadcast_mul(&factor.reshape(shape)?)?)
}

/// A rescale's length.
pub(super) fn check_rescale(rescale: Option<&Tensor>, shape: &[usize]) -> Result<()> {
    match rescale {
        Some(t) if t.elem_count() != shape[0] => Err(super::misfit(format!(
            "`.rescale` has shape {:?}, expected one value for each output of the model's weight {shape:?}",
            t.dims()
        ))),
        _ => Ok(()),
    }
}

/// The parameters of blocks under a constraint, as LyCORIS stores them.
///
/// # Errors
/// If a scalar cannot be made.
pub(super) fn stored(blocks: &Tensor, constraint: Option<f64>) -> Result<[Stored; 2]> {
    // kohya's 0 lets nothing turn; LyCORIS' is no constraint, so that the blocks themselves must be 0.
    let blocks = if constraint == Some(0.0) { blocks.zeros_like()? } else { blocks.clone() };
    Ok([math::stored_alpha(constraint.unwrap_or(0.0), &blocks)?, (".oft_blocks", blocks)])
}

/// The constraint of the orthogonal algorithms.
pub(super) fn check_constraint(constraint: Option<f64>) -> Result<()> {
    match constraint {
        Some(c) if !(c.is_finite() && c >= 0.0) => {
            Err(Error::invalid(format!("alpha, the constraint, is {c}, expected 0 or more")))
        }
        _ => Ok(()),
    }
}

fn identity_like(blocks: &Tensor) -> Result<Tensor> {
    let eye = Tensor::eye(blocks.dims()[blocks.dims().len() - 1], DType::F32, blocks.device())?;
    Ok(eye.broadcast_as(blocks.shape())?.contiguous()?)
}

/// Fills A and B from each block and solves A X = B. A is I ± Q with Q skew, so it is never singular.
fn solve_each(
    blocks: &Tensor,
    fill: impl Fn(usize, &[f64], &mut [f64], &mut [f64]) + Sync,
) -> Result<Tensor> {
    let dims = blocks.dims().to_vec();
    let [.., rows, b] = dims[..] else {
        return Err(Error::invalid(format!("rotations of shape {dims:?}, expected square blocks")));
    };
    if rows != b || b == 0 {
        return Err(Error::invalid(format!("rotations of shape {dims:?}, expected square blocks")));
    }
    let mut values = math::f32_of(blocks)?.flatten_all()?.to_vec1::<f32>()?;
    values.par_chunks_mut(b * b).for_each(|block| {
        let q: Vec<f64> = block.iter().map(|x| f64::from(*x)).collect();
        let (mut a, mut x) = (vec![0.0; b * b], vec![0.0; b * b]);
        fill(b, &q, &mut a, &mut x);
        gauss_jordan(b, &mut a, &mut x);
        for (out, x) in block.iter_mut().zip(x) {
            *out = x as f32;
        }
    });
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// A⁻¹ X in place of X. The pivots need no search: the symmetric part of A is I, which elimination keeps positive.
fn gauss_jordan(n: usize, a: &mut [f64], x: &mut [f64]) {
    let (mut a_row, mut x_row) = (vec![0.0; n], vec![0.0; n]);
    for p in 0..n {
        let scale = 1.0 / a[p * n + p];
        for value in a[p * n + p..(p + 1) * n].iter_mut().chain(&mut x[p * n..(p + 1) * n]) {
            *value *= scale;
        }
        a_row.copy_from_slice(&a[p * n..(p + 1) * n]);
        x_row.copy_from_slice(&x[p * n..(p + 1) * n]);
        for row in (0..n).filter(|row| *row != p) {
            let factor = a[row * n + p];
            if factor == 0.0 {
                continue;
            }
            for (value, pivot) in a[row * n + p..(row + 1) * n].iter_mut().zip(&a_row[p..]) {
                *value -= factor * pivot;
            }
            for (value, pivot) in x[row * n..(row + 1) * n].iter_mut().zip(&x_row) {
                *value -= factor * pivot;
            }
        }
    }
}
