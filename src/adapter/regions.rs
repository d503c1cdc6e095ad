//! Regional strengths as the masks layers multiply their branches by.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Tensor};

use super::{Strength, strength::Masks};
use crate::{error::Result, nn::Regional};

/// The different regions of a blend, stacked: one matrix (n, K) for each resolution. Its first column is 1: everywhere.
#[derive(Debug)]
pub(super) struct Regions {
    sources: Vec<Arc<Masks>>,
    stacked: BTreeMap<usize, Vec<f32>>,
    /// On the device they were first asked for.
    placed: std::cell::OnceCell<Arc<BTreeMap<usize, Tensor>>>,
}

impl Regions {
    /// `None` if every strength is the same all over the picture.
    pub fn of(strengths: &[Strength]) -> Option<Self> {
        let mut sources: Vec<Arc<Masks>> = Vec::new();
        for masks in strengths.iter().filter_map(|s| s.region()?.masks()) {
            if !sources.iter().any(|known| Arc::ptr_eq(known, masks)) {
                sources.push(masks.clone());
            }
        }
        let first = sources.first()?;
        let stack = |n: &usize| -> Vec<f32> {
            let place = |i: usize| {
                std::iter::once(1.0)
                    .chain(sources.iter().map(move |masks| masks.get(n).map_or(0.0, |m| m[i])))
            };
            (0..*n).flat_map(place).collect()
        };
        let stacked = first.keys().map(|n| (*n, stack(n))).collect();
        Some(Self { sources, stacked, placed: std::cell::OnceCell::new() })
    }

    /// The regional scale of a layer's ranks, each given with where it acts; `None` if all of them act everywhere.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn on<'a>(
        &self,
        ranks: impl Iterator<Item = (Option<&'a Arc<Masks>>, f32)>,
        device: &Device,
    ) -> Result<Option<Regional>> {
        let column = |masks: Option<&Arc<Masks>>| {
            let masks = masks?;
            Some(1 + self.sources.iter().position(|known| Arc::ptr_eq(known, masks))?)
        };
        let ranks: Vec<(usize, f32)> = ranks.map(|(place, s)| (column(place).unwrap_or(0), s)).collect();
        if ranks.iter().all(|(column, _)| *column == 0) {
            return Ok(None);
        }
        let (k, r) = (1 + self.sources.len(), ranks.len());
        let mut scales = vec![0f32; k * r];
        for (rank, (column, scale)) in ranks.into_iter().enumerate() {
            scales[column * r + rank] = scale;
        }
        let scales = Tensor::from_vec(scales, (k, r), device)?;
        Ok(Some(Regional { masks: self.masks(k, device)?, scales }))
    }

    fn masks(&self, k: usize, device: &Device) -> Result<Arc<BTreeMap<usize, Tensor>>> {
        if let Some(placed) = self.placed.get() {
            return Ok(placed.clone());
        }
        let tensor = |(n, values): (&usize, &Vec<f32>)| -> Result<_> {
            Ok((*n, Tensor::from_slice(values, (*n, k), device)?))
        };
        let placed = Arc::new(self.stacked.iter().map(tensor).collect::<Result<_>>()?);
        Ok(self.placed.get_or_init(|| placed).clone())
    }
}
