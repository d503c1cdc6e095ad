//! What the algorithms share: reading tensors as f32, contractions, checks.

use candle_core::{DType, Device, Tensor};
use rayon::{
    iter::{IndexedParallelIterator as _, ParallelIterator as _},
    slice::ParallelSlice as _,
};

use crate::{
    error::{Error, Result},
    ops::cpu::{CHUNK, Values},
};

/// alpha / r beyond this is a damaged file, not a choice.
const MAX_SCALE: f64 = 1e4;

/// f32 on a device, whatever it was.
pub(super) fn f32_on(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    Ok(tensor.to_device(device)?.to_dtype(DType::F32)?)
}

/// f32 where it is; f32 tensors are not copied.
pub(crate) fn f32_of_base(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(DType::F32)?)
}

/// f32 on the CPU, whatever it was.
pub(crate) fn f32_of(tensor: &Tensor) -> Result<Tensor> {
    f32_on(tensor, &Device::Cpu)
}

/// ‖W‖, see [`inner`].
pub(crate) fn frobenius(tensor: &Tensor) -> Result<f64> {
    let values = numbers(tensor)?;
    Ok(sum_of_products(&values, &values).sqrt())
}

/// ⟨a, b⟩ = Σ a ⊙ b of two tensors of one shape.
pub(crate) fn inner(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        return Err(Error::invalid(format!("shapes {:?} and {:?} differ", a.dims(), b.dims())));
    }
    Ok(sum_of_products(&numbers(a)?, &numbers(b)?))
}

/// In f64, as products of small numbers underflow; in pieces, as a model has a billion of them; the pieces in order, so
/// that the sum does not depend on who was free to do which.
fn sum_of_products(a: &[f32], b: &[f32]) -> f64 {
    const PIECE: usize = 1 << 16;
    let sum =
        |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let sums: Vec<f64> = a.par_chunks(PIECE).zip(b.par_chunks(PIECE)).map(sum).collect();
    sums.into_iter().sum()
}

/// Row by row, in f32 on the CPU.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(f32_of(tensor)?.flatten_all()?.to_vec1()?)
}

/// True without NaN and infinity.
pub(crate) fn all_finite(tensor: &Tensor) -> Result<bool> {
    if !tensor.device().is_cpu() {
        // x · 0 is 0 exactly if x is finite: one number comes back instead of all.
        let zero = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()?;
        return Ok(zero == 0.0);
    }
    let on_cpu = f32_of(tensor)?;
    // The order does not matter: a channels-last kernel is looked at as it lies.
    let in_order = match on_cpu.dims().len() {
        4 if !on_cpu.is_contiguous() => on_cpu.permute((0, 2, 3, 1))?.contiguous()?,
        _ => on_cpu.contiguous()?,
    };
    const EXPONENT: u32 = 0x7f80_0000;
    let finite =
        |chunk: &[f32]| !chunk.iter().fold(false, |bad, x| bad | (x.to_bits() & EXPONENT == EXPONENT));
    Ok(Values::of(&in_order)?.chunks(CHUNK).all(finite))
}

/// A parameter by itself: one to four dimensions, none of them 0, and but for settings (alpha, flags, indices) finite
/// floats.
pub(crate) fn check_tensor(name: &str, tensor: &Tensor, is_setting: bool) -> Result<()> {
    let dims = tensor.dims();
    if is_setting {
        return Ok(());
    }
    if !(1..=4).contains(&dims.len()) || tensor.elem_count() == 0 {
        return Err(Error::invalid(format!(
            "`{name}` has shape {dims:?}, expected one to four dimensions, none of them 0"
        )));
    }
    if !tensor.dtype().is_float() {
        return Err(Error::invalid(format!("`{name}` is stored as {:?}, expected floats", tensor.dtype())));
    }
    if !all_finite(tensor)? {
        return Err(Error::invalid(format!("`{name}` holds NaN or infinity"))
            .with_hint("the training run that wrote this file diverged; use an earlier save of it"));
    }
    Ok(())
}

/// Suffixes whose tensors are settings.
pub(super) const SETTINGS: [&str; 5] =
    [".alpha", ".on_input", ".oft_R.scaled_oft", ".bias_indices", ".bias_size"];

/// alpha at a rank.
pub(super) fn check_alpha(alpha: Option<f64>, rank: usize) -> Result<()> {
    let Some(alpha) = alpha else { return Ok(()) };
    if alpha.is_finite() && alpha >= 0.0 && alpha / rank as f64 <= MAX_SCALE {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "alpha is {alpha} at rank {rank}, expected a number from 0 to {MAX_SCALE} times the rank"
    )))
}

/// A scale that is stated as such.
pub(super) fn check_scale(scale: f64) -> Result<()> {
    if (0.0..=MAX_SCALE).contains(&scale) {
        return Ok(());
    }
    Err(Error::invalid(format!("the scale is {scale:e}, expected a number from 0 to {MAX_SCALE}")))
}

/// alpha / r, or 1 without alpha.
pub(super) fn scale(alpha: Option<f64>, rank: usize) -> f64 {
    alpha.map_or(1.0, |alpha| alpha / rank as f64)
}

/// alpha as files hold it: in the dtype of the tensors beside it, or in f32 where that would round it, or in f64 where
/// even f32 would make it infinite.
pub(super) fn stored_alpha(alpha: f64, like: &Tensor) -> Result<(&'static str, Tensor)> {
    let exact = Tensor::new(alpha, &Device::Cpu)?;
    let alike = exact.to_dtype(like.dtype())?;
    let kept = alike.to_dtype(DType::F64)?.to_scalar::<f64>()? == alpha;
    Ok((
        ".alpha",
        match kept {
            true => alike,
            false if (alpha as f32).is_finite() => exact.to_dtype(DType::F32)?,
            false => exact,
        },
    ))
}

/// A tensor that stands for the whole weight: as many rows, as many values, the same kernel.
pub(super) fn check_same_weight(suffix: &str, dims: &[usize], shape: &[usize]) -> Result<()> {
    let plain = |dims: &[usize]| -> Vec<usize> {
        match dims {
            [o, i, 1, 1] => vec![*o, *i],
            _ => dims.to_vec(),
        }
    };
    if plain(dims) == plain(shape) {
        return Ok(());
    }
    Err(super::misfit(format!("`{suffix}` has shape {dims:?}, the model's weight is {shape:?}")))
}

/// A vector with one value an output channel.
pub(super) fn check_bias(suffix: &str, dims: &[usize], shape: &[usize]) -> Result<()> {
    if dims == &shape[..1] {
        return Ok(());
    }
    Err(super::misfit(format!(
        "`{suffix}` has shape {dims:?}, expected [{}], the outputs of the model's weight {shape:?}",
        shape[0]
    )))
}

/// The first dimension, or 0 for a scalar.
pub(super) fn first_dim(tensor: &Tensor) -> usize {
    tensor.dims().first().copied().unwrap_or(0)
}

/// Two factors that must meet in one rank.
pub(super) fn same_rank((a, r): (&str, usize), (b, other): (&str, usize)) -> Result<()> {
    if r == other {
        return Ok(());
    }
    Err(Error::invalid(format!("the rank is {r} in `{a}` and {other} in `{b}`")))
}

/// down'[a, i, ·] = Σ_b mid[a, b, ·] down[b, i]: a Tucker delta is a plain one with this down factor.
pub(super) fn core_times(mid: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (r, inner, kh, kw) = mid.dims4()?;
    let down = down.flatten_from(1)?; // b i
    let mid = mid.permute((0, 2, 3, 1))?.reshape((r * kh * kw, inner))?; // a·k b
    let product = mid.contiguous()?.matmul(&down)?; // a·k i
    Ok(product.reshape((r, kh, kw, ()))?.permute((0, 3, 1, 2))?.contiguous()?)
}

/// M[o, i, ·] = Σ core[p, q, ·] a[o, p] b[q, i], all f32.
pub(super) fn tucker(core: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (_, _, kh, kw) = core.dims4()?;
    let inner = core_times(core, b)?.flatten_from(1)?; // p i·k
    let outputs = a.dim(0)?;
    Ok(a.contiguous()?.matmul(&inner)?.reshape((outputs, (), kh, kw))?)
}
