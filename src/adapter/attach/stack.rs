//! The factors of several adapters on one layer, stacked.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    adapter::{
        Delta, Strength,
        delta::{Branch, f32_of},
        regions::Regions,
        strength::Masks,
    },
    error::{Error, Result},
    nn::{Branches, LayerPath},
};

/// The branches of one layer.
#[derive(Debug)]
pub(super) struct Stack {
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

impl Stack {
    pub fn build(branches: Vec<(usize, Branch)>, weight: &Tensor) -> Result<Self> {
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

    /// The branches at other strengths, if that changes anything. The inner option removes.
    pub fn change(
        &mut self,
        path: &LayerPath,
        strengths: &[Strength],
        regions: Option<&Regions>,
    ) -> Result<Option<Option<Branches>>> {
        let wanted = self.rows.iter().map(|rows| strengths[rows.entry].at(path));
        let places = self.rows.iter().map(|rows| strengths[rows.entry].masks(path));
        let same = |(a, b): (Option<&Arc<Masks>>, &Option<Arc<Masks>>)| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if wanted.clone().eq(self.current.iter().copied()) && places.clone().zip(&self.places).all(same) {
            return Ok(None);
        }
        let (current, places) = (wanted.collect(), places.map(Option::<&_>::cloned).collect());
        (self.current, self.places) = (current, places);
        self.branches(regions).map(Some)
    }

    /// What is on the model is not known any more.
    pub fn forget(&mut self) {
        self.current.fill(f64::NAN);
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
pub(super) fn regional_branch(delta: &Delta, weight: &Tensor, carries_branches: bool) -> Result<Branch> {
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
    let base = f32_of(weight)?;
    let down = (delta.apply(&base, 1.0)? - &base)?;
    let up = Tensor::eye(base.dim(0)?, DType::F32, &Device::Cpu)?;
    Ok(Branch { down, up, scale: 1.0 })
}
