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

impl Full {
    pub(super) fn named(&self, weight: &'static str, bias: &'static str) -> Vec<Stored> {
        let named = [(weight, &self.weight), (bias, &self.bias)];
        named.into_iter().filter_map(|(name, tensor)| Some((name, tensor.clone()?))).collect()
    }

    pub(super) fn each(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            weight: self.weight.as_ref().map(&mut *f).transpose()?,
            bias: self.bias.as_ref().map(f).transpose()?,
        })
    }
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
        Ok(self.named(".diff", ".diff_b"))
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        self.each(f).map(Delta::Full)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{Known, LINEAR, POINT, assert_additive, assert_close};

    #[test]
    fn a_difference_is_added_to_weight_and_bias() -> Result<()> {
        let (diff, diff_b) = (Known::random(4, POINT)?, Known::random(5, &[6])?);
        let full = Full { weight: Some(diff.tensor.clone()), bias: Some(diff_b.tensor.clone()) };
        assert_additive("full", &Delta::Full(full), LINEAR, &diff.values);
        let alone = Delta::Full(Full { weight: None, bias: Some(diff_b.tensor.clone()) });
        alone.check(LINEAR)?;
        let made = alone.apply_bias(None, -2.0)?.expect("a bias where there was none");
        assert_close("a new bias", &made, &diff_b.values.iter().map(|x| -2.0 * x).collect::<Vec<_>>());
        Ok(())
    }
}
