//! Which noise levels a picture passes through.

use std::{fmt, str::FromStr};

use super::{NoiseSchedule, schedule::linspace};
use crate::error::{Error, Result};

/// Karras et al.'s exponent.
const RHO: f64 = 7.0;

/// How noise levels are spread over the steps. Each gives `steps` falling levels and a final 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SigmaSchedule {
    /// Even in timesteps from the last to the first: k-diffusion's `get_sigmas`, ComfyUI's `normal`, A1111's `Uniform`.
    /// The solvers that diffusers defines on timesteps (ddim, ddpm, unipc, lcm) follow the model's own spacing instead.
    #[default]
    Normal,
    /// Even in sigma^(1/7): equation 5 of <https://arxiv.org/abs/2206.00364>. Spends more steps on fine detail.
    Karras,
    /// Even in log sigma.
    Exponential,
    /// Even in timesteps, stopping one step before the first: Stability's sgm, ComfyUI's `sgm_uniform`.
    SgmUniform,
    /// Every (T / steps)-th entry of the table counted from its end: ComfyUI's `simple`.
    Simple,
}

impl SigmaSchedule {
    /// Every schedule, in the order shown to users.
    pub const ALL: [Self; 5] =
        [Self::Normal, Self::Karras, Self::Exponential, Self::SgmUniform, Self::Simple];

    /// `steps` strictly falling noise levels, then 0.
    ///
    /// # Errors
    /// If `steps` is 0 or exceeds the training timesteps.
    pub fn sigmas(self, schedule: &NoiseSchedule, steps: usize) -> Result<Vec<f64>> {
        check_steps(schedule, steps)?;
        let (sigma_min, sigma_max) = schedule.sigma_range();
        let last = (schedule.timesteps() - 1) as f64;
        let mut sigmas: Vec<f64> = match self {
            Self::Normal => linspace(last, 0.0, steps).into_iter().map(|t| schedule.sigma(t)).collect(),
            Self::SgmUniform => {
                linspace(last, 0.0, steps + 1).into_iter().take(steps).map(|t| schedule.sigma(t)).collect()
            }
            Self::Karras => linspace(sigma_max.powf(1.0 / RHO), sigma_min.powf(1.0 / RHO), steps)
                .into_iter()
                .map(|s| s.powf(RHO))
                .collect(),
            Self::Exponential => {
                linspace(sigma_max.ln(), sigma_min.ln(), steps).into_iter().map(f64::exp).collect()
            }
            Self::Simple => {
                let stride = schedule.timesteps() as f64 / steps as f64;
                (0..steps).map(|i| schedule.sigma(last - (i as f64 * stride).floor())).collect()
            }
        };
        sigmas.push(0.0);
        Ok(sigmas)
    }

    /// The name in configuration files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::SgmUniform => "sgm_uniform",
            Self::Simple => "simple",
        }
    }

    /// The name A1111 writes as `Schedule type`.
    pub fn display_name(self) -> &'static str {
        match self {
            Self::Normal => "Uniform",
            Self::Karras => "Karras",
            Self::Exponential => "Exponential",
            Self::SgmUniform => "SGM Uniform",
            Self::Simple => "Simple",
        }
    }
}

pub(super) fn check_steps(schedule: &NoiseSchedule, steps: usize) -> Result<()> {
    let most = schedule.timesteps();
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(Error::invalid(format!("expected 1 to {most} steps, found {steps}")))
}

/// The noise levels an img2img run has left: the last `int(steps · strength)` steps, as in diffusers.
///
/// At strength 1 nothing of the picture survives; at 0 no step is left and the picture comes back unchanged.
///
/// # Errors
/// If `strength` is not between 0 and 1.
pub fn img2img_tail(sigmas: &[f64], strength: f64) -> Result<&[f64]> {
    if !(0.0..=1.0).contains(&strength) {
        return Err(Error::invalid(format!("expected a strength between 0 and 1, found {strength}")));
    }
    let steps = sigmas.len().saturating_sub(1);
    let kept = ((steps as f64 * strength) as usize).min(steps);
    Ok(&sigmas[steps - kept..])
}

impl FromStr for SigmaSchedule {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.trim().to_lowercase().replace([' ', '-'], "_").as_str() {
            "normal" | "uniform" | "automatic" => Ok(Self::Normal),
            "karras" => Ok(Self::Karras),
            "exponential" => Ok(Self::Exponential),
            "sgm_uniform" => Ok(Self::SgmUniform),
            "simple" => Ok(Self::Simple),
            _ => Err(Error::unknown("schedule", s, Self::ALL.map(Self::name))),
        }
    }
}

impl fmt::Display for SigmaSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Prediction;

    #[test]
    fn every_schedule_falls_to_zero() -> Result<()> {
        for noise in [
            NoiseSchedule::stable_diffusion(Prediction::Epsilon),
            NoiseSchedule::stable_diffusion(Prediction::VPrediction).with_zero_terminal_snr()?,
        ] {
            for schedule in SigmaSchedule::ALL {
                for steps in [1, 2, 3, 7, 20, 333, 1000] {
                    let sigmas = schedule.sigmas(&noise, steps)?;
                    assert_eq!((sigmas.len(), sigmas.last()), (steps + 1, Some(&0.0)), "{schedule} {steps}");
                    assert!(sigmas.windows(2).all(|w| w[0] > w[1] && w[0].is_finite()), "{schedule} {steps}");
                }
                assert_eq!(schedule.name().parse::<SigmaSchedule>()?, schedule);
                assert_eq!(schedule.display_name().parse::<SigmaSchedule>()?, schedule);
            }
        }
        assert!(
            SigmaSchedule::Normal.sigmas(&NoiseSchedule::stable_diffusion(Prediction::Epsilon), 0).is_err()
        );
        Ok(())
    }

    #[test]
    fn whole_timesteps_survive_the_round_trip() {
        let schedule = NoiseSchedule::stable_diffusion(Prediction::Epsilon);
        for t in [0.0, 1.0, 500.0, 500.5, 998.0, 999.0] {
            assert!((schedule.t(schedule.sigma(t)) - t).abs() < 1e-9, "{t}");
        }
        assert_eq!((schedule.t(0.0), schedule.t(1e9)), (0.0, 999.0));
    }

    #[test]
    fn img2img_keeps_the_tail() -> Result<()> {
        let sigmas = [4.0, 3.0, 2.0, 1.0, 0.0];
        assert_eq!(img2img_tail(&sigmas, 0.5)?, [2.0, 1.0, 0.0]);
        assert_eq!(img2img_tail(&sigmas, 1.0)?, sigmas);
        assert_eq!(img2img_tail(&sigmas, 0.0)?, [0.0]);
        assert!(img2img_tail(&sigmas, 1.5).is_err());
        Ok(())
    }
}
