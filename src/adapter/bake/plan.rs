//! Which tensors the result has, and what each is made of.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};

use super::record::is_v;
use crate::{
    adapter::{Blend, delta, fuse},
    error::{Error, Result},
    nn::{LayerPath, Part},
    weights::{
        Checkpoint, Component, Family, Store,
        export::{Join, LdmKey, ldm_keys},
        ldm::SingleFile,
        view::Transform,
    },
};

/// Copies of weights that trainers keep; baking would leave them behind, so they are not written.
const AVERAGED: &str = "model_ema.";

/// A tensor of the result.
pub(super) struct Output {
    pub component: Option<Component>,
    pub key: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    made_of: Source,
}

enum Source {
    /// A stored tensor, of which pieces are parameters of layers.
    Stored { store: Arc<dyn Store>, key: String, pieces: Vec<(Parameter, Transform)> },
    /// Parameters under diffusers' names, joined.
    Named { store: Arc<dyn Store>, names: Vec<(String, Option<Parameter>)>, join: Join },
    /// A marker without a value.
    Mark,
}

/// A layer's weight or bias.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Parameter {
    layer: LayerPath,
    bias: bool,
}

impl Parameter {
    fn of(component: Component, name: &str) -> Option<Self> {
        let part = match component {
            Component::Unet => Part::Unet,
            Component::TextEncoder => Part::TextEncoder,
            Component::TextEncoder2 => Part::TextEncoder2,
            Component::Vae => return None,
        };
        let (name, bias) = match name.strip_suffix(".weight") {
            Some(layer) => (layer, false),
            None => (name.strip_suffix(".bias")?, true),
        };
        Some(Self { layer: LayerPath { part, name: name.into() }, bias })
    }
}

/// A single file's own tensors under their own keys.
pub(super) fn stored(base: &Checkpoint, file: &SingleFile) -> Result<Vec<Output>> {
    let mut pieces: HashMap<String, Vec<(Parameter, Transform)>> = HashMap::new();
    for component in base.family.components() {
        // A file may lack a component; layers that are missing then are named later.
        let Ok(view) = file.component(*component) else { continue };
        for name in view.names() {
            if let (Some((key, transform)), Some(parameter)) =
                (view.source(&name), Parameter::of(*component, &name))
            {
                pieces.entry(key.to_owned()).or_default().push((parameter, transform));
            }
        }
    }
    let store = file.store();
    let keys = store.names().into_iter().filter(|key| !key.starts_with(AVERAGED));
    keys.map(|key| {
        let info = store.info(&key).ok_or_else(|| Error::invalid(format!("tensor `{key}` is missing")))?;
        let pieces = pieces.remove(&key).unwrap_or_default();
        Ok(Output {
            component: None,
            shape: info.shape.dims().to_vec(),
            dtype: info.dtype,
            made_of: Source::Stored { store: store.clone(), key: key.clone(), pieces },
            key,
        })
    })
    .collect()
}

/// A diffusers model's tensors under LDM's keys.
pub(super) fn renamed(base: &Checkpoint) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for component in base.family.components() {
        let store = base.component(*component)?.store;
        for LdmKey { key, names, join } in ldm_keys(base.family, *component, &store.names())? {
            outputs.push(joined(*component, &store, key, names, join)?);
        }
    }
    let hint = base.prediction();
    let (v, zero_snr) = (is_v(&hint), hint.zero_terminal_snr == Some(true));
    for (mark, set) in [("v_pred", v), ("ztsnr", v && zero_snr)] {
        if base.family == Family::Sdxl && set {
            let (key, shape) = (mark.to_string(), Vec::new());
            outputs.push(Output { component: None, key, shape, dtype: DType::F32, made_of: Source::Mark });
        }
    }
    Ok(outputs)
}

/// A diffusers model's tensors under its own names.
pub(super) fn same_names(base: &Checkpoint, component: Component) -> Result<Vec<Output>> {
    let store = base.component(component)?.store;
    store
        .names()
        .into_iter()
        .map(|name| joined(component, &store, name.clone(), vec![name], Join::Rows))
        .collect()
}

fn joined(
    component: Component,
    store: &Arc<dyn Store>,
    key: String,
    names: Vec<String>,
    join: Join,
) -> Result<Output> {
    let info = |name: &String| {
        store
            .info(name)
            .ok_or_else(|| Error::invalid(format!("{}: tensor `{name}` is missing", store.origin())))
    };
    let first = info(&names[0])?;
    let mut shape = first.shape.dims().to_vec();
    match join {
        Join::Rows if names.len() > 1 => {
            shape[0] = names.iter().map(|n| Ok(info(n)?.shape.dims()[0])).sum::<Result<usize>>()?;
        }
        Join::Rows => {}
        Join::Transpose => shape.reverse(),
        Join::Convolution => shape.extend([1, 1]),
    }
    let names = names.into_iter().map(|name| {
        let parameter = Parameter::of(component, &name);
        (name, parameter)
    });
    let made_of = Source::Named { store: store.clone(), names: names.collect(), join };
    Ok(Output { component: Some(component), key, shape, dtype: first.dtype, made_of })
}

/// Refuses before hours of work what would be dropped silently.
pub(super) fn check_layers(blend: &Blend, outputs: &[Output]) -> Result<()> {
    let mut there = BTreeSet::new();
    for output in outputs {
        match &output.made_of {
            Source::Stored { pieces, .. } => there.extend(pieces.iter().map(|(parameter, _)| parameter)),
            Source::Named { names, .. } => {
                there.extend(names.iter().filter_map(|(_, parameter)| parameter.as_ref()));
            }
            Source::Mark => {}
        }
    }
    for entry in &blend.entries {
        for (layer, delta) in entry.adapter.layers.iter().filter(|(l, _)| entry.strength.at(l) != 0.0) {
            let needs = |bias: bool| there.contains(&Parameter { layer: layer.clone(), bias });
            let adds_bias = delta.bias()?.is_some();
            let lacking = if delta.changes_weight() && !needs(false) {
                "layer"
            } else if adds_bias && !needs(true) {
                "bias"
            } else {
                continue;
            };
            return Err(Error::invalid(format!(
                "adapter `{}` changes {layer}, and the model has no such {lacking}",
                entry.name
            ))
            .with_hint("is this a pruned model?"));
        }
    }
    Ok(())
}

impl Output {
    /// Computes it.
    pub fn make(&self, blend: &Blend) -> Result<Tensor> {
        let tensor = match &self.made_of {
            Source::Mark => Tensor::zeros((), self.dtype, &Device::Cpu)?,
            Source::Stored { store, key, pieces } => {
                let mut whole = store.load(key)?;
                for (parameter, transform) in pieces {
                    if let Some(baked) = baked(blend, parameter, &transform.apply(&whole)?)? {
                        whole = transform.put_back(&whole.to_dtype(DType::F32)?, &baked)?;
                    }
                }
                whole
            }
            Source::Named { store, names, join } => {
                let mut parts = Vec::new();
                for (name, parameter) in names {
                    let base = store.load(name)?;
                    let baked = match parameter {
                        Some(parameter) => baked(blend, parameter, &base)?,
                        None => None,
                    };
                    parts.push(baked.unwrap_or(base));
                }
                match (join, parts.as_slice()) {
                    (Join::Transpose, [one]) => one.t()?.contiguous()?,
                    (_, [one]) => one.reshape(self.shape.as_slice())?,
                    (_, parts) => {
                        // Only some of them may have been changed, to f32.
                        let parts = parts
                            .iter()
                            .map(|p| p.to_dtype(DType::F32))
                            .collect::<candle_core::Result<Vec<_>>>()?;
                        Tensor::cat(&parts, 0)?
                    }
                }
            }
        };
        rounded(&tensor, self.dtype)
    }
}

/// The parameter with the blend on it, in f32; `None` where the blend leaves it alone.
fn baked(blend: &Blend, parameter: &Parameter, base: &Tensor) -> Result<Option<Tensor>> {
    if blend.on(&parameter.layer).next().is_none() {
        return Ok(None);
    }
    let base = base.to_dtype(DType::F32)?;
    if !parameter.bias {
        return fuse::fused_weight(blend, &parameter.layer, &base);
    }
    let mut bias = None;
    for (_, entry) in blend.on(&parameter.layer) {
        let delta = &entry.adapter.layers[&parameter.layer];
        let after =
            delta.apply_bias(Some(bias.as_ref().unwrap_or(&base)), entry.strength.at(&parameter.layer))?;
        bias = after.or(bias);
    }
    Ok(bias)
}

fn rounded(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    if tensor.dtype() == dtype {
        return Ok(tensor.clone());
    }
    let rounded = tensor.to_dtype(dtype)?;
    if dtype == DType::F16 && !delta::all_finite(&rounded)? {
        return Err(Error::invalid("a value leaves the range of F16")
            .with_hint("use `--dtype bf16` or `--dtype f32`"));
    }
    Ok(rounded)
}
