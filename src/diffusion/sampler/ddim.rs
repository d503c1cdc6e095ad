//! DDIM (<https://arxiv.org/abs/2010.02502>, equation 12), as diffusers' `DDIMScheduler`.
//!
//! In the coordinates used here the paper's step is an ancestral Euler step: σ_t(η)² / ᾱ_{t−1} is k-diffusion's
//! sigma_up². It differs from euler_a in its timesteps and in eta = 0.

use candle_core::Tensor;

use super::{Walk, euler_a::ancestral};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, x: Tensor) -> Result<Tensor> {
    let eta = walk.eta(0.0);
    ancestral(walk, x, eta)
}
