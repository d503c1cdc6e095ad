//! Latent consistency models (<https://arxiv.org/abs/2310.04378>, algorithm 3): each look is already the picture; the
//! next level is reached with fresh noise. diffusers' `LCMScheduler`.
//!
//! The boundary condition c_skip, which diffusers multiplies in, is at most 7e-6 on LCM's timesteps (t ≥ 19) and is
//! left out, as in k-diffusion's descendants.

use candle_core::Tensor;

use super::Walk;
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    for i in 0..walk.steps() {
        let (_, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        x = walk.add_noise(&denoised, i, sigma_next)?;
    }
    Ok(x)
}
