//! What the CPU kernels share: tensors as slices, [`simd!`], matrix products, vectorisable functions.
//!
//! Kernels compute in f32; other dtypes are widened on the way in and narrowed on the way out.

pub(crate) mod math;
mod product;
mod simd;

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Shape, Storage, StorageRef, Tensor};

pub(crate) use product::{
    LANES, Mat, MatMut, Packed, Panels, Shared, Threads, gemm, gemm_packed, gemm_with, pack_columns, pack_rows,
};
pub(crate) use simd::{Level, level, prefetch, simd};

use crate::error::{Error, Result};

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

/// The tensor as the kernels take it: f32 and contiguous. A tensor that is so already is not copied.
pub(crate) fn widen(t: &Tensor) -> Result<Tensor> {
    Ok(t.to_dtype(DType::F32)?.contiguous()?)
}

/// A kernel's result as a tensor of `dtype`; f32 values are moved.
pub(crate) fn narrow(values: Vec<f32>, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?.to_dtype(dtype)?)
}

/// The values of a contiguous f32 CPU tensor.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Values<'a> {
    /// # Errors
    /// If the tensor is not contiguous, not f32, or not on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let refuse = |what: &str| Err(Error::invalid(format!("a CPU kernel expects {what}")));
        let Some((start, end)) = layout.contiguous_offsets() else {
            return refuse("a contiguous tensor");
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) if end <= values.len() => {
                Ok(Self { storage, range: start..end })
            }
            Storage::Cpu(_) => refuse("f32 values"),
            _ => refuse("a tensor in main memory"),
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // `of` admits nothing else.
            _ => &[],
        }
    }
}
