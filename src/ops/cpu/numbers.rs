//! Tensors as slices, and the dtypes they come in.

use std::{
    borrow::Cow,
    ops::{Deref, Range},
};

use candle_core::{CpuStorage, DType, Shape, Storage, StorageRef, Tensor};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::{CHUNK, dot, simd, together};
use crate::error::{Error, Result};

/// Numbers as they are stored; kernels widen them where they are used.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// A part.
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[range]),
            Self::F16(values) => Self::F16(&values[range]),
            Self::Bf16(values) => Self::Bf16(&values[range]),
        }
    }

    /// The numbers if they are bf16, else none.
    pub(super) fn bf16(self) -> &'a [bf16] {
        match self {
            Self::Bf16(values) => values,
            _ => &[],
        }
    }

    /// The same as f32: no copy if they are.
    pub fn wide(self) -> Cow<'a, [f32]> {
        if let Self::F32(values) = self {
            return Cow::Borrowed(values);
        }
        let mut wide = vec![0.0; self.len()];
        self.widen(&mut wide);
        Cow::Owned(wide)
    }

    /// Writes as many values as there are.
    pub fn widen(self, to: &mut [f32]) {
        match self {
            Self::F32(values) => to.copy_from_slice(values),
            Self::F16(values) => values.convert_to_f32_slice(to),
            Self::Bf16(values) => widen_bf16(values, to),
        }
    }
}

simd! {
    fn widen_bf16(values: &[bf16], to: &mut [f32]) {
        for (to, value) in to.iter_mut().zip(values) {
            *to = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    }

    /// Rounds to nearest, ties to even; NaN stays NaN.
    fn narrow_bf16(values: &[f32], to: &mut [bf16]) {
        for (to, value) in to.iter_mut().zip(values) {
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *to = bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded } as u16);
        }
    }
}

/// The tensor as the kernels take activations: f32 and contiguous. A tensor that is so already is not copied.
pub(crate) fn widen(t: &Tensor) -> Result<Tensor> {
    let t = t.contiguous()?;
    if !t.device().is_cpu() || !matches!(t.dtype(), DType::F16 | DType::BF16) {
        return Ok(t.to_dtype(DType::F32)?);
    }
    let mut wide = vec![0.0; t.elem_count()];
    let stored = Stored::of(&t)?;
    let numbers = stored.numbers();
    wide.par_chunks_mut(CHUNK).with_min_len(together(CHUNK)).enumerate().for_each(|(i, wide)| {
        numbers.part(i * CHUNK..i * CHUNK + wide.len()).widen(wide);
    });
    narrow(wide, t.shape(), DType::F32)
}

/// The tensor as a product with `other` takes it: bf16 with bf16 as it is if the processor multiplies that ([`dot()`]), else
/// [`widen`]ed.
pub(crate) fn factor(t: &Tensor, other: &Tensor) -> Result<Tensor> {
    match (t.dtype(), other.dtype(), dot()) {
        (DType::BF16, DType::BF16, Some(_)) => Ok(t.contiguous()?),
        _ => widen(t),
    }
}

/// A kernel's result as a tensor of `dtype`; f32 values are moved.
pub(crate) fn narrow(values: Vec<f32>, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let cpu = &candle_core::Device::Cpu;
    Ok(match dtype {
        DType::BF16 => Tensor::from_vec(converted(&values, bf16::ZERO, narrow_bf16), shape, cpu)?,
        DType::F16 => {
            let narrow = |from: &[f32], to: &mut [f16]| to.convert_from_f32_slice(from);
            Tensor::from_vec(converted(&values, f16::ZERO, narrow), shape, cpu)?
        }
        _ => Tensor::from_vec(values, shape, cpu)?.to_dtype(dtype)?,
    })
}

/// The values in another type, a chunk at a time in parallel.
fn converted<T: Copy + Send>(values: &[f32], zero: T, convert: impl Fn(&[f32], &mut [T]) + Sync) -> Vec<T> {
    let mut target = vec![zero; values.len()];
    let chunks = target.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).with_min_len(together(CHUNK));
    chunks.for_each(|(to, from)| convert(from, to));
    target
}

/// The values of a contiguous f32 CPU tensor.
pub(crate) struct Values<'a>(Stored<'a>);

impl<'a> Values<'a> {
    /// # Errors
    /// If the tensor is not contiguous, not f32, or not on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let stored = Stored::of(tensor)?;
        match stored.numbers() {
            Numbers::F32(_) => Ok(Self(stored)),
            _ => Err(Error::invalid("a CPU kernel expects f32 values")),
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self.0.numbers() {
            Numbers::F32(values) => values,
            // `of` admits nothing else.
            _ => &[],
        }
    }
}

/// The numbers of a contiguous CPU tensor of f32, f16 or bf16.
pub(crate) struct Stored<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Stored<'a> {
    /// # Errors
    /// If the tensor is not contiguous, of another dtype, or not on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let refuse = |what: &str| Err(Error::invalid(format!("a CPU kernel expects {what}")));
        let Some((start, end)) = layout.contiguous_offsets() else {
            return refuse("a contiguous tensor");
        };
        let len = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => values.len(),
            Storage::Cpu(CpuStorage::F16(values)) => values.len(),
            Storage::Cpu(CpuStorage::BF16(values)) => values.len(),
            Storage::Cpu(_) => return refuse("f32, f16 or bf16 values"),
            _ => return refuse("a tensor in main memory"),
        };
        if end > len {
            return refuse("as many values as the shape says");
        }
        Ok(Self { storage, range: start..end })
    }

    pub fn numbers(&self) -> Numbers<'_> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => Numbers::F32(&values[self.range.clone()]),
            Storage::Cpu(CpuStorage::F16(values)) => Numbers::F16(&values[self.range.clone()]),
            Storage::Cpu(CpuStorage::BF16(values)) => Numbers::Bf16(&values[self.range.clone()]),
            // `of` admits nothing else.
            _ => Numbers::F32(&[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// candle's conversions are the reference, for every bf16 and f16 and for values between them.
    #[test]
    fn conversions_equal_candles() -> Result<()> {
        let values: Vec<f32> =
            (0..1u32 << 18).map(|i| f32::from_bits(i << 14 | (i * 7919) & 0x3fff)).collect();
        let wide = Tensor::from_vec(values.clone(), values.len(), &candle_core::Device::Cpu)?;
        for dtype in [DType::BF16, DType::F16] {
            let (ours, theirs) = (narrow(values.clone(), values.len(), dtype)?, wide.to_dtype(dtype)?);
            let (ours, theirs) = (widen(&ours)?, theirs.to_dtype(DType::F32)?);
            for (ours, theirs) in Values::of(&ours)?.iter().zip(theirs.to_vec1::<f32>()?) {
                assert!(
                    ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                    "{ours} {theirs}"
                );
            }
        }
        Ok(())
    }
}
