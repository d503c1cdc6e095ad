//! A table of vectors looked up by number.

use candle_core::Tensor;

use crate::{error::Result, weights::Weights};

/// A frozen lookup table.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Tensor,
    fused: Option<Tensor>,
}

impl Embedding {
    /// Loads `weight` (entries, width).
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(weights: &Weights, entries: usize, width: usize) -> Result<Self> {
        Ok(Self { weight: weights.get((entries, width), "weight")?, fused: None })
    }

    /// # Shapes
    /// - `ids`: (b, n) u32 → (b, n, d)
    ///
    /// # Errors
    /// If an id is past the end of the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, n) = ids.dims2()?;
        let weight = self.fused.as_ref().unwrap_or(&self.weight);
        Ok(weight.index_select(&ids.flatten_all()?, 0)?.reshape((b, n, weight.dim(1)?))?)
    }

    /// The pristine table (entries, width).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Uses `weight` (computed from the pristine base) in place of the base table, or goes back to the base.
    pub fn set_fused(&mut self, weight: Option<Tensor>) {
        self.fused = weight;
    }
}
