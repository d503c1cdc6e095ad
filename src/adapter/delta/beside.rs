//! What some files store beside an algorithm's own tensors: a sparse rest of the weight, a change of the bias.

use candle_core::{DType, Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::error::{Error, Result};

/// Another delta, plus what it could not express.
#[derive(Debug, Clone)]
pub struct Beside {
    /// The delta.
    pub inner: Box<Delta>,
    /// Added to ΔW once, unscaled.
    pub residual: Option<Sparse>,
    /// Δb (out), scaled already: PEFT's `lora_bias`, `diff_b` beside factors.
    pub bias: Option<Tensor>,
}

/// A sparse matrix as LyCORIS' extraction stores it (in spite of the names, it is no layer's bias).
#[derive(Debug, Clone)]
pub struct Sparse {
    /// (2, count): row and column of each value.
    pub indices: Tensor,
    /// (count).
    pub values: Tensor,
    /// (2): rows and columns of the weight seen as a matrix.
    pub size: Tensor,
}

impl Sparse {
    fn numbers(tensor: &Tensor) -> Result<Vec<i64>> {
        Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?)
    }

    fn dense(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let columns: usize = shape[1..].iter().product();
        let mut dense = vec![0f32; shape[0] * columns];
        let indices = Self::numbers(&self.indices)?;
        let values: Vec<f32> = math::f32_of(&self.values)?.flatten_all()?.to_vec1()?;
        let (rows, places) = indices.split_at(indices.len() / 2);
        for ((row, column), value) in rows.iter().zip(places).zip(values) {
            // Duplicates add up, as in torch.
            let at = usize::try_from(*row).ok().zip(usize::try_from(*column).ok());
            match at.filter(|(r, c)| *r < shape[0] && *c < columns) {
                Some((r, c)) => dense[r * columns + c] += value,
                None => {
                    return Err(Error::invalid(format!(
                        "`.bias_indices` names place ({row}, {column}), the weight is {} by {columns}",
                        shape[0]
                    )));
                }
            }
        }
        Ok(Tensor::from_vec(dense, shape, &Device::Cpu)?.to_device(device)?)
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        let count = self.values.elem_count();
        if self.indices.dims() != [2, count] {
            return Err(Error::invalid(format!(
                "`.bias_indices` has shape {:?} for {count} values, expected [2, {count}]",
                self.indices.dims()
            )));
        }
        let (size, expected) =
            (Self::numbers(&self.size)?, [shape[0] as i64, shape[1..].iter().product::<usize>() as i64]);
        if size != expected {
            return Err(super::misfit(format!(
                "`.bias_size` is {size:?}, expected {expected:?} for the model's weight {shape:?}"
            )));
        }
        self.dense(shape, &Device::Cpu).map(|_| ())
    }
}

impl Algorithm for Beside {
    fn name(&self) -> &'static str {
        self.inner.algorithm()
    }

    fn is_additive(&self) -> bool {
        self.inner.is_additive()
    }

    fn weight(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let weight = self.inner.as_algorithm().weight(shape, device)?;
        match &self.residual {
            Some(residual) => Ok((weight + residual.dense(shape, device)?)?),
            None => Ok(weight),
        }
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let weight = self.inner.apply(base, strength)?;
        match &self.residual {
            Some(residual) => Ok((weight + (residual.dense(base.dims(), base.device())? * strength)?)?),
            None => Ok(weight),
        }
    }

    fn changes_weight(&self) -> bool {
        self.residual.is_some() || self.inner.changes_weight()
    }

    fn branch(&self, shape: &[usize], device: &Device) -> Result<Option<super::Branch>> {
        if self.residual.is_some() { Ok(None) } else { self.inner.as_algorithm().branch(shape, device) }
    }

    fn bias(&self) -> Result<Option<Tensor>> {
        match &self.bias {
            Some(bias) => math::f32_of(bias).map(Some),
            None => self.inner.bias(),
        }
    }

    fn rank(&self) -> Option<usize> {
        self.inner.rank()
    }

    fn alpha(&self) -> Option<f64> {
        self.inner.alpha()
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let mut all = self.inner.tensors()?;
        if let Some(Sparse { indices, values, size }) = &self.residual {
            all.extend([
                (".bias_indices", indices.clone()),
                (".bias_values", values.clone()),
                (".bias_size", size.clone()),
            ]);
        }
        all.extend(self.bias.iter().map(|bias| (".diff_b", bias.clone())));
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        let residual = match &self.residual {
            Some(Sparse { indices, values, size }) => {
                Some(Sparse { indices: indices.clone(), values: f(values)?, size: size.clone() })
            }
            None => None,
        };
        let inner = Box::new(self.inner.map(f)?);
        Ok(Delta::Beside(Self { inner, residual, bias: self.bias.as_ref().map(f).transpose()? }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        if let Some(residual) = &self.residual {
            if !self.inner.is_additive() {
                return Err(Error::invalid(format!("a sparse residual beside {}", self.inner.algorithm())));
            }
            residual.check(shape)?;
        }
        if let Some(bias) = &self.bias {
            math::check_bias(".diff_b", bias.dims(), shape)?;
        }
        self.inner.check_shapes(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::super::LowRank;
    use super::*;
    use crate::adapter::delta::by_hand::{Known, LINEAR, assert_additive, weight_of};

    #[test]
    fn a_sparse_residual_is_added_once() -> Result<()> {
        let (down, up) = (Known::random(1, &[2, 4])?, Known::random(2, &[6, 2])?);
        let inner = LowRank { down: down.tensor.clone(), up: up.tensor.clone(), mid: None, alpha: Some(2.0) };
        let residual = |rows: [i64; 2], columns: [i64; 2], size: [i64; 2]| -> Result<Delta> {
            let sparse = Sparse {
                indices: Tensor::new(&[rows, columns], &Device::Cpu)?,
                values: Tensor::new(&[0.25f32, -3.0], &Device::Cpu)?,
                size: Tensor::new(&size, &Device::Cpu)?,
            };
            let inner = Box::new(Delta::LowRank(inner.clone()));
            Ok(Delta::Beside(Beside { inner, residual: Some(sparse), bias: None }))
        };
        let mut expected =
            weight_of(LINEAR, |o, i, _| (0..2).map(|a| up.at(&[o, a]) * down.at(&[a, i])).sum::<f64>());
        expected[1] += 0.25;
        expected[5 * 4 + 3] -= 3.0;
        assert_additive("sparse residual", &residual([0, 5], [1, 3], [6, 4])?, LINEAR, &expected);
        for (rows, columns, size) in [
            ([0, 6], [1, 3], [6, 4]),
            ([0, -1], [1, 3], [6, 4]),
            ([0, 5], [1, 4], [6, 4]),
            ([0, 5], [1, 3], [4, 6]),
        ] {
            assert!(residual(rows, columns, size)?.check(LINEAR).is_err());
        }
        Ok(())
    }
}
