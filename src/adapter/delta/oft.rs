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
        let [n, b, columns] = *blocks.dims() else { return Err(not_square(blocks.dims())) };
        if columns != b || b == 0 {
            return Err(not_square(blocks.dims()));
        }
        let values: Vec<f32> = math::f32_of(blocks)?.flatten_all()?.to_vec1()?;
        let diagonals = values.chunks_exact(b * b).flat_map(|block| block.iter().step_by(b + 1));
        let mean = diagonals.map(|x| f64::from(*x)).sum::<f64>() / (n * b) as f64;
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

fn not_square(dims: &[usize]) -> Error {
    Error::invalid(format!("`.oft_diag` has shape {dims:?}, expected square blocks [n, b, b]"))
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
                return Err(super::misfit(format!(
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::adapter::delta::by_hand::{
        CONV, Known, LINEAR, Matrix, assert_close, assert_unchanged_at_zero, capped, identity, plus,
        rotation_of, skew, weight_of,
    };

    #[test]
    fn oft_turns_blocks_of_outputs() -> Result<()> {
        let (w, b, n) = (Known::random(1, CONV)?, 3, 2);
        let blocks = Known::of(&(Known::random(2, &[n, b, b])?.tensor * 0.2)?)?;
        let rescale = Known::random(3, &[6, 1, 1, 1])?;
        for (constraint, with_rescale, m) in
            [(None, false, 1.0), (None, true, 1.0), (Some(0.05), false, 1.0), (Some(1e3), false, 0.3)]
        {
            let scale = constraint.map_or(1.0, |c| capped(&blocks, b, c * 6.0));
            let rotations: Vec<Matrix> = (0..n)
                .map(|j| {
                    plus(
                        &identity(b),
                        m,
                        &plus(&rotation_of(&skew(&blocks, &[j], b, scale)), -1.0, &identity(b)),
                    )
                })
                .collect();
            let expected = weight_of(CONV, |o, i, k| {
                let (block, row) = (o / b, o % b);
                let turned: f64 =
                    (0..b).map(|x| rotations[block][x][row] * w.at(&[block * b + x, i, k / 2, k % 2])).sum();
                if with_rescale { turned * (1.0 + m * (rescale.at(&[o]) - 1.0)) } else { turned }
            });
            let delta = Delta::Oft(Oft::new(
                blocks.tensor.clone(),
                OftForm::Cayley { constraint },
                with_rescale.then(|| rescale.tensor.clone()),
            ));
            delta.check(CONV)?;
            assert_close("OFT", &delta.apply(&w.tensor, m)?, &expected);
            assert_unchanged_at_zero(&delta, &w.tensor)?;
        }
        Ok(())
    }

    #[test]
    fn finished_rotations_and_residuals_agree() -> Result<()> {
        let blocks = (Known::random(2, &[2, 3, 3])?.tensor * 0.1)?;
        let eye = Tensor::eye(3, DType::F32, &Device::Cpu)?;
        let rotations = blocks.broadcast_add(&eye)?;
        let (form_r, form_d) = (OftForm::of_oft_diag(&rotations)?, OftForm::of_oft_diag(&blocks)?);
        assert_eq!((form_r, form_d), (OftForm::Rotation, OftForm::Residual));
        assert!(OftForm::of_oft_diag(&rotations.affine(1.0, 0.6)?).is_err());
        let w = Known::random(1, LINEAR)?;
        let expected = weight_of(LINEAR, |o, i, _| {
            let r = Known::of(&rotations).expect("values");
            (0..3).map(|x| r.at(&[o / 3, x, o % 3]) * w.at(&[o / 3 * 3 + x, i])).sum()
        });
        for (blocks, form) in [(rotations.clone(), form_r), (blocks, form_d)] {
            let delta = Delta::Oft(Oft::new(blocks, form, None));
            assert_close("oft_diag", &delta.apply(&w.tensor, 1.0)?, &expected);
        }
        Ok(())
    }
}
