//! What every solver needs: the denoiser, the levels, noise and somebody to tell.

use candle_core::Tensor;

use super::{Noise, SampleOptions, StepInfo};
use crate::{
    diffusion::Denoiser,
    error::{Error, Result},
    random::{Rng, Stream},
};

/// Added to the step for the second noise a step may need, so that indices never meet.
const SECOND_NOISE: u64 = 1 << 32;

/// One walk from noise to a picture.
pub(super) struct Walk<'a> {
    pub denoiser: &'a mut dyn Denoiser,
    pub sigmas: &'a [f64],
    pub options: &'a SampleOptions,
    pub on_step: &'a mut dyn FnMut(StepInfo<'_>) -> Result<()>,
}

impl Walk<'_> {
    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.sigmas.len().saturating_sub(1)
    }

    /// This step's level and the next.
    pub fn pair(&self, step: usize) -> (f64, f64) {
        (self.sigmas[step], self.sigmas[step + 1])
    }

    /// The network's guess at a step's own level; tells the caller of it.
    pub fn denoise(&mut self, x: &Tensor, step: usize) -> Result<Tensor> {
        let sigma = self.sigmas[step];
        let denoised = self.denoiser.denoise(x, sigma)?;
        let info = StepInfo { step: step + 1, total: self.steps(), sigma, denoised: &denoised };
        (self.on_step)(info)?;
        Ok(denoised)
    }

    /// The network's guess between two steps.
    pub fn denoise_between(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        self.denoiser.denoise(x, sigma)
    }

    /// The user's eta, or the solver's own.
    pub fn eta(&self, default: f64) -> f64 {
        self.options.eta.unwrap_or(default)
    }

    /// x + amount · (this step's noise).
    pub fn add_noise(&self, x: &Tensor, step: usize, amount: f64) -> Result<Tensor> {
        if amount == 0.0 {
            return Ok(x.clone());
        }
        let noise = self.noise(step as u64, x)?;
        Ok((x + (noise * (amount * self.options.s_noise))?)?)
    }

    /// The increments of one Brownian motion over `from → middle` and `from → to`, each scaled to unit variance: what
    /// k-diffusion takes from a Brownian tree over sigma.
    pub fn brownian(&self, x: &Tensor, step: usize, levels: [f64; 3]) -> Result<(Tensor, Tensor)> {
        let [from, middle, to] = levels;
        let first = self.noise(step as u64, x)?;
        let second = self.noise(step as u64 + SECOND_NOISE, x)?;
        let (a, b) = (from - middle, middle - to);
        let whole = lerp(&first, (a / (a + b)).sqrt(), &second, (b / (a + b)).sqrt())?;
        Ok((first, whole))
    }

    fn noise(&self, index: u64, like: &Tensor) -> Result<Tensor> {
        match &self.options.noise {
            Noise::Seeds(seeds) => {
                let (b, shape) = (like.dim(0)?, &like.dims()[1..]);
                if seeds.len() < b {
                    let found = seeds.len();
                    return Err(Error::invalid(format!("expected {b} seeds, one a picture, found {found}")));
                }
                let draw = |seed: &u64| Rng::new(*seed, Stream::Sampler, index).normal(shape, like.device());
                Ok(Tensor::stack(&seeds[..b].iter().map(draw).collect::<Result<Vec<_>>>()?, 0)?)
            }
            Noise::Recorded(noises) => {
                let (second, step) = ((index / SECOND_NOISE) as usize, (index % SECOND_NOISE) as usize);
                let position = second * self.steps() + step;
                noises.get(position).cloned().ok_or_else(|| {
                    Error::invalid(format!("no recorded noise for step {step}: found {}", noises.len()))
                })
            }
        }
    }
}

/// a x + b y.
pub(super) fn lerp(x: &Tensor, a: f64, y: &Tensor, b: f64) -> Result<Tensor> {
    Ok(((x * a)? + (y * b)?)?)
}

/// k-diffusion's `get_ancestral_step`: the level to step down to, and the noise that lifts it back to `to`.
pub(super) fn ancestral_step(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let up = (eta * (to * to * (from * from - to * to) / (from * from)).sqrt()).min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// The exact solution of the probability-flow ODE for a constant `denoised`, from `from` to `to`. Written without
/// `x + d · dt`, which cancels badly from the huge levels of zero-SNR models.
pub(super) fn towards(x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    lerp(x, to / from, denoised, 1.0 - to / from)
}
