//! Live blending: the adapters' factors are stacked into branches once; a slider then rewrites one small vector a layer.
//!
//! What is no branch (`LoHa`, `DoRA`, OFT, …, and everything on normalisations, embeddings and biases) is computed into
//! the layer's fused slot instead, anew only where its strength changed.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{
    Blend, Delta, Parts, Strength,
    delta::Branch,
    fuse::{self, Step},
    parts::{self, Fused},
    regions::Regions,
    strength::Masks,
};
use crate::{
    error::{Error, Result},
    nn::{Branches, LayerPath},
};

/// A blend on a model, kept so that strengths can change without reading anything again.
#[derive(Debug)]
pub struct Live {
    blend: Blend,
    /// By the order of visiting, which is fixed; `None` where the blend has no delta.
    layers: Vec<Option<Layer>>,
}

/// The blend on one layer.
#[derive(Debug)]
struct Layer {
    path: LayerPath,
    weight: Tensor,
    bias: Option<Tensor>,
    stack: Option<Stack>,
    weight_slot: Computed,
    bias_slot: Computed,
}

/// The branches of one layer.
#[derive(Debug)]
struct Stack {
    down: Tensor,
    up: Tensor,
    rows: Vec<Rows>,
    /// The strengths the branches on the model have; all 0 means none.
    current: Vec<f64>,
    /// Where they act; `None` is everywhere.
    places: Vec<Option<Arc<Masks>>>,
}

/// The rows of a stack that belong to one entry of the blend.
#[derive(Debug)]
struct Rows {
    entry: usize,
    rank: usize,
    scale: f64,
}

/// A slot that is computed from entries of the blend, in order.
#[derive(Debug)]
struct Computed {
    entries: Vec<usize>,
    /// The strengths it was computed with.
    current: Vec<f64>,
    value: Option<Tensor>,
}

/// What changes on a layer. The inner options remove.
#[derive(Debug, Default)]
struct Update {
    branches: Option<Option<Branches>>,
    fused: Option<Fused>,
}

impl Live {
    /// Stacks a blend's factors in the model's dtype and on its device, and attaches them with the blend's strengths.
    /// Whatever was attached or fused before is gone.
    ///
    /// # Errors
    /// If a delta does not fit its layer.
    pub fn attach(blend: &Blend, model: &mut Parts<'_>) -> Result<Self> {
        detach(model)?;
        let mut layers = Vec::new();
        model.visit(&mut |path, slot| {
            let layer = if blend.on(path).next().is_some() {
                let weight = parts::weight(&slot).clone();
                let bias = parts::bias(&slot).cloned();
                Some(Layer::build(blend, path, (weight, bias), parts::carries_branches(&slot))?)
            } else {
                None
            };
            layers.push(layer);
            Ok(())
        })?;
        let mut live = Self { blend: blend.clone(), layers };
        live.set_strengths(model, &blend.strengths())?;
        Ok(live)
    }

    /// Changes the strengths. Layers on which all are 0 are their base, bit for bit.
    ///
    /// # Errors
    /// If the number of strengths is not the number of adapters, or a weight overflows its dtype.
    pub fn set_strengths(&mut self, model: &mut Parts<'_>, strengths: &[Strength]) -> Result<()> {
        if strengths.len() != self.blend.entries.len() {
            return Err(Error::invalid(format!(
                "expected {} strengths, one an adapter, found {}",
                self.blend.entries.len(),
                strengths.len()
            )));
        }
        let mut updates = self.updates(strengths).inspect_err(|_| self.forget())?;
        if updates.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut next = self.layers.iter().zip(updates.iter_mut());
        let visited = model.visit(&mut |path, mut slot| {
            let Some((Some(layer), update)) = next.next() else { return Ok(()) };
            let Some(Update { branches, fused }) = update.take() else { return Ok(()) };
            if layer.path != *path {
                let expected = &layer.path;
                return Err(Error::invalid(format!(
                    "the blend was attached to another model: {path} is at the place of {expected}"
                )));
            }
            if let Some(fused) = fused {
                parts::set_fused(slot.reborrow(), fused).map_err(|e| e.context(path.to_string()))?;
            }
            if let Some(branches) = branches {
                parts::set_branches(slot, branches);
            }
            Ok(())
        });
        visited.inspect_err(|_| self.forget())
    }

    /// After a failure, or when somebody else has cleared the model, nothing on it is known to be as wanted.
    pub(crate) fn forget(&mut self) {
        for layer in self.layers.iter_mut().flatten() {
            let stack = layer.stack.iter_mut().map(|stack| &mut stack.current);
            for current in stack.chain([&mut layer.weight_slot.current, &mut layer.bias_slot.current]) {
                current.fill(f64::NAN);
            }
        }
    }

    /// What changes, by the order of visiting.
    fn updates(&mut self, strengths: &[Strength]) -> Result<Vec<Option<Update>>> {
        let Self { blend, layers } = self;
        let regions = Regions::of(strengths);
        let mut updates: Vec<Option<Update>> = Vec::with_capacity(layers.len());
        for layer in layers.iter_mut() {
            let branches = match layer {
                Some(layer) => {
                    layer.check_places(strengths)?;
                    layer.branches(strengths, regions.as_ref())?
                }
                None => None,
            };
            updates.push(branches.map(|branches| Update { branches: Some(branches), fused: None }));
        }
        let stale: Vec<(usize, &mut Layer)> = layers
            .iter_mut()
            .enumerate()
            .filter_map(|(at, layer)| Some((at, layer.as_mut()?)))
            .filter(|(_, layer)| layer.is_stale(strengths))
            .collect();
        let on_cpu = stale.iter().all(|(_, layer)| layer.weight.device().is_cpu());
        let compute = |(at, layer): (usize, &mut Layer)| Ok((at, layer.fused(blend, strengths)?));
        let computed: Vec<(usize, Fused)> = if on_cpu {
            stale.into_par_iter().map(compute).collect::<Result<_>>()?
        } else {
            stale.into_iter().map(compute).collect::<Result<_>>()?
        };
        for (at, fused) in computed {
            updates[at].get_or_insert_default().fused = Some(fused);
        }
        Ok(updates)
    }
}

/// Removes all branches and everything fused: the base model again.
///
/// # Errors
/// Never; the signature is that of visiting.
pub fn detach(model: &mut Parts<'_>) -> Result<()> {
    model.visit(&mut |_, mut slot| {
        parts::set_fused(slot.reborrow(), Fused::default())?;
        parts::set_branches(slot, None);
        Ok(())
    })
}

impl Layer {
    fn build(
        blend: &Blend,
        path: &LayerPath,
        (weight, bias): (Tensor, Option<Tensor>),
        carries_branches: bool,
    ) -> Result<Self> {
        let entries: Vec<(usize, &Delta)> =
            blend.on(path).map(|(at, entry)| (at, &entry.adapter.layers[path])).collect();
        let (regional, entries): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(at, _)| blend.entries[*at].strength.differs_on(path));
        let (mut stacked, mut computed) = (Vec::new(), Vec::new());
        for (entry, delta) in regional {
            let branch = regional_branch(delta, &weight, carries_branches);
            let name = &blend.entries[entry].name;
            stacked.push((entry, branch.map_err(|e| e.context(format!("adapter `{name}`, {path}")))?));
        }
        // A delta that depends on the weight sees all before it, so those go into the slot with it.
        let bound = entries.iter().rposition(|(_, delta)| !delta.is_additive()).map_or(0, |at| at + 1);
        for (turn, (entry, delta)) in entries.iter().enumerate().filter(|(_, (_, d))| d.changes_weight()) {
            let fails = |e: Error| e.context(format!("adapter `{}`, {path}", blend.entries[*entry].name));
            let branch = if carries_branches && turn >= bound {
                delta.branch(weight.dims()).map_err(fails)?
            } else {
                None
            };
            match branch {
                Some(branch) => stacked.push((*entry, branch)),
                None => computed.push(*entry),
            }
        }
        let stack = if stacked.is_empty() { None } else { Some(Stack::build(stacked, &weight)?) };
        let bias_entries = entries.iter().filter(|(_, d)| d.changes_bias()).map(|(entry, _)| *entry);
        Ok(Self {
            path: path.clone(),
            stack,
            weight_slot: Computed::new(computed),
            bias_slot: Computed::new(bias_entries.collect()),
            weight,
            bias,
        })
    }

    /// What was computed into a slot when it acted everywhere cannot be limited to a part of the picture later.
    fn check_places(&self, strengths: &[Strength]) -> Result<()> {
        let mut entries = self.weight_slot.entries.iter().chain(&self.bias_slot.entries);
        if entries.any(|entry| strengths[*entry].differs_on(&self.path)) {
            return Err(Error::invalid("an adapter that acted everywhere was given a region")
                .with_hint("attach the blend anew"));
        }
        Ok(())
    }

    /// The branches, if they change.
    fn branches(
        &mut self,
        strengths: &[Strength],
        regions: Option<&Regions>,
    ) -> Result<Option<Option<Branches>>> {
        let Some(stack) = &mut self.stack else { return Ok(None) };
        let wanted = stack.rows.iter().map(|rows| strengths[rows.entry].at(&self.path));
        let places = stack.rows.iter().map(|rows| strengths[rows.entry].masks(&self.path));
        let same = |(a, b): (Option<&Arc<Masks>>, &Option<Arc<Masks>>)| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if wanted.clone().eq(stack.current.iter().copied()) && places.clone().zip(&stack.places).all(same) {
            return Ok(None);
        }
        let (current, places) = (wanted.collect(), places.map(Option::<&_>::cloned).collect());
        (stack.current, stack.places) = (current, places);
        stack.branches(regions).map(Some)
    }

    fn is_stale(&self, strengths: &[Strength]) -> bool {
        self.weight_slot.is_stale(strengths, &self.path) || self.bias_slot.is_stale(strengths, &self.path)
    }

    /// Both slots, computing what is stale.
    fn fused(&mut self, blend: &Blend, strengths: &[Strength]) -> Result<Fused> {
        let Self { path, weight, bias, weight_slot, bias_slot, .. } = self;
        let step = |entry: &usize| {
            let item = &blend.entries[*entry];
            Step {
                name: &item.name,
                delta: &item.adapter.layers[&*path],
                strength: strengths[*entry].at(path),
            }
        };
        if weight_slot.is_stale(strengths, path) {
            weight_slot.value = fuse::weight_after(weight_slot.entries.iter().map(step), path, weight)?;
            weight_slot.keep(strengths, path);
        }
        if bias_slot.is_stale(strengths, path) {
            bias_slot.value =
                fuse::bias_after(bias_slot.entries.iter().map(step), path, bias.as_ref(), weight)?;
            bias_slot.keep(strengths, path);
        }
        Ok(Fused { weight: weight_slot.value.clone(), bias: bias_slot.value.clone() })
    }
}

impl Computed {
    fn new(entries: Vec<usize>) -> Self {
        Self { current: vec![0.0; entries.len()], entries, value: None }
    }

    fn wanted(&self, strengths: &[Strength], path: &LayerPath) -> impl Iterator<Item = f64> {
        self.entries.iter().map(|entry| strengths[*entry].at(path))
    }

    fn is_stale(&self, strengths: &[Strength], path: &LayerPath) -> bool {
        !self.wanted(strengths, path).eq(self.current.iter().copied())
    }

    fn keep(&mut self, strengths: &[Strength], path: &LayerPath) {
        self.current = self.wanted(strengths, path).collect();
    }
}

impl Stack {
    fn build(branches: Vec<(usize, Branch)>, weight: &Tensor) -> Result<Self> {
        let (mut downs, mut ups, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (entry, Branch { down, up, scale }) in branches {
            rows.push(Rows { entry, rank: down.dims()[0], scale });
            downs.push(down);
            ups.push(up);
        }
        let place = |t: Tensor, dtype: DType, device: &Device| -> Result<Tensor> {
            Ok(t.to_dtype(dtype)?.to_device(device)?)
        };
        Ok(Self {
            down: place(Tensor::cat(&downs, 0)?, weight.dtype(), weight.device())?,
            up: place(Tensor::cat(&ups, 1)?.contiguous()?, weight.dtype(), weight.device())?,
            current: vec![0.0; rows.len()],
            places: vec![None; rows.len()],
            rows,
        })
    }

    fn branches(&self, regions: Option<&Regions>) -> Result<Option<Branches>> {
        if self.current.iter().all(|strength| *strength == 0.0) {
            return Ok(None);
        }
        let scale: Vec<f32> = self
            .rows
            .iter()
            .zip(&self.current)
            .flat_map(|(rows, strength)| std::iter::repeat_n((strength * rows.scale) as f32, rows.rank))
            .collect();
        let places = self.rows.iter().zip(&self.places);
        let places = places.flat_map(|(rows, place)| std::iter::repeat_n(place.as_ref(), rows.rank));
        let regional = match regions {
            Some(regions) => regions.on(places.zip(scale.iter().copied()), self.up.device())?,
            None => None,
        };
        let scale = Tensor::new(scale, self.up.device())?.to_dtype(self.up.dtype())?;
        Ok(Some(Branches { down: self.down.clone(), up: self.up.clone(), scale, regional }))
    }
}

/// A delta of any algorithm as a branch, for an adapter that acts in a part of the picture: layers multiply branches by
/// masks. What has no low rank is its whole ΔW with the identity behind it.
fn regional_branch(delta: &Delta, weight: &Tensor, carries_branches: bool) -> Result<Branch> {
    if !carries_branches || delta.changes_bias() {
        let what = if carries_branches { "a bias" } else { "a normalisation" };
        return Err(Error::invalid(format!(
            "changes {what}, which cannot be limited to a part of the picture"
        ))
        .with_hint("give this adapter a weight without region"));
    }
    if let Some(branch) = delta.branch(weight.dims())? {
        return Ok(branch);
    }
    let base = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let down = (delta.apply(&base, 1.0)? - &base)?;
    let up = Tensor::eye(base.dim(0)?, DType::F32, &Device::Cpu)?;
    Ok(Branch { down, up, scale: 1.0 })
}
