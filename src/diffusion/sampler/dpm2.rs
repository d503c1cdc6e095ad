//! DPM-Solver-2 as k-diffusion writes it (`sample_dpm_2`, diffusers' `KDPM2DiscreteScheduler`): a look at the geometric
//! middle, then the whole step with the slope found there. Two looks a step.

use candle_core::Tensor;

use super::{
    Walk,
    walk::{lerp, towards},
};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        if sigma_next == 0.0 {
            x = towards(&x, &denoised, sigma, sigma_next)?;
            continue;
        }
        let sigma_mid = (sigma * sigma_next).sqrt();
        let x_2 = towards(&x, &denoised, sigma, sigma_mid)?;
        let denoised_2 = walk.denoise_between(&x_2, sigma_mid)?;
        let d_2 = lerp(&x_2, 1.0 / sigma_mid, &denoised_2, -1.0 / sigma_mid)?;
        x = (x + (d_2 * (sigma_next - sigma))?)?;
    }
    Ok(x)
}
