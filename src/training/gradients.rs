//! Gradients of one step: summed over batches, measured, and checked.

use candle_core::{DType, Tensor, backprop::GradStore};

use crate::{
    adapter::Trainable,
    error::{Error, Result},
    ops::foreach,
};

/// One gradient a variable, in [`Trainable::vars`]'s order.
#[derive(Debug, Default)]
pub struct Gradients(pub Vec<Option<Tensor>>);

impl Gradients {
    /// Adds a batch's gradients.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn add(&mut self, trainable: &Trainable, grads: &GradStore) -> Result<()> {
        let vars = trainable.vars();
        self.0.resize(vars.len(), None);
        for (sum, var) in self.0.iter_mut().zip(&vars) {
            let Some(grad) = grads.get(var) else { continue };
            let grad = grad.to_dtype(DType::F32)?;
            *sum = Some(match sum.take() {
                Some(sum) => (sum + grad)?,
                None => grad,
            });
        }
        Ok(())
    }

    /// The length of all gradients as one vector.
    ///
    /// # Errors
    /// If a value cannot be read back.
    pub fn norm(&self) -> Result<f64> {
        let all: Vec<&Tensor> = self.0.iter().flatten().collect();
        Ok(foreach::squares(&all)?.into_iter().sum::<f64>().sqrt())
    }

    /// The first variable, by name, whose gradient is not finite.
    ///
    /// # Errors
    /// If a value cannot be read back.
    pub fn first_bad(&self, names: &[String]) -> Result<Option<String>> {
        for (grad, name) in self.0.iter().zip(names) {
            if let Some(grad) = grad
                && !grad.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite()
            {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// What to multiply gradients by so that their length is at most `max_norm` (0 leaves them); `scale` is what they
    /// are multiplied by anyway.
    pub fn clip(norm: f64, scale: f64, max_norm: f64) -> f64 {
        let length = norm * scale;
        // torch's clip_grad_norm_ adds the same 1e-6
        if max_norm > 0.0 && length > max_norm { scale * max_norm / (length + 1e-6) } else { scale }
    }
}

/// A loss or gradient that is not a number, said for people.
pub(super) fn not_finite(step: u64, loss: f64, bad: Option<String>, captions: &[String]) -> Error {
    let what = match bad {
        Some(name) if loss.is_finite() => format!("the gradient of `{name}`"),
        _ => "the loss".to_string(),
    };
    let captions = captions.join("`, `");
    Error::invalid(format!("step {step}: {what} is not finite (captions `{captions}`)"))
        .with_hint("lower the learning rate, or use `--dtype f32`; the state before this step is kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_shortens_only_long_gradients() {
        assert_eq!(Gradients::clip(0.5, 1.0, 1.0), 1.0);
        assert_eq!(Gradients::clip(9.0, 0.5, 0.0), 0.5);
        assert!((Gradients::clip(8.0, 0.5, 1.0) * 8.0 - 1.0).abs() < 1e-5);
    }
}
