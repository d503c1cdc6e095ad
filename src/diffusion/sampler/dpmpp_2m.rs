//! DPM-Solver++(2M) (<https://arxiv.org/abs/2211.01095>, algorithm 2): second order from the last look, one look a step.
//! k-diffusion's `sample_dpmpp_2m`, diffusers' `DPMSolverMultistepScheduler` of order 2.

use candle_core::Tensor;

use super::{
    Walk,
    walk::{lerp, towards},
};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    let mut old: Option<(Tensor, f64)> = None; // the last look, and the last step in log sigma
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        let h = (sigma / sigma_next).ln();
        let denoised_d = match &old {
            Some((old_denoised, h_last)) if sigma_next > 0.0 => {
                let r = h_last / h;
                lerp(&denoised, 1.0 + 1.0 / (2.0 * r), old_denoised, -1.0 / (2.0 * r))?
            }
            _ => denoised.clone(),
        };
        x = towards(&x, &denoised_d, sigma, sigma_next)?; // exp(−h) x − expm1(−h) denoised_d
        old = Some((denoised, h));
    }
    Ok(x)
}
