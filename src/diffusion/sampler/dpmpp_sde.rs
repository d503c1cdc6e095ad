//! Stochastic DPM-Solver++ (k-diffusion's `sample_dpmpp_sde` with r = 1/2): two looks a step, with the noise of one
//! Brownian motion for both.

use candle_core::Tensor;

use super::{
    Walk,
    walk::{ancestral_step, lerp, towards},
};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    let eta = walk.eta(1.0);
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        if sigma_next == 0.0 {
            x = towards(&x, &denoised, sigma, 0.0)?;
            continue;
        }
        let sigma_mid = (sigma * sigma_next).sqrt();
        let (noise_mid, noise_next) = walk.brownian(&x, i, [sigma, sigma_mid, sigma_next])?;
        let s_noise = walk.options.s_noise;

        // Step 1: to the middle
        let (sigma_down, sigma_up) = ancestral_step(sigma, sigma_mid, eta);
        let x_2 = towards(&x, &denoised, sigma, sigma_down)?;
        let x_2 = lerp(&x_2, 1.0, &noise_mid, sigma_up * s_noise)?;
        let denoised_2 = walk.denoise_between(&x_2, sigma_mid)?;

        // Step 2: the whole way with what was seen there (fac = 1 / 2r = 1)
        let (sigma_down, sigma_up) = ancestral_step(sigma, sigma_next, eta);
        x = towards(&x, &denoised_2, sigma, sigma_down)?;
        x = lerp(&x, 1.0, &noise_next, sigma_up * s_noise)?;
    }
    Ok(x)
}
