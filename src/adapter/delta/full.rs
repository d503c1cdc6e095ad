//! The difference itself: LyCORIS' `full`.

use candle_core::{DType, Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::error::Result;

/// W' = W + m · diff, b' = b + m · `diff_b`. Either may be missing; a layer without a bias gets one.
#[derive(Debug, Clone)]
pub struct Full {
    /// In the base weight's shape, or another of as many values (a 1×1 convolution as a matrix).
    pub weight: Option<Tensor>,
    /// (out).
    pub bias: Option<Tensor>,
}

impl Algorithm for Full {
    fn name(&self) -> &'static str {
        "full"
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
        let named = [(".diff", &self.weight), (".diff_b", &self.bias)];
        Ok(named.into_iter().filter_map(|(name, tensor)| Some((name, tensor.clone()?))).collect())
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::Full(Self {
            weight: self.weight.as_ref().map(&mut *f).transpose()?,
            bias: self.bias.as_ref().map(f).transpose()?,
        }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        if let Some(weight) = &self.weight {
            math::check_same_weight(".diff", weight.dims(), shape)?;
        }
        match &self.bias {
            Some(bias) => math::check_bias(".diff_b", bias.dims(), shape),
            None => Ok(()),
        }
    }
}
