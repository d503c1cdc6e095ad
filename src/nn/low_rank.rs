//! The LoRA branches a layer can carry.

use candle_core::Tensor;

use crate::ops::LowRank;

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
}

impl Branches {
    /// The view ops take.
    pub fn as_low_rank(&self) -> LowRank<'_> {
        LowRank { down: &self.down, up: &self.up, scale: &self.scale }
    }
}
