//! IA³: a factor for each input or output.

use candle_core::Tensor;

use super::{Algorithm, Delta, Stored, math};
use crate::error::Result;

/// W' = W ⊙ (1 + m · w) along outputs or inputs (<https://arxiv.org/abs/2205.05638>).
#[derive(Debug, Clone)]
pub struct Ia3 {
    /// w, with one value a channel in any shape. PEFT stores 1 + w.
    pub scale: Tensor,
    /// Along inputs rather than outputs.
    pub on_input: bool,
    /// PEFT's scales the layer's output, so its bias too.
    pub scales_bias: bool,
}

impl Ia3 {
    /// 1 + m · w.
    fn factor(&self, strength: f64, like: &Tensor) -> Result<Tensor> {
        Ok(math::f32_on(&self.scale, like.device())?.flatten_all()?.affine(strength, 1.0)?)
    }
}

impl Algorithm for Ia3 {
    fn name(&self) -> &'static str {
        "IA³"
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let along = usize::from(self.on_input);
        let mut shape = vec![1; base.dims().len()];
        shape[along] = base.dims()[along];
        Ok(base.broadcast_mul(&self.factor(strength, base)?.reshape(shape)?)?)
    }

    fn apply_bias(&self, base: Option<&Tensor>, strength: f64) -> Result<Option<Tensor>> {
        match base.filter(|_| self.scales_bias && !self.on_input && strength != 0.0) {
            Some(base) => Ok(Some((math::f32_on(base, base.device())? * self.factor(strength, base)?)?)),
            None => Ok(None),
        }
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let on_input = Tensor::new(i64::from(self.on_input), &candle_core::Device::Cpu)?;
        Ok(vec![(".weight", self.scale.clone()), (".on_input", on_input)])
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::Ia3(Self { scale: f(&self.scale)?, ..self.clone() }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        let (along, what) = if self.on_input { (1, "inputs") } else { (0, "outputs") };
        if shape.get(along).is_some_and(|n| *n == self.scale.elem_count()) {
            return Ok(());
        }
        Err(super::misfit(format!(
            "the IA³ factors {:?} are not one for each of the {what} of the model's weight {shape:?}",
            self.scale.dims()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{CONV, Known, assert_close, weight_of};

    #[test]
    fn ia3_scales_outputs_or_inputs() -> Result<()> {
        let (w, b) = (Known::random(1, CONV)?, Known::random(2, &[6])?);
        for (on_input, scales_bias, length) in [(false, false, 6), (false, true, 6), (true, true, 4)] {
            let scale = Known::random(3, &[length])?;
            let stored = scale.reshaped(&[1, length, 1, 1])?;
            let delta = Delta::Ia3(Ia3 { scale: stored, on_input, scales_bias });
            delta.check(CONV)?;
            let channel = |o: usize, i: usize| scale.at(&[if on_input { i } else { o }]);
            let expected =
                weight_of(CONV, |o, i, k| w.at(&[o, i, k / 2, k % 2]) * (1.0 + 0.8 * channel(o, i)));
            assert_close("IA³", &delta.apply(&w.tensor, 0.8)?, &expected);
            let bias = delta.apply_bias(Some(&b.tensor), 0.8)?;
            assert_eq!(bias.is_some(), scales_bias && !on_input);
            if let Some(bias) = bias {
                let expected: Vec<f64> = (0..6).map(|o| b.at(&[o]) * (1.0 + 0.8 * scale.at(&[o]))).collect();
                assert_close("IA³'s bias", &bias, &expected);
            }
        }
        Ok(())
    }
}
