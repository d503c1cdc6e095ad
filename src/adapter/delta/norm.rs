//! Changes of a normalisation's scale and shift: LyCORIS' `train_norm`.

use candle_core::{DType, Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::error::{Error, Result};

/// γ' = γ + m · `w_norm`, β' = β + m · `b_norm`.
#[derive(Debug, Clone)]
pub struct Norm {
    /// (width).
    pub weight: Option<Tensor>,
    /// (width).
    pub bias: Option<Tensor>,
}

impl Algorithm for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn weight(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        match &self.weight {
            Some(weight) => Ok(math::f32_on(weight, device)?.reshape(shape)?),
            None => Ok(Tensor::zeros(shape, DType::F32, device)?),
        }
    }

    fn changes_weight(&self) -> bool {
        self.weight.is_some()
    }

    fn bias(&self) -> Result<Option<Tensor>> {
        self.bias.as_ref().map(math::f32_of).transpose()
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let named = [(".w_norm", &self.weight), (".b_norm", &self.bias)];
        Ok(named.into_iter().filter_map(|(name, tensor)| Some((name, tensor.clone()?))).collect())
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::Norm(Self {
            weight: self.weight.as_ref().map(&mut *f).transpose()?,
            bias: self.bias.as_ref().map(f).transpose()?,
        }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        if shape.len() != 1 {
            return Err(Error::invalid(format!(
                "`.w_norm` and `.b_norm` are for normalisations, the model's weight here is {shape:?}"
            )));
        }
        for (suffix, tensor) in self.tensors()? {
            math::check_bias(suffix, tensor.dims(), shape)?;
        }
        Ok(())
    }
}
