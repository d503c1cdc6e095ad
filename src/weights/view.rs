//! A [`Store`] seen under other names: what lets every file layout look like diffusers'.

use std::{collections::BTreeMap, fmt, sync::Arc};

use candle_core::{Shape, Tensor};

use super::store::{Store, TensorInfo};
use crate::error::{Error, Result};

/// What is done to a stored tensor to make the one asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    Keep,
    /// One of `of` equal slices of the first dimension: OpenCLIP stacks q, k and v.
    Rows {
        /// Which, from 0.
        part: usize,
        /// How many there are.
        of: usize,
    },
    /// A matrix, transposed: OpenCLIP multiplies by its text projection from the other side.
    Transpose,
    /// A 1×1 convolution (o, i, 1, 1) as the matrix (o, i) it is; a matrix stays one.
    Matrix,
}

impl Transform {
    fn shape(self, dims: &[usize]) -> Option<Vec<usize>> {
        match (self, dims) {
            (Self::Keep, _) => Some(dims.to_vec()),
            (Self::Rows { of, .. }, [rows, rest @ ..]) if rows.is_multiple_of(of) => {
                Some(std::iter::once(rows / of).chain(rest.iter().copied()).collect())
            }
            (Self::Transpose, [a, b]) => Some(vec![*b, *a]),
            (Self::Matrix, [o, i] | [o, i, 1, 1]) => Some(vec![*o, *i]),
            (Self::Matrix, [_]) => Some(dims.to_vec()),
            _ => None,
        }
    }

    /// The tensor that is asked for, of the stored one.
    ///
    /// # Errors
    /// If it has another shape than this expects.
    pub fn apply(self, tensor: &Tensor) -> Result<Tensor> {
        let Some(shape) = self.shape(tensor.dims()) else {
            return Err(Error::invalid(format!("shape {:?} does not fit", tensor.dims())));
        };
        Ok(match self {
            Self::Keep => tensor.clone(),
            // Copied, so that one slice does not keep all of them in memory.
            Self::Rows { part, .. } => tensor.narrow(0, part * shape[0], shape[0])?.force_contiguous()?,
            Self::Transpose => tensor.t()?.contiguous()?,
            Self::Matrix => tensor.reshape(shape)?,
        })
    }

    /// The stored tensor `whole` with `piece` in place of what [`Transform::apply`] takes out of it.
    ///
    /// # Errors
    /// If the shapes do not belong together.
    pub fn put_back(self, whole: &Tensor, piece: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Keep | Self::Matrix => piece.reshape(whole.shape())?,
            Self::Transpose => piece.t()?.contiguous()?,
            Self::Rows { part, of } => {
                let rows = whole.dim(0)? / of.max(1);
                let parts = (0..of)
                    .map(|i| if i == part { Ok(piece.clone()) } else { whole.narrow(0, i * rows, rows) });
                Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?
            }
        })
    }
}

/// A view of a [`Store`] in which every name leads to a stored tensor and a [`Transform`].
pub struct View {
    base: Arc<dyn Store>,
    entries: BTreeMap<String, (String, Transform)>,
}

impl View {
    /// Takes the new names. Later entries win over earlier ones.
    pub fn new(
        base: Arc<dyn Store>,
        entries: impl IntoIterator<Item = (String, (String, Transform))>,
    ) -> Self {
        Self { base, entries: entries.into_iter().collect() }
    }

    /// Where a name leads: the stored key and what is done to it.
    pub fn source(&self, name: &str) -> Option<(&str, Transform)> {
        self.entries.get(name).map(|(key, transform)| (key.as_str(), *transform))
    }

    /// True if no name leads anywhere.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("base", &self.base).field("names", &self.entries.len()).finish()
    }
}

impl Store for View {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (key, transform) = self.source(name)?;
        let info = self.base.info(key)?;
        let shape = Shape::from(transform.shape(info.shape.dims())?);
        Some(TensorInfo { shape, ..info })
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let Some((key, transform)) = self.source(name) else {
            return Err(Error::invalid(format!("{}: tensor `{name}` is missing", self.origin())));
        };
        let tensor = self.base.load(key)?;
        transform.apply(&tensor).map_err(|e| e.context(format!("{}: tensor `{key}`", self.origin())))
    }

    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn origin(&self) -> String {
        self.base.origin()
    }
}
