//! The number formats a safetensors file may hold, and how each is brought into a tensor.

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16, vec::HalfBitsVecExt};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// A number format by its name in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum StoredDtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F8E4M3,
    F8E5M2,
    F16,
    Bf16,
    F32,
    F64,
}

/// Header name, format, bytes an element, and what it becomes as a tensor: candle lacks a few, which are widened
/// without loss (every 8-bit float is exactly an f16).
const TABLE: &[(&str, StoredDtype, usize, DType)] = &[
    ("BOOL", StoredDtype::Bool, 1, DType::U8),
    ("U8", StoredDtype::U8, 1, DType::U8),
    ("I8", StoredDtype::I8, 1, DType::I16),
    ("U16", StoredDtype::U16, 2, DType::U32),
    ("I16", StoredDtype::I16, 2, DType::I16),
    ("U32", StoredDtype::U32, 4, DType::U32),
    ("I32", StoredDtype::I32, 4, DType::I32),
    ("U64", StoredDtype::U64, 8, DType::I64),
    ("I64", StoredDtype::I64, 8, DType::I64),
    ("F8_E4M3", StoredDtype::F8E4M3, 1, DType::F16),
    ("F8_E5M2", StoredDtype::F8E5M2, 1, DType::F16),
    ("F16", StoredDtype::F16, 2, DType::F16),
    ("BF16", StoredDtype::Bf16, 2, DType::BF16),
    ("F32", StoredDtype::F32, 4, DType::F32),
    ("F64", StoredDtype::F64, 8, DType::F64),
];

/// Formats the specification knows and nobody stores a Stable Diffusion model in.
const REFUSED: &[&str] =
    &["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "C128"];

impl StoredDtype {
    /// By its name in the header; the error is a message without a path.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        if let Some((_, dtype, ..)) = TABLE.iter().find(|(n, ..)| *n == name) {
            return Ok(*dtype);
        }
        if REFUSED.contains(&name) {
            return Err(format!("dtype {name} is not supported"));
        }
        Err(format!("dtype `{name}` is not one of the format's"))
    }

    fn row(self) -> &'static (&'static str, Self, usize, DType) {
        TABLE.iter().find(|(_, d, ..)| *d == self).unwrap_or(&TABLE[0])
    }

    /// The name in the header.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Bytes an element takes.
    pub fn size_bytes(self) -> usize {
        self.row().2
    }

    /// The dtype of the tensor [`StoredDtype::decode`] makes.
    pub fn tensor_dtype(self) -> DType {
        self.row().3
    }

    /// True for every floating-point format.
    pub fn is_float(self) -> bool {
        self.tensor_dtype().is_float()
    }

    /// Copies little-endian bytes into a tensor on the CPU.
    ///
    /// # Errors
    /// If the bytes do not fill the shape, or a U64 is above the largest i64.
    pub fn decode(self, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
        let cpu = &Device::Cpu;
        let tensor = match self {
            Self::Bool => Tensor::from_vec(bytes.iter().map(|b| u8::from(*b != 0)).collect(), shape, cpu)?,
            Self::I8 => Tensor::from_vec(
                bytes.iter().map(|b| i16::from(b.cast_signed())).collect::<Vec<_>>(),
                shape,
                cpu,
            )?,
            Self::U16 => {
                let (pairs, _) = bytes.as_chunks::<2>();
                let values: Vec<u32> = pairs.iter().map(|b| u32::from(u16::from_le_bytes(*b))).collect();
                Tensor::from_vec(values, shape, cpu)?
            }
            Self::U64 => {
                let (chunks, _) = bytes.as_chunks::<8>();
                let values = chunks.iter().map(|b| i64::try_from(u64::from_le_bytes(*b)));
                let values: Vec<i64> = values
                    .collect::<Result<_, _>>()
                    .map_err(|_| Error::invalid("a U64 value is above 2^63 - 1"))?;
                Tensor::from_vec(values, shape, cpu)?
            }
            Self::F8E4M3 => {
                Tensor::from_vec(bytes.iter().map(|b| e4m3_to_f16(*b)).collect::<Vec<_>>(), shape, cpu)?
            }
            // E5M2 is the upper half of an f16.
            Self::F8E5M2 => Tensor::from_vec(
                bytes.iter().map(|b| f16::from_bits(u16::from(*b) << 8)).collect::<Vec<_>>(),
                shape,
                cpu,
            )?,
            Self::F32 => Tensor::from_vec(copied(bytes, f32::from_le_bytes), shape, cpu)?,
            Self::F16 => {
                Tensor::from_vec(copied(bytes, u16::from_le_bytes).reinterpret_into::<f16>(), shape, cpu)?
            }
            Self::Bf16 => {
                Tensor::from_vec(copied(bytes, u16::from_le_bytes).reinterpret_into::<bf16>(), shape, cpu)?
            }
            _ => Tensor::from_raw_buffer(bytes, self.tensor_dtype(), shape, cpu)?,
        };
        Ok(tensor)
    }
}

/// Numbers of N bytes, copied by all threads: a checkpoint is gigabytes, and each page of the copy is new.
fn copied<T: Copy + Default + Send, const N: usize>(
    bytes: &[u8],
    number: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    /// Numbers a task copies.
    const CHUNK: usize = 1 << 18;
    let (numbers, _) = bytes.as_chunks::<N>();
    let mut values = vec![T::default(); numbers.len()];
    let chunks = values.par_chunks_mut(CHUNK).zip(numbers.par_chunks(CHUNK));
    chunks.for_each(|(values, numbers)| {
        values.iter_mut().zip(numbers).for_each(|(value, bytes)| *value = number(*bytes));
    });
    values
}

/// F8 E4M3 (finite, "FN"): exponent bias 7, no infinity, `0x7f` and `0xff` are NaN.
fn e4m3_to_f16(byte: u8) -> f16 {
    let sign = u16::from(byte & 0x80) << 8;
    let (exponent, mantissa) = (u16::from(byte >> 3) & 0xf, u16::from(byte & 0x7));
    if exponent == 0xf && mantissa == 0x7 {
        return f16::from_bits(sign | 0x7e00);
    }
    if exponent == 0 {
        // Subnormal: mantissa · 2^-9, a normal number in f16.
        let magnitude = f16::from_f32(f32::from(mantissa) / 512.0);
        return f16::from_bits(sign | magnitude.to_bits());
    }
    f16::from_bits(sign | ((exponent + 8) << 10) | (mantissa << 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_decode_exactly() -> Result<()> {
        let all: Vec<u8> = (0..=255).collect();
        let ours = StoredDtype::F8E4M3.decode(&all, &[256])?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let theirs =
            Tensor::from_raw_buffer(&all, DType::F8E4M3, &[256], &Device::Cpu)?.to_dtype(DType::F32)?;
        for (i, (a, b)) in ours.iter().zip(theirs.to_vec1::<f32>()?).enumerate() {
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "byte {i:#x}: {a} is not {b}");
        }
        let e5m2 = StoredDtype::F8E5M2.decode(&[0x3c, 0xc0, 0x7b, 0x01], &[4])?.to_dtype(DType::F32)?;
        assert_eq!(e5m2.to_vec1::<f32>()?, [1.0, -2.0, 57344.0, 2f32.powi(-16)]);
        Ok(())
    }

    #[test]
    fn formats_candle_lacks_are_widened() -> Result<()> {
        let bools = StoredDtype::Bool.decode(&[0, 1, 7], &[3])?;
        assert_eq!(bools.to_vec1::<u8>()?, [0, 1, 1]);
        let bytes = StoredDtype::I8.decode(&[0xff, 0x80, 5], &[3])?;
        assert_eq!(bytes.to_vec1::<i16>()?, [-1, -128, 5]);
        let words = StoredDtype::U16.decode(&[0xff, 0xff, 1, 0], &[2])?;
        assert_eq!(words.to_vec1::<u32>()?, [65535, 1]);
        assert!(StoredDtype::U64.decode(&[0xff; 8], &[1]).is_err());
        Ok(())
    }
}
