//! Live blending: the adapters' factors are stacked into branches once; a slider then rewrites one small vector a layer.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::{Blend, Parts, Strength, delta::Branch, parts};
use crate::{
    error::{Error, Result},
    nn::{Branches, LayerPath},
};

/// The stacked factors of a blend, kept so that strengths can change without reading anything again.
#[derive(Debug)]
pub struct Live {
    layers: BTreeMap<LayerPath, Stack>,
    entries: usize,
}

/// The branches of one layer.
#[derive(Debug)]
struct Stack {
    down: Tensor,
    up: Tensor,
    rows: Vec<Rows>,
}

/// The rows of a stack that belong to one entry of the blend.
#[derive(Debug)]
struct Rows {
    entry: usize,
    rank: usize,
    scale: f64,
}

impl Live {
    /// Stacks a blend's factors in the model's dtype and on its device, and attaches them with the blend's strengths.
    /// Layers the blend does not touch lose whatever branches they had.
    ///
    /// # Errors
    /// If a delta does not fit its layer or cannot be expressed as a branch.
    pub fn attach(blend: &Blend, model: &mut Parts<'_>) -> Result<Self> {
        let mut layers = BTreeMap::new();
        model.visit(&mut |path, slot| {
            if let Some(weight) = parts::weight(&slot)
                && let Some(stack) = Stack::build(blend, path, weight.dims())?
            {
                layers.insert(path.clone(), stack.to(weight.dtype(), weight.device())?);
            }
            Ok(())
        })?;
        let live = Self { layers, entries: blend.entries.len() };
        live.set_strengths(model, &blend.strengths())?;
        Ok(live)
    }

    /// Changes the strengths. Layers on which all are 0 lose their branches, so that the model is its base, bit for bit.
    ///
    /// # Errors
    /// If the number of strengths is not the number of adapters.
    pub fn set_strengths(&self, model: &mut Parts<'_>, strengths: &[Strength]) -> Result<()> {
        if strengths.len() != self.entries {
            return Err(Error::invalid(format!(
                "expected {} strengths, one an adapter, found {}",
                self.entries,
                strengths.len()
            )));
        }
        model.visit(&mut |path, slot| {
            let branches = match self.layers.get(path) {
                Some(stack) => stack.branches(path, strengths)?,
                None => None,
            };
            parts::set_branches(slot, branches);
            Ok(())
        })
    }
}

/// Removes all branches: the base model again.
///
/// # Errors
/// Never; the signature is that of visiting.
pub fn detach(model: &mut Parts<'_>) -> Result<()> {
    model.visit(&mut |_, slot| {
        parts::set_branches(slot, None);
        Ok(())
    })
}

impl Stack {
    fn build(blend: &Blend, path: &LayerPath, shape: &[usize]) -> Result<Option<Self>> {
        let (mut downs, mut ups, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (entry, item) in blend.on(path) {
            let delta = &item.adapter.layers[path];
            let branch =
                delta.branch(shape).map_err(|e| e.context(format!("adapter `{}`, {path}", item.name)))?;
            let Some(Branch { down, up, scale }) = branch else {
                return Err(Error::invalid(format!(
                    "adapter `{}` has {} on {path}, which cannot be blended live",
                    item.name,
                    delta.algorithm()
                ))
                .with_hint("fuse the blend instead"));
            };
            rows.push(Rows { entry, rank: down.dims()[0], scale });
            downs.push(down);
            ups.push(up);
        }
        if rows.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { down: Tensor::cat(&downs, 0)?, up: Tensor::cat(&ups, 1)?.contiguous()?, rows }))
    }

    fn to(self, dtype: DType, device: &Device) -> Result<Self> {
        let down = self.down.to_dtype(dtype)?.to_device(device)?;
        let up = self.up.to_dtype(dtype)?.to_device(device)?;
        Ok(Self { down, up, ..self })
    }

    fn branches(&self, path: &LayerPath, strengths: &[Strength]) -> Result<Option<Branches>> {
        let weight = |rows: &Rows| strengths[rows.entry].at(path) * rows.scale;
        if self.rows.iter().all(|rows| weight(rows) == 0.0) {
            return Ok(None);
        }
        let scale: Vec<f32> =
            self.rows.iter().flat_map(|rows| std::iter::repeat_n(weight(rows) as f32, rows.rank)).collect();
        let scale = Tensor::new(scale, self.up.device())?.to_dtype(self.up.dtype())?;
        Ok(Some(Branches { down: self.down.clone(), up: self.up.clone(), scale }))
    }
}
