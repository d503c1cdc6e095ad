//! What the algorithms share: reading tensors as f32, contractions, checks.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// alpha / r beyond this is a damaged file, not a choice.
const MAX_SCALE: f64 = 1e4;

/// f32 on a device, whatever it was.
pub(super) fn f32_on(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    Ok(tensor.to_device(device)?.to_dtype(DType::F32)?)
}

/// f32 on the CPU, whatever it was.
pub(super) fn f32_of(tensor: &Tensor) -> Result<Tensor> {
    f32_on(tensor, &Device::Cpu)
}

/// True without NaN and infinity.
pub(crate) fn all_finite(tensor: &Tensor) -> Result<bool> {
    // One reduction instead of a copy: a sum of |x| · 0 is 0 exactly if every x is finite.
    let zero = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()?;
    Ok(zero == 0.0)
}

/// A parameter by itself: floats, finite, at most four dimensions, none of them 0.
pub(super) fn check_tensor(suffix: &str, tensor: &Tensor) -> Result<()> {
    let dims = tensor.dims();
    if dims.len() > 4 || tensor.elem_count() == 0 {
        return Err(Error::invalid(format!(
            "`{suffix}` has shape {dims:?}, expected at most four dimensions, none of them 0"
        )));
    }
    if suffix == ".alpha" {
        return Ok(()); // Any dtype; its value is checked as a scale.
    }
    if !tensor.dtype().is_float() {
        return Err(Error::invalid(format!("`{suffix}` is stored as {:?}, expected floats", tensor.dtype())));
    }
    if !all_finite(tensor)? {
        return Err(Error::invalid(format!("`{suffix}` holds NaN or infinity"))
            .with_hint("the training run that wrote this file diverged; use an earlier save of it"));
    }
    Ok(())
}

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

/// alpha / r, or 1 without alpha.
pub(super) fn scale(alpha: Option<f64>, rank: usize) -> f64 {
    alpha.map_or(1.0, |alpha| alpha / rank as f64)
}

/// alpha as files hold it: in the dtype of the tensors beside it.
pub(super) fn stored_alpha(alpha: f64, like: &Tensor) -> Result<(&'static str, Tensor)> {
    Ok((".alpha", Tensor::new(alpha, &Device::Cpu)?.to_dtype(like.dtype())?))
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
    Err(Error::invalid(format!("`{suffix}` has shape {dims:?}, the model's weight is {shape:?}")))
}

/// A vector with one value an output channel.
pub(super) fn check_bias(suffix: &str, dims: &[usize], shape: &[usize]) -> Result<()> {
    if dims == &shape[..1] {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "`{suffix}` has shape {dims:?}, expected [{}], the outputs of the model's weight {shape:?}",
        shape[0]
    )))
}
