//! How the learning rate changes over a run.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The shape after warm-up. Names are those of kohya and diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrShape {
    /// Stays.
    Constant,
    /// Falls evenly to 0.
    Linear,
    /// Falls to 0 along half a cosine.
    #[default]
    Cosine,
}

impl LrShape {
    /// The name in configuration files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

impl std::str::FromStr for LrShape {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = [Self::Constant, Self::Linear, Self::Cosine];
        known
            .into_iter()
            .find(|k| k.name() == s)
            .ok_or_else(|| Error::unknown("learning-rate schedule", s, known.map(Self::name)))
    }
}

/// The learning rate of every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    /// The highest rate.
    pub peak: f64,
    /// The shape after warm-up.
    pub shape: LrShape,
    /// Steps over which the rate climbs evenly from 0.
    pub warmup_steps: u64,
    /// The whole run, warm-up included.
    pub total_steps: u64,
}

impl LrSchedule {
    /// The rate of step `step`, counted from 0. The same numbers as diffusers' `get_scheduler`.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let after = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / after).min(1.0);
        self.peak
            * match self.shape {
                LrShape::Constant => 1.0,
                LrShape::Linear => 1.0 - progress,
                LrShape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// o = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    /// s = diffusers.optimization.get_scheduler(name, o, num_warmup_steps=2, num_training_steps=6)
    /// for _ in range(7): print(s.get_last_lr()); o.step(); s.step()
    /// ```
    #[test]
    fn follows_diffusers() {
        for (shape, expected) in [
            (LrShape::Constant, [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
            (LrShape::Linear, [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]),
            (LrShape::Cosine, [0.0, 1.0, 2.0, 1.707_106_8, 1.0, 0.292_893_2, 0.0]),
        ] {
            let schedule = LrSchedule { peak: 2.0, shape, warmup_steps: 2, total_steps: 6 };
            for (step, rate) in expected.into_iter().enumerate() {
                assert!((schedule.rate(step as u64) - rate).abs() < 1e-6, "{shape:?} {step}");
            }
            assert_eq!(shape.name().parse::<LrShape>().ok(), Some(shape));
        }
    }
}
