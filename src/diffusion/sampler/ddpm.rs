//! DDPM (<https://arxiv.org/abs/2006.11239>, equation 7): the process itself, run backwards with its true posterior
//! variance (diffusers' `DDPMScheduler` with `fixed_small`). Equals DDIM at eta 1.

use candle_core::Tensor;

use super::{Walk, euler_a::ancestral};
use crate::error::Result;

pub(super) fn sample(walk: &mut Walk<'_>, x: Tensor) -> Result<Tensor> {
    ancestral(walk, x, 1.0)
}
