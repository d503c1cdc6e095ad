//! Heun's second-order steps: algorithm 2 of <https://arxiv.org/abs/2206.00364> without churn. Two looks a step.

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
        let x_2 = towards(&x, &denoised, sigma, sigma_next)?;
        if sigma_next == 0.0 {
            x = x_2;
            continue;
        }
        let denoised_2 = walk.denoise_between(&x_2, sigma_next)?;
        let d = lerp(&x, 1.0 / sigma, &denoised, -1.0 / sigma)?;
        let d_2 = lerp(&x_2, 1.0 / sigma_next, &denoised_2, -1.0 / sigma_next)?;
        let d_prime = ((d + d_2)? * 0.5)?;
        x = (x + (d_prime * (sigma_next - sigma))?)?;
    }
    Ok(x)
}
