//! Changes of a normalisation's scale and shift: LyCORIS' `train_norm`.

use candle_core::{Device, Tensor};

use super::{Algorithm, Delta, Full, Stored, math};
use crate::error::Result;

/// γ' = γ + m · `w_norm`, β' = β + m · `b_norm`: a full difference by other names.
#[derive(Debug, Clone)]
pub struct Norm(pub Full);

impl Algorithm for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn weight(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        self.0.weight(shape, device)
    }

    fn changes_weight(&self) -> bool {
        self.0.changes_weight()
    }

    fn bias(&self) -> Result<Option<Tensor>> {
        self.0.bias()
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        Ok(self.0.named(".w_norm", ".b_norm"))
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::Norm(Self(self.0.each(f)?)))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        if shape.len() != 1 {
            return Err(super::misfit(format!(
                "`.w_norm` and `.b_norm` are for normalisations, the model's weight here is {shape:?}"
            )));
        }
        for (suffix, tensor) in self.tensors()? {
            math::check_bias(suffix, tensor.dims(), shape)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{Known, LINEAR, assert_close};

    #[test]
    fn a_norm_is_of_one_dimension() -> Result<()> {
        let (b, diff) = (Known::random(2, &[6])?, Known::random(5, &[6])?);
        let norm = Delta::Norm(Norm(Full { weight: Some(diff.tensor.clone()), bias: None }));
        norm.check(&[6])?;
        assert!(norm.check(LINEAR).is_err());
        let sum: Vec<f64> = b.values.iter().zip(&diff.values).map(|(w, d)| w + 0.5 * d).collect();
        assert_close("norm", &norm.apply(&b.tensor, 0.5)?, &sum);
        Ok(())
    }
}
