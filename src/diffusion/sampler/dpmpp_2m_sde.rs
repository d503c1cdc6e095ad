//! Stochastic DPM-Solver++(2M), midpoint form (k-diffusion's `sample_dpmpp_2m_sde`; diffusers'
//! `DPMSolverMultistepScheduler` with `sde-dpmsolver++`). One look a step.

use candle_core::Tensor;

use super::{Walk, walk::lerp};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    let eta = walk.eta(1.0);
    let mut old: Option<(Tensor, f64)> = None; // the last look, and the last step in log sigma
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        if sigma_next == 0.0 {
            return Ok(denoised);
        }
        let h = (sigma / sigma_next).ln();
        let eta_h = eta * h;
        let gain = -(-h - eta_h).exp_m1();
        x = lerp(&x, sigma_next / sigma * (-eta_h).exp(), &denoised, gain)?;
        if let Some((old_denoised, h_last)) = &old {
            let r = h_last / h;
            x = (x + ((&denoised - old_denoised)? * (0.5 * gain / r))?)?;
        }
        x = walk.add_noise(&x, i, sigma_next * (-(-2.0 * eta_h).exp_m1()).sqrt())?;
        old = Some((denoised, h));
    }
    Ok(x)
}
