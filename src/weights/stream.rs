//! Writing files larger than memory: the header first, then one tensor at a time.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::Path,
};

use candle_core::{DType, Tensor};

use super::writer::{dtype_name, header_bytes, little_endian_bytes};
use crate::{
    error::{Error, Result},
    files,
};

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its key.
    pub name: String,
    /// As it will be stored.
    pub dtype: DType,
    /// As it will be stored.
    pub shape: Vec<usize>,
}

/// Writes a safetensors file atomically, asking for each tensor when its turn comes: widest dtype first, then by name,
/// as the reference writer does.
///
/// # Errors
/// If two tensors have one name, `make` fails or makes something else than planned, or the file cannot be written.
pub fn write(
    path: impl AsRef<Path>,
    mut plan: Vec<Planned>,
    metadata: &BTreeMap<String, String>,
    make: &mut dyn FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    plan.sort_by(|a, b| {
        b.dtype.size_in_bytes().cmp(&a.dtype.size_in_bytes()).then_with(|| a.name.cmp(&b.name))
    });
    if let Some(pair) = plan.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::invalid(format!("two tensors are called `{}`", pair[0].name)));
    }
    if let Some(tensor) = plan.iter().find(|t| dtype_name(t.dtype).is_none()) {
        let (name, dtype) = (&tensor.name, tensor.dtype);
        return Err(Error::invalid(format!("tensor `{name}` has dtype {dtype:?}, which is not written")));
    }
    let mut cause = None;
    let written = files::write_atomic(path, |out| {
        let entries = plan.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice()));
        out.write_all(&header_bytes(entries, metadata))?;
        for planned in &plan {
            let bytes = bytes_of(planned, make).map_err(|e| {
                cause = Some(e);
                io::Error::other("stopped")
            })?;
            out.write_all(&bytes)?;
        }
        Ok(())
    });
    match cause {
        Some(error) => Err(error),
        None => written,
    }
}

fn bytes_of(planned: &Planned, make: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<Vec<u8>> {
    let tensor = make(&planned.name)?;
    if tensor.dims() == planned.shape && tensor.dtype() == planned.dtype {
        return little_endian_bytes(&tensor);
    }
    let Planned { name, dtype, shape } = planned;
    let (found, dims) = (tensor.dtype(), tensor.dims());
    Err(Error::invalid(format!("tensor `{name}` became {found:?} {dims:?}, expected {dtype:?} {shape:?}")))
}
