//! Fused blending: base + blend as plain weights, with no cost per step.

use candle_core::{DType, Tensor};

use super::{Blend, Parts, delta, parts};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
};

/// Computes every layer's weight from the pristine base and the blend, in f32, rounding once to the base's dtype.
/// Fusing again replaces what was fused before; nothing accumulates.
///
/// # Errors
/// If a delta does not fit its layer or the sum leaves the range of the base's dtype.
pub fn fuse(blend: &Blend, model: &mut Parts<'_>) -> Result<()> {
    model.visit(&mut |path, slot| {
        let fused = match parts::weight(&slot) {
            Some(base) => fused_weight(blend, path, base)?,
            None => None,
        };
        parts::set_fused(slot, fused);
        Ok(())
    })
}

/// Back to the base weights, bit for bit.
///
/// # Errors
/// Never; the signature is that of visiting.
pub fn unfuse(model: &mut Parts<'_>) -> Result<()> {
    fuse(&Blend::new(), model)
}

/// W + Σ m ΔW, or `None` where the blend changes nothing.
///
/// # Errors
/// If a delta does not fit `base` or the sum leaves the range of its dtype.
pub fn fused_weight(blend: &Blend, path: &LayerPath, base: &Tensor) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for (_, entry) in blend.on(path) {
        let weight = entry.strength.at(path);
        if weight == 0.0 {
            continue;
        }
        let delta = entry.adapter.layers[path]
            .weight(base.dims())
            .map_err(|e| e.context(format!("adapter `{}`, {path}", entry.name)))?;
        let delta = (delta * weight)?;
        sum = Some(match sum {
            None => delta,
            Some(sum) => (sum + delta)?,
        });
    }
    let Some(delta) = sum else { return Ok(None) };
    let delta = delta.to_device(base.device())?;
    let fused = (base.to_dtype(DType::F32)? + delta)?.to_dtype(base.dtype())?;
    if !delta::all_finite(&fused)? {
        let names: Vec<&str> = blend.on(path).map(|(_, e)| e.name.as_str()).collect();
        return Err(Error::invalid(format!(
            "fusing {} overflows {:?} in {path}",
            names.join(" + "),
            base.dtype()
        ))
        .with_hint("lower the adapters' weights, or use `--dtype f32`"));
    }
    Ok(Some(fused))
}
