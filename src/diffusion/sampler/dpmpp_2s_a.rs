//! Ancestral DPM-Solver++(2S) (<https://arxiv.org/abs/2211.01095>, algorithm 1; k-diffusion's
//! `sample_dpmpp_2s_ancestral`): two looks a step, then fresh noise.

use candle_core::Tensor;

use super::{
    Walk,
    walk::{ancestral_step, towards},
};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    let eta = walk.eta(1.0);
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        let (sigma_down, sigma_up) = ancestral_step(sigma, sigma_next, eta);
        if sigma_down == 0.0 {
            x = towards(&x, &denoised, sigma, 0.0)?;
        } else {
            let sigma_mid = (sigma * sigma_down).sqrt(); // r = 1/2 in log sigma
            let x_2 = towards(&x, &denoised, sigma, sigma_mid)?;
            let denoised_2 = walk.denoise_between(&x_2, sigma_mid)?;
            x = towards(&x, &denoised_2, sigma, sigma_down)?;
        }
        x = walk.add_noise(&x, i, sigma_up)?;
    }
    Ok(x)
}
