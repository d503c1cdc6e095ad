//! AdamW (<https://arxiv.org/abs/1711.05101>), step for step `torch.optim.AdamW`, with moments that can be saved.

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    ops::foreach::{self, AdamWSlot, AdamWStep},
};

/// torch's words and defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// How slowly the mean of gradients forgets.
    pub beta1: f64,
    /// How slowly the mean of their squares forgets.
    pub beta2: f64,
    /// Keeps the division finite.
    pub eps: f64,
    /// How fast values decay towards 0, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWConfig {
    /// # Errors
    /// If a value is out of range.
    pub fn check(&self) -> Result<()> {
        let unit = 0.0..1.0;
        if unit.contains(&self.beta1)
            && unit.contains(&self.beta2)
            && self.eps > 0.0
            && self.weight_decay >= 0.0
        {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "expected beta1 and beta2 in 0..1, eps above 0 and weight_decay from 0, found {self:?}"
        )))
    }
}

/// Variables with their learning-rate factors and moments, in a fixed order.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    steps: u64,
}

#[derive(Debug)]
struct Slot {
    var: Var,
    rate: f64,
    moments: Moments,
}

/// The running means of one variable's gradient and of its square.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Mean of gradients.
    pub m: Tensor,
    /// Mean of squared gradients.
    pub v: Tensor,
}

impl AdamW {
    /// Moments of 0 for each variable; its learning rate is the step's times the factor beside it.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(config: AdamWConfig, vars: impl IntoIterator<Item = (Var, f64)>) -> Result<Self> {
        config.check()?;
        let slot = |(var, rate): (Var, f64)| -> Result<Slot> {
            let zero = || var.as_tensor().detach().zeros_like();
            let moments = Moments { m: zero()?, v: zero()? };
            Ok(Slot { var, rate, moments })
        };
        Ok(Self { config, slots: vars.into_iter().map(slot).collect::<Result<_>>()?, steps: 0 })
    }

    /// The number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Every variable's moments, in the order given to [`AdamW::new`].
    pub fn moments(&self) -> impl Iterator<Item = &Moments> {
        self.slots.iter().map(|slot| &slot.moments)
    }

    /// Goes on from saved moments.
    ///
    /// # Errors
    /// If their number or shapes are not those of the variables.
    pub fn restore(&mut self, steps: u64, moments: Vec<Moments>) -> Result<()> {
        let fits = |slot: &Slot, saved: &Moments| {
            saved.m.shape() == slot.var.shape() && saved.v.shape() == slot.var.shape()
        };
        if moments.len() != self.slots.len() || !self.slots.iter().zip(&moments).all(|(s, m)| fits(s, m)) {
            return Err(Error::invalid("the saved optimizer state belongs to other variables"));
        }
        for (slot, saved) in self.slots.iter_mut().zip(moments) {
            let device = slot.var.device();
            slot.moments = Moments { m: saved.m.to_device(device)?, v: saved.v.to_device(device)? };
        }
        self.steps = steps;
        Ok(())
    }

    /// One step with one gradient a variable, multiplied by `grad_scale` (accumulation and clipping). Variables
    /// without a gradient are left alone, as in torch.
    ///
    /// # Errors
    /// If a gradient has another shape than its variable.
    pub fn step(&mut self, grads: &[Option<Tensor>], learning_rate: f64, grad_scale: f64) -> Result<()> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let step = AdamWStep {
            beta1,
            beta2,
            eps,
            weight_decay,
            learning_rate,
            grad_scale,
            correction1: 1.0 - beta1.powi(steps),
            correction2: (1.0 - beta2.powi(steps)).sqrt(),
        };
        let with_gradient = self.slots.iter_mut().zip(grads).filter_map(|(slot, gradient)| {
            let Moments { m, v } = &mut slot.moments;
            Some(AdamWSlot { var: &slot.var, gradient: gradient.as_ref()?, m, v, rate: slot.rate })
        });
        foreach::adamw(&mut with_gradient.collect::<Vec<_>>(), step)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// ```python
    /// p = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    /// c = torch.tensor([1.0, -2.0, 0.3])
    /// o = torch.optim.AdamW([p], lr=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    /// for i in range(5):
    ///     loss = ((p * c).sin() * (i + 1)).sum(); o.zero_grad(); loss.backward(); o.step(); print(p.tolist())
    /// ```
    /// torch 2.15.0
    const TORCH: [[f32; 3]; 5] = [
        [0.4475001, -1.045, 1.94],
        [0.3972157, -1.086966, 1.882172],
        [0.3476704, -1.12791, 1.825087],
        [0.2983479, -1.168523, 1.76825],
        [0.2490064, -1.209134, 1.71143],
    ];

    fn optimizer(p: &Var) -> Result<AdamW> {
        let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
        AdamW::new(config, [(p.clone(), 0.5)])
    }

    fn step(o: &mut AdamW, p: &Var, i: usize) -> Result<Vec<f32>> {
        let c = Tensor::new(&[1f32, -2.0, 0.3], &Device::Cpu)?;
        let loss = ((p.as_tensor() * &c)?.sin()? * (i + 1) as f64)?.sum_all()?;
        let grads = crate::ops::backward(&(loss * 4.0)?)?;
        o.step(&[grads.get(p).cloned()], 0.1, 0.25)?;
        Ok(p.to_vec1()?)
    }

    #[test]
    fn follows_torch_and_survives_a_restart() -> Result<()> {
        let p = Var::new(&[0.5f32, -1.0, 2.0], &Device::Cpu)?;
        let mut o = optimizer(&p)?;
        for (i, expected) in TORCH.iter().enumerate() {
            if i == 3 {
                // A new optimizer with the old moments goes on exactly.
                let (steps, moments) = (o.steps(), o.moments().cloned().collect());
                o = optimizer(&p)?;
                o.restore(steps, moments)?;
            }
            for (found, expected) in step(&mut o, &p, i)?.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "step {i}: {found} {expected}");
            }
        }
        let moments =
            Moments { m: Tensor::new(&[0f32], &Device::Cpu)?, v: Tensor::new(&[0f32], &Device::Cpu)? };
        assert!(o.restore(1, vec![moments]).is_err());
        Ok(())
    }
}
