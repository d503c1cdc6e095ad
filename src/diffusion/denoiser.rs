//! The one seam between networks and solvers: (x, sigma) → x0.

use candle_core::{DType, Tensor};

use super::{Guidance, NoiseSchedule, Rows};
use crate::error::Result;

/// Guesses the clean latents. All a solver knows of the world.
pub trait Denoiser {
    /// # Shapes
    /// - `x` (= x0 + sigma · noise): (b, h, w, c) → x0: (b, h, w, c)
    ///
    /// # Errors
    /// Whatever the network returns.
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor>;
}

impl<F: FnMut(&Tensor, f64) -> Result<Tensor>> Denoiser for F {
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        self(x, sigma)
    }
}

/// A network with its conditioning: what the pipeline provides.
pub trait Model {
    /// # Shapes
    /// - `x`: (n, h, w, c) in the network's own scale, f32 → its raw output, (n, h, w, c) in any float type
    ///
    /// `rows` says which prompt the rows belong to; the timestep may be fractional.
    ///
    /// # Errors
    /// Whatever the network returns.
    fn predict(&mut self, x: &Tensor, timestep: f64, rows: Rows) -> Result<Tensor>;
}

/// Makes a [`Denoiser`] of a network that predicts noise, v or x0 at discrete timesteps.
#[derive(Debug)]
pub struct ModelDenoiser<'a, M> {
    model: M,
    schedule: &'a NoiseSchedule,
    guidance: Guidance,
}

impl<'a, M: Model> ModelDenoiser<'a, M> {
    /// Wraps `model`, trained on `schedule`.
    pub fn new(model: M, schedule: &'a NoiseSchedule, guidance: Guidance) -> Self {
        Self { model, schedule, guidance }
    }
}

impl<M: Model> Denoiser for ModelDenoiser<'_, M> {
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        let x = x.to_dtype(DType::F32)?;
        let c_in = 1.0 / sigma.hypot(1.0); // sqrt(ᾱ)
        let output = self.guidance.predict(&mut self.model, &(&x * c_in)?, self.schedule.t(sigma))?;
        self.schedule.prediction.to_x0(&x, &output, sigma)
    }
}
