//! Live blending: the adapters' factors are stacked into branches once; a slider then rewrites one small vector a layer.
//!
//! What is no branch (`LoHa`, `DoRA`, OFT, …, and everything on normalisations, embeddings and biases) is computed into
//! the layer's fused slot instead, anew only where its strength changed.

mod layer;
mod stack;

use rayon::prelude::*;

use super::{
    Blend, Parts, Strength,
    parts::{self, Fused},
    regions::Regions,
};
use crate::{
    error::{Error, Result},
    nn::Branches,
};
use layer::Layer;

/// A blend on a model, kept so that strengths can change without reading anything again.
#[derive(Debug)]
pub struct Live {
    blend: Blend,
    /// By the order of visiting, which is fixed; `None` where the blend has no delta.
    layers: Vec<Option<Layer>>,
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
        self.layers.iter_mut().flatten().for_each(Layer::forget);
    }

    /// What changes, by the order of visiting.
    fn updates(&mut self, strengths: &[Strength]) -> Result<Vec<Option<Update>>> {
        let Self { blend, layers } = self;
        let regions = Regions::of(strengths);
        let mut updates: Vec<Option<Update>> = Vec::with_capacity(layers.len());
        for layer in layers.iter_mut() {
            let branches = match layer {
                Some(layer) => layer.branches(strengths, regions.as_ref())?,
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
