//! Fused blending: base + blend as plain weights, with no cost per step.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{
    Blend, Parts,
    delta::{self, Delta},
    parts::{self, Fused},
};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
};

/// Computes every layer's weight and bias from the pristine base and the blend, in f32, rounding once to the base's
/// dtype. Fusing again replaces what was fused before; nothing accumulates.
///
/// Adapters act in the blend's order, each on what the one before left. That matters only for algorithms that multiply
/// the weight (DoRA, OFT, IA³, `GLoRA`); the rest adds up.
///
/// # Errors
/// If a weight changes over the steps or with the place, a delta does not fit its layer, or the sum leaves the range of
/// the base's dtype. The model is its base then.
pub fn fuse(blend: &Blend, model: &mut Parts<'_>) -> Result<()> {
    blend.check_fixed()?;
    let mut jobs = Vec::new();
    model.visit(&mut |path, slot| {
        if blend.on(path).next().is_some() {
            jobs.push((path.clone(), parts::weight(&slot).clone(), parts::bias(&slot).cloned()));
        }
        // What was fused before goes first: two sets of weights may not fit into memory.
        parts::set_fused(slot, Fused::default())
    })?;
    let fused_layer = |(path, weight, bias): &(LayerPath, Tensor, Option<Tensor>)| {
        let fused = Fused {
            weight: fused_weight(blend, path, weight)?,
            bias: fused_bias(blend, path, bias.as_ref(), weight)?,
        };
        Ok((path.clone(), fused))
    };
    let mut fused: BTreeMap<LayerPath, Fused> = if jobs.iter().all(|(_, weight, _)| weight.device().is_cpu())
    {
        jobs.par_iter().map(fused_layer).collect::<Result<_>>()?
    } else {
        jobs.iter().map(fused_layer).collect::<Result<_>>()?
    };
    model.visit(&mut |path, slot| match fused.remove(path) {
        Some(layer) => parts::set_fused(slot, layer).map_err(|e| e.context(path.to_string())),
        None => Ok(()),
    })
}

/// Back to the base weights, bit for bit.
///
/// # Errors
/// Never; the signature is that of visiting.
pub fn unfuse(model: &mut Parts<'_>) -> Result<()> {
    fuse(&Blend::new(), model)
}

/// A layer's weight with the blend on it, in the base's dtype, or `None` where the blend changes nothing.
///
/// # Errors
/// If a delta does not fit `base` or the sum leaves the range of its dtype.
pub fn fused_weight(blend: &Blend, path: &LayerPath, base: &Tensor) -> Result<Option<Tensor>> {
    let steps = blend.on(path).map(|(_, entry)| Step {
        name: &entry.name,
        delta: &entry.adapter.layers[path],
        strength: entry.strength.at(path),
    });
    weight_after(steps, path, base)
}

/// A layer's bias with the blend on it, or `None` where the blend changes nothing. A layer without one may get one.
///
/// # Errors
/// As [`fused_weight`]. `weight` says dtype and device.
pub fn fused_bias(
    blend: &Blend,
    path: &LayerPath,
    base: Option<&Tensor>,
    weight: &Tensor,
) -> Result<Option<Tensor>> {
    let steps = blend.on(path).map(|(_, entry)| Step {
        name: &entry.name,
        delta: &entry.adapter.layers[path],
        strength: entry.strength.at(path),
    });
    bias_after(steps, path, base, weight)
}

/// One adapter's turn on a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    /// The adapter, for messages.
    pub name: &'a str,
    pub delta: &'a Delta,
    pub strength: f64,
}

impl Step<'_> {
    fn failed(&self, path: &LayerPath, e: Error) -> Error {
        e.context(format!("adapter `{}`, {path}", self.name))
    }
}

/// The weight after all steps: neighbours of low rank in one product, everything else one after another.
///
/// # Errors
/// As [`fused_weight`].
pub(crate) fn weight_after<'a>(
    steps: impl Iterator<Item = Step<'a>>,
    path: &LayerPath,
    base: &Tensor,
) -> Result<Option<Tensor>> {
    let mut names = Vec::new();
    let (mut weight, mut pending) = (None, Vec::new());
    for step in steps.filter(|step| step.strength != 0.0 && step.delta.changes_weight()) {
        names.push(step.name);
        let branch = step.delta.branch_on(base.dims(), base.device()).map_err(|e| step.failed(path, e))?;
        if let Some(mut branch) = branch {
            branch.scale *= step.strength;
            pending.push(branch);
            continue;
        }
        let before = delta::add_branches(&delta::f32_of_base(weight.as_ref().unwrap_or(base))?, &pending)?;
        pending.clear();
        weight = Some(step.delta.apply(&before, step.strength).map_err(|e| step.failed(path, e))?);
    }
    if names.is_empty() {
        return Ok(None);
    }
    let weight = delta::add_branches(&delta::f32_of_base(weight.as_ref().unwrap_or(base))?, &pending)?;
    rounded(&weight, base, &names, path).map(Some)
}

/// The bias after all steps.
///
/// # Errors
/// As [`fused_weight`].
pub(crate) fn bias_after<'a>(
    steps: impl Iterator<Item = Step<'a>>,
    path: &LayerPath,
    base: Option<&Tensor>,
    weight: &Tensor,
) -> Result<Option<Tensor>> {
    let mut names = Vec::new();
    let mut bias: Option<Tensor> = None;
    for step in steps {
        let after = step.delta.apply_bias(bias.as_ref().or(base), step.strength);
        if let Some(after) = after.map_err(|e| step.failed(path, e))? {
            names.push(step.name);
            bias = Some(after.to_device(weight.device())?);
        }
    }
    bias.map(|bias| rounded(&bias, base.unwrap_or(weight), &names, path)).transpose()
}

/// Rounds once, to the dtype of `like`.
fn rounded(sum: &Tensor, like: &Tensor, names: &[&str], path: &LayerPath) -> Result<Tensor> {
    let rounded = sum.to_dtype(like.dtype())?;
    if delta::all_finite(&rounded)? {
        return Ok(rounded);
    }
    let names = names.join(" + ");
    Err(Error::invalid(format!("fusing {names} overflows {:?} in {path}", like.dtype())).with_hint(
        match like.dtype() {
            DType::F32 | DType::F64 => "lower the adapters' weights",
            _ => "lower the adapters' weights, or use `--dtype f32`",
        },
    ))
}
