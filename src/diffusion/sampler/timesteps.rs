//! The timesteps of the solvers that diffusers defines on whole timesteps, as noise levels.

use super::Sampler;
use crate::{
    diffusion::{NoiseSchedule, TimestepSpacing, schedule::linspace},
    error::{Error, Result},
};

/// The teacher's number of steps that latent consistency models are distilled from.
pub(super) const LCM_ORIGIN_STEPS: usize = 50;

/// `DDIMScheduler.set_timesteps` and `DDPMScheduler.set_timesteps`.
///
/// With `leading` spacing (and whenever the steps divide T) this is diffusers' walk exactly. Otherwise diffusers' DDIM
/// labels its steps `T / n` apart while looking at rounded timesteps; here each step ends where the next one looks.
pub(super) fn ddim(noise: &NoiseSchedule, steps: usize, sampler: Sampler) -> Vec<f64> {
    let t = noise.timesteps();
    let timesteps = match noise.timestep_spacing.unwrap_or(TimestepSpacing::Leading) {
        TimestepSpacing::Leading => leading(steps, t / steps, noise.steps_offset),
        TimestepSpacing::Trailing => trailing(steps, t),
        TimestepSpacing::Linspace => {
            linspace((t - 1) as f64, 0.0, steps).into_iter().map(round_half_even).collect()
        }
    };
    let mut sigmas = levels(noise, &timesteps);
    // A last look at timestep 0 is already at the final level: then there is no noise left to keep.
    let first = noise.sigma_vp(0);
    let keeps_noise = sampler == Sampler::Ddim && !noise.set_alpha_to_one;
    sigmas.push(if keeps_noise && sigmas.last().is_some_and(|s| *s > first) { first } else { 0.0 });
    sigmas
}

/// `UniPCMultistepScheduler.set_timesteps`: one more timestep than needed, the lowest dropped.
pub(super) fn unipc(noise: &NoiseSchedule, steps: usize) -> Vec<f64> {
    let t = noise.timesteps();
    let mut timesteps = match noise.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Leading => leading(steps + 1, t / (steps + 1), noise.steps_offset),
        TimestepSpacing::Trailing => trailing(steps, t),
        TimestepSpacing::Linspace => {
            linspace((t - 1) as f64, 0.0, steps + 1).into_iter().map(round_half_even).collect()
        }
    };
    timesteps.truncate(steps);
    timesteps.dedup();
    let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| noise.sigma(t as f64)).collect();
    sigmas.push(0.0);
    sigmas
}

/// `LCMScheduler.set_timesteps`: an even choice of the teacher's 50 timesteps.
pub(super) fn lcm(noise: &NoiseSchedule, steps: usize) -> Result<Vec<f64>> {
    if steps > LCM_ORIGIN_STEPS {
        return Err(Error::invalid(format!(
            "expected at most {LCM_ORIGIN_STEPS} steps for lcm, found {steps}"
        ))
        .with_hint("lcm needs 4 to 8 steps"));
    }
    let stride = (noise.timesteps() / LCM_ORIGIN_STEPS).max(1);
    let timesteps: Vec<usize> = (0..steps)
        .map(|i| LCM_ORIGIN_STEPS - i * LCM_ORIGIN_STEPS / steps) // the teacher's steps, counted from 1
        .map(|k| k * stride - 1)
        .collect();
    let mut sigmas = levels(noise, &timesteps);
    sigmas.push(0.0);
    Ok(sigmas)
}

fn leading(steps: usize, stride: usize, offset: usize) -> Vec<usize> {
    (0..steps).rev().map(|i| i * stride + offset).collect()
}

fn trailing(steps: usize, t: usize) -> Vec<usize> {
    let stride = t as f64 / steps as f64;
    (0..steps).map(|i| round_half_even(t as f64 - i as f64 * stride).saturating_sub(1)).collect()
}

fn levels(noise: &NoiseSchedule, timesteps: &[usize]) -> Vec<f64> {
    let mut timesteps: Vec<usize> = timesteps.iter().map(|t| (*t).min(noise.timesteps() - 1)).collect();
    timesteps.dedup(); // many steps with an offset would meet at the last timestep
    timesteps.into_iter().map(|t| noise.sigma_vp(t)).collect()
}

/// numpy's rounding.
fn round_half_even(x: f64) -> usize {
    x.round_ties_even().max(0.0) as usize
}
