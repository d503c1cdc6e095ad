//! What a network's output means, and how to get x0 or a training target from it.

use std::{fmt, str::FromStr};

use candle_core::Tensor;

use super::NoiseSchedule;
use crate::error::{Error, Result};

/// diffusers' `prediction_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prediction {
    /// The noise (SD 1, SD 2 base, SDXL).
    #[default]
    Epsilon,
    /// v = sqrt(ᾱ) noise − sqrt(1 − ᾱ) x0 (<https://arxiv.org/abs/2202.00512>; SD 2 at 768 px).
    VPrediction,
    /// x0 itself.
    Sample,
}

impl Prediction {
    /// The predicted clean latents.
    ///
    /// # Shapes
    /// - `x` (= x0 + sigma · noise), `output`: any, equal
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn to_x0(self, x: &Tensor, output: &Tensor, sigma: f64) -> Result<Tensor> {
        let scale = sigma.hypot(1.0); // 1 / sqrt(ᾱ)
        match self {
            Self::Epsilon => Ok((x - (output * sigma)?)?),
            Self::VPrediction => Ok(((x * (1.0 / (scale * scale)))? - (output * (sigma / scale))?)?),
            Self::Sample => Ok(output.clone()),
        }
    }

    /// What the network must say in training.
    ///
    /// # Shapes
    /// - `latents`, `noise`: (b, …); `timesteps`: b → (b, …)
    ///
    /// # Errors
    /// If shapes disagree or a timestep is outside the schedule.
    pub fn target(
        self,
        schedule: &NoiseSchedule,
        latents: &Tensor,
        noise: &Tensor,
        timesteps: &[usize],
    ) -> Result<Tensor> {
        match self {
            Self::Epsilon => Ok(noise.clone()),
            Self::Sample => Ok(latents.clone()),
            Self::VPrediction => {
                let (signal, noise_share) = schedule.coefficients(latents, timesteps)?;
                Ok((noise.broadcast_mul(&signal)? - latents.broadcast_mul(&noise_share)?)?)
            }
        }
    }
}

impl FromStr for Prediction {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "epsilon" | "eps" => Ok(Self::Epsilon),
            "v_prediction" | "v" => Ok(Self::VPrediction),
            "sample" | "x0" => Ok(Self::Sample),
            _ => Err(Error::unknown("prediction_type", s, ["epsilon", "v_prediction", "sample"])),
        }
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epsilon => "epsilon",
            Self::VPrediction => "v_prediction",
            Self::Sample => "sample",
        })
    }
}
