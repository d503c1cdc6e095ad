//! Ancestral Euler: an Euler step a little too far, then fresh noise (k-diffusion's `sample_euler_ancestral`).

use candle_core::Tensor;

use super::{
    Walk,
    walk::{ancestral_step, towards},
};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, x: Tensor) -> Result<Tensor> {
    let eta = walk.eta(1.0);
    ancestral(walk, x, eta)
}

pub(super) fn ancestral(walk: &mut Walk<'_>, mut x: Tensor, eta: f64) -> Result<Tensor> {
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        let (sigma_down, sigma_up) = ancestral_step(sigma, sigma_next, eta);
        x = towards(&x, &denoised, sigma, sigma_down)?;
        x = walk.add_noise(&x, i, sigma_up)?;
    }
    Ok(x)
}
