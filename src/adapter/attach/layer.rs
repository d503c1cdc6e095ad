//! A blend on one layer: branches where deltas are branches, computed slots where not.

use candle_core::Tensor;

use super::stack::{Stack, regional_branch};
use crate::{
    adapter::{
        Blend, Delta, Strength,
        fuse::{self, Step},
        parts::Fused,
        regions::Regions,
    },
    error::{Error, Result},
    nn::{Branches, LayerPath},
};

/// The blend on one layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub path: LayerPath,
    pub weight: Tensor,
    bias: Option<Tensor>,
    stack: Option<Stack>,
    weight_slot: Computed,
    bias_slot: Computed,
}

/// A slot that is computed from entries of the blend, in order.
#[derive(Debug)]
struct Computed {
    entries: Vec<usize>,
    /// The strengths it was computed with.
    current: Vec<f64>,
    value: Option<Tensor>,
}

impl Layer {
    pub fn build(
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
    ///
    /// # Errors
    /// If a strength got a region that the blend had not.
    pub fn branches(
        &mut self,
        strengths: &[Strength],
        regions: Option<&Regions>,
    ) -> Result<Option<Option<Branches>>> {
        self.check_places(strengths)?;
        match &mut self.stack {
            Some(stack) => stack.change(&self.path, strengths, regions),
            None => Ok(None),
        }
    }

    /// Nothing on the model is known to be as wanted.
    pub fn forget(&mut self) {
        self.stack.iter_mut().for_each(Stack::forget);
        for slot in [&mut self.weight_slot, &mut self.bias_slot] {
            slot.current.fill(f64::NAN);
        }
    }

    pub fn is_stale(&self, strengths: &[Strength]) -> bool {
        self.weight_slot.is_stale(strengths, &self.path) || self.bias_slot.is_stale(strengths, &self.path)
    }

    /// Both slots, computing what is stale.
    pub fn fused(&mut self, blend: &Blend, strengths: &[Strength]) -> Result<Fused> {
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
