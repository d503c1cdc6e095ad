//! What the CPU kernels share: tensors as slices, [`simd!`], matrix products, vectorisable functions.
//!
//! Kernels compute in f32. Activations of other dtypes are widened on the way in and narrowed on the way out, weights where
//! they are used; products of bf16 by bf16 take both as they are where the processor multiplies them.

mod dot;
mod floats;
mod mat;
pub(crate) mod math;
mod numbers;
mod pairs;
mod panels;
mod product;
mod simd;
mod tasks;
mod tiles;
mod vector;

pub(crate) use dot::{dot, gemm_pairs};
pub(crate) use mat::{Mat, MatMut, Shared};
pub(crate) use numbers::{Numbers, Stored, Values, factor, narrow, widen};
pub(crate) use pairs::Pair;
pub(crate) use panels::{LANES, Lane, Packed, Panels, PanelsOf, pack_columns};
pub(crate) use product::{gemm, gemm_packed, gemm_with};
pub(crate) use simd::{Level, level, prefetch, simd};
pub(crate) use tasks::Threads;

/// How many values one parallel task of an elementwise kernel handles: a share of the L2 cache.
pub(crate) const CHUNK: usize = 1 << 14;

/// How many parallel tasks of `cost` each (values of an elementwise kernel) belong together: waking a thread takes longer
/// than a small task.
pub(crate) fn together(cost: usize) -> usize {
    const WORTH_A_THREAD: usize = 1 << 15;
    WORTH_A_THREAD.div_ceil(cost.max(1))
}

/// The same for a product of `multiplications`.
pub(crate) fn products_together(multiplications: usize) -> usize {
    together(multiplications / 32)
}
