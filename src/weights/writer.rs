//! Writing safetensors: same tensors and metadata, same bytes. (The reference writer takes its metadata from a hash
//! map, so two runs differ.)

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    files,
};

/// A safetensors file about to be written.
#[derive(Debug)]
pub struct SafetensorsWriter<'a> {
    /// In file order: widest dtype first, then by name, as the reference writer does.
    tensors: Vec<(&'a str, &'a Tensor)>,
}

impl<'a> SafetensorsWriter<'a> {
    /// Takes the tensors, wherever they are; they are copied to the CPU one at a time.
    ///
    /// # Errors
    /// If a tensor has a dtype the format cannot name.
    pub fn new(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Self> {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        for (name, tensor) in &tensors {
            if dtype_name(tensor.dtype()).is_none() {
                let dtype = tensor.dtype();
                return Err(Error::invalid(format!(
                    "tensor `{name}` has dtype {dtype:?}, which is not written"
                )));
            }
        }
        tensors.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype().size_in_bytes()), *name));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::invalid(format!("two tensors are called `{}`", pair[0].0)));
        }
        Ok(Self { tensors })
    }

    /// Lower-case sha256 of the tensors' bytes, without the header: kohya's `sshs_model_hash`, the sites' AutoV3 (its
    /// first 12 digits). It can go into the metadata because it does not depend on them.
    ///
    /// # Errors
    /// If a tensor cannot be copied from its device.
    pub fn data_sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        self.each_tensor(|bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        Ok(format!("{:x}", hash.finalize()))
    }

    /// Writes the file atomically, see [`files::write_atomic`].
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, metadata: &BTreeMap<String, String>) -> Result<()> {
        files::write_atomic(path, |file| self.write_to(file, metadata))
    }

    /// The whole file in memory.
    ///
    /// # Errors
    /// If a tensor cannot be copied from its device.
    pub fn to_bytes(&self, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes, metadata).map_err(|e| Error::invalid(e.to_string()))?;
        Ok(bytes)
    }

    fn write_to(&self, out: &mut impl Write, metadata: &BTreeMap<String, String>) -> io::Result<()> {
        let entries = self.tensors.iter().map(|(name, tensor)| (*name, tensor.dtype(), tensor.dims()));
        out.write_all(&header_bytes(entries, metadata))?;
        self.each_tensor(|bytes| out.write_all(bytes).map_err(|e| Error::io("", e))).map_err(|e| match e {
            Error::Io { source, .. } => source,
            other => io::Error::other(other.to_string()),
        })
    }

    fn each_tensor(&self, mut f: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.tensors.iter().try_for_each(|(_, tensor)| f(&little_endian_bytes(tensor)?))
    }
}

/// The beginning of a file: the header's length and the header, for tensors in the order they are written in.
pub(super) fn header_bytes<'t>(
    tensors: impl Iterator<Item = (&'t str, DType, &'t [usize])>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut begin = 0;
    for (name, dtype, shape) in tensors {
        let end = begin + shape.iter().product::<usize>() * dtype.size_in_bytes();
        let entry = serde_json::json!({ "dtype": dtype_name(dtype).unwrap_or_default(), "shape": shape,
            "data_offsets": [begin, end] });
        header.insert(name.into(), entry);
        begin = end;
    }
    framed(&serde_json::Value::from(header))
}

/// A header with its length before it, and spaces behind it up to eight-byte alignment, as the reference writer does.
pub(super) fn framed(header: &serde_json::Value) -> Vec<u8> {
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

pub(super) fn dtype_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::U8 => "U8",
        DType::U32 => "U32",
        DType::I16 => "I16",
        DType::I32 => "I32",
        DType::I64 => "I64",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::F32 => "F32",
        DType::F64 => "F64",
        _ => return None,
    })
}

pub(super) fn little_endian_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    macro_rules! bytes {
        ($t:ty) => {
            flat.to_vec1::<$t>()?.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
    }
    Ok(match flat.dtype() {
        DType::U8 => flat.to_vec1::<u8>()?,
        DType::U32 => bytes!(u32),
        DType::I16 => bytes!(i16),
        DType::I32 => bytes!(i32),
        DType::I64 => bytes!(i64),
        DType::BF16 => bytes!(half::bf16),
        DType::F16 => bytes!(half::f16),
        DType::F32 => bytes!(f32),
        DType::F64 => bytes!(f64),
        other => return Err(Error::invalid(format!("dtype {other:?} is not written"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::reader::SafetensorsFile;

    #[test]
    fn what_is_written_is_read_back() -> Result<()> {
        let cpu = &Device::Cpu;
        let a = Tensor::arange(0f32, 6., cpu)?.reshape((2, 3))?;
        let b = a.to_dtype(DType::BF16)?.t()?;
        let scalar = Tensor::new(7i64, cpu)?;
        let empty = Tensor::zeros((0, 3), DType::F16, cpu)?;
        let writer = SafetensorsWriter::new([("a", &a), ("b", &b), ("alpha", &scalar), ("e", &empty)])?;
        let metadata = BTreeMap::from([("ss_steps".to_string(), "7 \"quoted\"\n".to_string())]);
        let bytes = writer.to_bytes(&metadata)?;
        assert_eq!(bytes, writer.to_bytes(&metadata)?);
        safetensors::SafeTensors::deserialize(&bytes).expect("the reference reader takes it");

        let file = SafetensorsFile::from_bytes("memory", bytes)?;
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "alpha", "b", "e"]);
        assert_eq!(file.tensor("a")?.to_vec2::<f32>()?, a.to_vec2::<f32>()?);
        assert_eq!(file.tensor("b")?.to_vec2::<half::bf16>()?, b.to_vec2::<half::bf16>()?);
        assert_eq!(file.tensor("alpha")?.to_scalar::<i64>()?, 7);
        assert_eq!(file.tensor("e")?.dims(), [0, 3]);
        assert_eq!(format!("{:x}", Sha256::digest(file.data())), writer.data_sha256()?);
        Ok(())
    }
}
