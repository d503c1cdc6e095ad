//! The solvers, one a file: each walks from noise to a picture over a [`Denoiser`], in its paper's notation.

mod ddim;
mod ddpm;
mod dpm2;
mod dpmpp_2m;
mod dpmpp_2m_sde;
mod dpmpp_2s_a;
mod dpmpp_sde;
mod euler;
mod euler_a;
mod heun;
mod lcm;
mod names;
mod timesteps;
mod unipc;
mod walk;

use candle_core::{DType, Tensor};

use self::walk::Walk;
use super::{Denoiser, NoiseSchedule, SigmaSchedule, sigmas::check_steps};
use crate::error::{Error, Result};

/// A solver. [`str::parse`] takes these names, A1111's (`DPM++ 2M`), k-diffusion's (`k_euler_a`) and diffusers' classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)] // the names say it; each file explains its solver
pub enum Sampler {
    Ddim,
    Ddpm,
    #[default]
    Euler,
    EulerA,
    Heun,
    Dpm2,
    Dpmpp2m,
    Dpmpp2sA,
    DpmppSde,
    Dpmpp2mSde,
    Unipc,
    Lcm,
}

/// Where the noise of ancestral and SDE solvers comes from.
#[derive(Debug, Clone)]
pub enum Noise {
    /// One seed a picture of the batch, so that a picture does not depend on its neighbours.
    Seeds(Vec<u64>),
    /// Recorded noise by index: replays what another program drew.
    Recorded(Vec<Tensor>),
}

/// What a solver may be told.
#[derive(Debug, Clone)]
pub struct SampleOptions {
    /// How much fresh noise a stochastic solver adds: 0 none, 1 as much as the process itself. `None` is the solver's
    /// own default (0 for ddim, 1 for the others). Solvers without noise ignore it; ddpm is always 1.
    pub eta: Option<f64>,
    /// Scales the added noise; 1 unless experimenting.
    pub s_noise: f64,
    /// Where that noise comes from.
    pub noise: Noise,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { eta: None, s_noise: 1.0, noise: Noise::Seeds(vec![0]) }
    }
}

/// One finished look at the picture.
#[derive(Debug)]
pub struct StepInfo<'a> {
    /// The step, from 1.
    pub step: usize,
    /// How many there are.
    pub total: usize,
    /// The noise level the network was shown.
    pub sigma: f64,
    /// The clean latents it guessed, (b, h, w, c).
    pub denoised: &'a Tensor,
}

impl Sampler {
    /// Every solver, in the order shown to users.
    pub const ALL: [Self; 12] = [
        Self::Ddim,
        Self::Ddpm,
        Self::Euler,
        Self::EulerA,
        Self::Heun,
        Self::Dpm2,
        Self::Dpmpp2m,
        Self::Dpmpp2sA,
        Self::DpmppSde,
        Self::Dpmpp2mSde,
        Self::Unipc,
        Self::Lcm,
    ];

    /// The noise levels to walk: `steps` falling ones and the last, 0 except for DDIM on a model whose configuration
    /// says `set_alpha_to_one: false` (every released Stable Diffusion), which ends on the noise of timestep 0.
    ///
    /// With [`SigmaSchedule::Normal`], ddim, ddpm, unipc and lcm take diffusers' timesteps for the model's
    /// `timestep_spacing` and `steps_offset`; lcm always does.
    ///
    /// # Errors
    /// If `steps` is 0 or more than the solver can take.
    pub fn sigmas(self, noise: &NoiseSchedule, schedule: SigmaSchedule, steps: usize) -> Result<Vec<f64>> {
        check_steps(noise, steps)?;
        match (self, schedule) {
            (Self::Lcm, _) => timesteps::lcm(noise, steps),
            (Self::Ddim | Self::Ddpm, SigmaSchedule::Normal) => Ok(timesteps::ddim(noise, steps, self)),
            (Self::Unipc, SigmaSchedule::Normal) => Ok(timesteps::unipc(noise, steps)),
            _ => schedule.sigmas(noise, steps),
        }
    }

    /// The most steps [`Sampler::sigmas`] takes.
    pub fn most_steps(self, noise: &NoiseSchedule) -> usize {
        match self {
            Self::Lcm => timesteps::LCM_ORIGIN_STEPS.min(noise.timesteps()),
            _ => noise.timesteps(),
        }
    }

    /// Walks `x` down `sigmas` and returns the clean latents in the network's own scale.
    ///
    /// `on_step` sees every step and stops the walk by returning an error ([`Error::Cancelled`], usually). With one
    /// level or none in `sigmas` there is nothing to do and `x` comes back.
    ///
    /// # Shapes
    /// - `x` (= x0 + `sigmas[0]` · noise): (b, h, w, c) → (b, h, w, c) f32
    ///
    /// # Errors
    /// Whatever the denoiser or `on_step` return; if `sigmas` do not fall; if there are more pictures than seeds.
    pub fn sample(
        self,
        denoiser: &mut dyn Denoiser,
        x: &Tensor,
        sigmas: &[f64],
        options: &SampleOptions,
        on_step: &mut dyn FnMut(StepInfo<'_>) -> Result<()>,
    ) -> Result<Tensor> {
        check_sigmas(sigmas)?;
        let x = x.to_dtype(DType::F32)?;
        let mut walk = Walk { denoiser, sigmas, options, on_step };
        let walk = &mut walk;
        let x = match self {
            Self::Ddim => ddim::sample(walk, x)?,
            Self::Ddpm => ddpm::sample(walk, x)?,
            Self::Euler => euler::sample(walk, x)?,
            Self::EulerA => euler_a::sample(walk, x)?,
            Self::Heun => heun::sample(walk, x)?,
            Self::Dpm2 => dpm2::sample(walk, x)?,
            Self::Dpmpp2m => dpmpp_2m::sample(walk, x)?,
            Self::Dpmpp2sA => dpmpp_2s_a::sample(walk, x)?,
            Self::DpmppSde => dpmpp_sde::sample(walk, x)?,
            Self::Dpmpp2mSde => dpmpp_2m_sde::sample(walk, x)?,
            Self::Unipc => unipc::sample(walk, x)?,
            Self::Lcm => lcm::sample(walk, x)?,
        };
        // Back from x0 + sigma · noise to the network's coordinates; nothing to do when the walk ended at 0.
        match sigmas.last() {
            Some(&sigma) if sigma > 0.0 => Ok((x * (1.0 / sigma.hypot(1.0)))?),
            _ => Ok(x),
        }
    }

    /// True if the solver adds noise as it goes (with its default eta).
    pub fn is_stochastic(self) -> bool {
        !matches!(self, Self::Ddim | Self::Euler | Self::Heun | Self::Dpm2 | Self::Dpmpp2m | Self::Unipc)
    }
}

fn check_sigmas(sigmas: &[f64]) -> Result<()> {
    let falling = sigmas.windows(2).all(|w| w[0] > w[1]);
    if falling && sigmas.iter().all(|s| s.is_finite() && *s >= 0.0) {
        return Ok(());
    }
    Err(Error::invalid(format!("expected falling, finite noise levels, found {sigmas:?}")))
}

#[cfg(test)]
mod tests;
