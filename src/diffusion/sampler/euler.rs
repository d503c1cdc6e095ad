//! Euler steps on the probability-flow ODE: algorithm 2 of <https://arxiv.org/abs/2206.00364> without churn.

use candle_core::Tensor;

use super::{Walk, walk::towards};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        x = towards(&x, &denoised, sigma, sigma_next)?; // x + (x − denoised) / sigma · dt
    }
    Ok(x)
}
