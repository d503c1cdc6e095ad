//! The LoRA branches a layer can carry.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    ops::{self, LowRank},
};

/// The branches of all live adapters on one layer, stacked along the rank: ΔW = B diag(s) A.
///
/// N adapters cost two small matmuls, and moving a slider only rewrites the vector s.
#[derive(Debug, Clone)]
pub struct Branches {
    /// A_cat: (R, in), or (R, in, kh, kw) on a convolution.
    pub down: Tensor,
    /// B_cat: (out, R).
    pub up: Tensor,
    /// s: (R), one entry per rank: user weight · alpha / rank of the adapter the row belongs to.
    pub scale: Tensor,
    /// Takes the place of `scale` where adapters act in parts of the picture.
    pub regional: Option<Regional>,
}

/// s as a matrix over the places of the picture and the ranks: S = M · scales.
#[derive(Debug, Clone)]
pub struct Regional {
    /// M by the number of places n: how much each of K regions covers each place, (n, K) in f32.
    pub masks: Arc<BTreeMap<usize, Tensor>>,
    /// (K, R) in f32: a rank's scale in the region of its adapter, 0 in the others.
    pub scales: Tensor,
}

impl Branches {
    /// The view ops take.
    pub fn as_low_rank(&self) -> LowRank<'_> {
        LowRank { down: &self.down, up: &self.up, scale: &self.scale }
    }

    /// These, if they differ from place to place.
    pub(super) fn as_regional(&self) -> Option<(&Self, &Regional)> {
        self.regional.as_ref().map(|regional| (self, regional))
    }
}

impl Regional {
    /// B (S ⊙ z), the branches' share of a layer's output.
    ///
    /// # Shapes
    /// - `z` = A x: (b, …, R), `up`: (out, R) → (b, …, out); the dots are n places
    ///
    /// # Errors
    /// If no mask has as many places.
    pub(super) fn rise(&self, z: &Tensor, up: &Tensor) -> Result<Tensor> {
        let (b, r) = (z.dim(0)?, self.scales.dim(1)?);
        let n = z.elem_count() / (b * r);
        let mask = self.masks.get(&n).ok_or_else(|| {
            let known: Vec<String> = self.masks.keys().map(ToString::to_string).collect();
            Error::invalid(format!("no mask for {n} places, expected {}", known.join(", ")))
        })?;
        let scale = mask.matmul(&self.scales)?.to_dtype(z.dtype())?; // n R
        let weighed = z.reshape((b, n, r))?.broadcast_mul(&scale)?;
        ops::linear(&weighed.reshape(z.shape())?, up, None, None)
    }
}
