//! Diffusion over bare tensors: noise schedules, solvers and guidance. Knows no text, VAE, file or adapter.
//!
//! Solvers work in the variance-exploding coordinates of Karras et al. (<https://arxiv.org/abs/2206.00364>):
//! `x = x0 + sigma · noise`. Stable Diffusion networks live in variance-preserving ones, `x_vp = x / sqrt(1 + sigma²)`;
//! only [`ModelDenoiser`] and the last line of [`Sampler::sample`] cross between the two.

pub mod denoiser;
pub mod guidance;
pub mod prediction;
pub mod sampler;
pub mod schedule;
pub mod sigmas;

pub use denoiser::{Denoiser, Model, ModelDenoiser};
pub use guidance::{Guidance, Rows};
pub use prediction::Prediction;
pub use sampler::{Noise, SampleOptions, Sampler, StepInfo};
pub use schedule::{NoiseSchedule, TimestepSpacing};
pub use sigmas::SigmaSchedule;
