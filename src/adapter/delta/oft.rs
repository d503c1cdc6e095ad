//! Orthogonal fine-tuning of a layer's outputs, one block of them at a time.

use std::sync::OnceLock;

use candle_core::Tensor;

use super::{Algorithm, Delta, Stored, math, rotation};
use crate::error::{Error, Result};

/// Each block of output rows, rotated: W'ⱼ = Rⱼᵀ Wⱼ (<https://arxiv.org/abs/2306.07280>), then scaled by `rescale`.
#[derive(Debug, Clone)]
pub struct Oft {
    /// (n, b, b) with n · b = out.
    blocks: Tensor,
    form: OftForm,
    /// (out, 1, …).
    rescale: Option<Tensor>,
    /// Computed at the first use: solving for them costs more than applying them.
    rotations: OnceLock<Tensor>,
}

/// How an [`Oft`]'s blocks make rotations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OftForm {
    /// The Cayley transform of B - Bᵀ.
    Cayley {
        /// Caps the norm of all blocks together, times the number of outputs. kohya's alpha, where 0 is a cap of 0;
        /// LyCORIS' 0 is none.
        constraint: Option<f64>,
    },
    /// They are the rotations (LyCORIS, late 2023).
    Rotation,
    /// They are the rotations less I (LyCORIS, mid 2023).
    Residual,
}

impl OftForm {
    /// What the blocks of an `oft_diag` file are, which no key says: rotations have diagonals near 1, residuals near 0.
    ///
    /// # Errors
    /// If they are neither.
    pub fn of_oft_diag(blocks: &Tensor) -> Result<Self> {
        let blocks = math::f32_of(blocks)?;
        let (n, b, _) = blocks.dims3()?;
        let eye = Tensor::eye(b, candle_core::DType::F32, blocks.device())?;
        let trace = blocks.broadcast_mul(&eye)?.sum_all()?.to_scalar::<f32>()?;
        let mean = f64::from(trace) / (n * b) as f64;
        match mean {
            _ if (mean - 1.0).abs() < 0.25 => Ok(Self::Rotation),
            _ if mean.abs() < 0.25 => Ok(Self::Residual),
            _ => Err(Error::invalid(format!(
                "`.oft_diag` may hold rotations (diagonals near 1) or their difference from none (near 0), found a \
                 mean of {mean:.2}"
            ))),
        }
    }
}

impl Oft {
    /// # Shapes
    /// - `blocks`: (n, b, b) with n · b = out
    /// - `rescale`: (out, 1, …)
    pub fn new(blocks: Tensor, form: OftForm, rescale: Option<Tensor>) -> Self {
        Self { blocks, form, rescale, rotations: OnceLock::new() }
    }

    fn rotations(&self, outputs: usize) -> Result<Tensor> {
        if let Some(rotations) = self.rotations.get() {
            return Ok(rotations.clone());
        }
        let rotations = match self.form {
            OftForm::Cayley { constraint } => {
                rotation::cayley(&self.blocks, constraint.map(|c| c * outputs as f64))?
            }
            OftForm::Rotation => math::f32_of(&self.blocks)?,
            OftForm::Residual => {
                let blocks = math::f32_of(&self.blocks)?;
                let eye = Tensor::eye(blocks.dim(1)?, blocks.dtype(), blocks.device())?;
                blocks.broadcast_add(&eye)?
            }
        };
        Ok(self.rotations.get_or_init(|| rotations).clone())
    }
}

impl Algorithm for Oft {
    fn name(&self) -> &'static str {
        match self.form {
            OftForm::Cayley { .. } => "OFT",
            OftForm::Rotation | OftForm::Residual => "OFT (oft_diag)",
        }
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let (n, b, _) = self.blocks.dims3()?;
        let rotations = rotation::at_strength(&self.rotations(base.dims()[0])?, strength)?;
        let rotations = rotations.to_device(base.device())?.transpose(1, 2)?.contiguous()?;
        let rows = base.contiguous()?.reshape((n, b, base.elem_count() / (n * b)))?;
        let turned = rotations.matmul(&rows)?.reshape(base.shape())?;
        rotation::rescaled(&turned, self.rescale.as_ref(), strength)
    }

    fn alpha(&self) -> Option<f64> {
        match self.form {
            OftForm::Cayley { constraint } => constraint,
            OftForm::Rotation | OftForm::Residual => None,
        }
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let mut all = Vec::new();
        match self.form {
            OftForm::Cayley { constraint } => all.extend(rotation::stored(&self.blocks, constraint)?),
            OftForm::Rotation | OftForm::Residual => all.push((".oft_diag", self.blocks.clone())),
        }
        all.extend(self.rescale.iter().map(|t| (".rescale", t.clone())));
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        let rescale = self.rescale.as_ref().map(&mut *f).transpose()?;
        Ok(Delta::Oft(Self::new(f(&self.blocks)?, self.form, rescale)))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        match self.blocks.dims() {
            [n, b, columns] if b == columns && n * b == shape[0] => {}
            dims => {
                return Err(Error::invalid(format!(
                    "the rotation blocks {dims:?} are not [n, b, b] with n · b = {}, the outputs of the model's \
                     weight {shape:?}",
                    shape[0]
                )));
            }
        }
        rotation::check_rescale(self.rescale.as_ref(), shape)?;
        rotation::check_constraint(self.alpha())
    }
}
