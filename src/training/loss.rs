//! What a training step minimises: the squared error of the network's prediction, weighted by noise level.

use candle_core::{DType, Tensor};

use crate::{
    diffusion::{NoiseSchedule, Prediction},
    error::Result,
    random::{Rng, Stream},
};

/// Noise and timesteps of a batch, and what the network should have said.
#[derive(Debug)]
pub struct Noised {
    /// What the network is shown (b, h, w, c).
    pub noisy: Tensor,
    /// One timestep a sample.
    pub timesteps: Vec<usize>,
    /// What it should say (b, h, w, c).
    pub target: Tensor,
}

/// How a batch is noised.
#[derive(Debug, Clone, Copy)]
pub struct NoiseOptions {
    /// The run's seed.
    pub seed: u64,
    /// Adds this much noise that is equal over a whole channel: lets a model learn very dark and very bright pictures
    /// (<https://www.crosslabs.org/blog/diffusion-with-offset-noise>). 0 is off; 0.05 is usual.
    pub offset: f64,
}

/// Noises each sample to its own timestep. A sample's noise follows from the seed and its number in the run, never from
/// its batch.
///
/// # Shapes
/// - `latents`: (b, h, w, c), f32; `samples`: b numbers
///
/// # Errors
/// If the device has no room.
pub fn add_noise(
    schedule: &NoiseSchedule,
    latents: &Tensor,
    samples: &[u64],
    options: NoiseOptions,
) -> Result<Noised> {
    let (device, shape) = (latents.device(), &latents.dims()[1..]);
    let channels = latents.dim(latents.rank() - 1)?;
    let mut timesteps = Vec::with_capacity(samples.len());
    let mut noises = Vec::with_capacity(samples.len());
    for &sample in samples {
        timesteps.push(Rng::new(options.seed, Stream::Timesteps, sample).below(schedule.timesteps()));
        let mut rng = Rng::new(options.seed, Stream::TrainNoise, sample);
        let mut noise = rng.normal(shape, device)?;
        if options.offset > 0.0 {
            let offset = (rng.normal(channels, device)? * options.offset)?;
            noise = noise.broadcast_add(&offset)?;
        }
        noises.push(noise);
    }
    let noise = Tensor::stack(&noises, 0)?; // (b, h, w, c)
    let noisy = schedule.add_noise(latents, &noise, &timesteps)?;
    let target = schedule.prediction.target(schedule, latents, &noise, &timesteps)?;
    Ok(Noised { noisy, timesteps, target })
}

/// The mean over samples of weight · mean squared error.
///
/// # Shapes
/// - `prediction`, `target`: (b, …); `weights`: b → a scalar, f32
///
/// # Errors
/// If shapes disagree.
pub fn weighted_mse(prediction: &Tensor, target: &Tensor, weights: &[f64]) -> Result<Tensor> {
    let error = (prediction.to_dtype(DType::F32)? - target)?.sqr()?;
    let per_sample = error.flatten_from(1)?.mean(1)?; // (b)
    let weights: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
    let weights = Tensor::from_vec(weights, per_sample.shape(), per_sample.device())?;
    Ok((per_sample * weights)?.mean_all()?)
}

/// Min-SNR-γ (<https://arxiv.org/abs/2303.09556>): how much each timestep counts, so that easy, nearly clean pictures do
/// not drown the rest. `None` counts all alike.
///
/// # Errors
/// If a timestep is outside the schedule.
pub fn min_snr_weights(
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    gamma: Option<f64>,
) -> Result<Vec<f64>> {
    let Some(gamma) = gamma else { return Ok(vec![1.0; timesteps.len()]) };
    let weight = |&t: &usize| {
        let snr = schedule.snr(t)?;
        let clipped = snr.min(gamma);
        Ok(match schedule.prediction {
            Prediction::Epsilon => clipped / snr,
            Prediction::VPrediction => clipped / (snr + 1.0),
            Prediction::Sample => clipped,
        })
    };
    timesteps.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn min_snr_counts_clean_pictures_less() -> Result<()> {
        let eps = NoiseSchedule::stable_diffusion(Prediction::Epsilon);
        let v = NoiseSchedule::stable_diffusion(Prediction::VPrediction);
        let (clean, noisy) = (eps.snr(10)?, eps.snr(900)?);
        assert!(clean > 5.0 && noisy < 5.0);
        assert_eq!(min_snr_weights(&eps, &[10, 900], Some(5.0))?, [5.0 / clean, 1.0]);
        assert_eq!(min_snr_weights(&v, &[10, 900], Some(5.0))?, [5.0 / (clean + 1.0), noisy / (noisy + 1.0)]);
        assert_eq!(min_snr_weights(&eps, &[10], None)?, [1.0]);
        Ok(())
    }

    #[test]
    fn a_sample_does_not_depend_on_its_batch() -> Result<()> {
        let schedule = NoiseSchedule::stable_diffusion(Prediction::VPrediction);
        let latents = Rng::new(0, Stream::Weights, 0).normal((2, 4, 4, 3), &Device::Cpu)?;
        let options = NoiseOptions { seed: 9, offset: 0.1 };
        let both = add_noise(&schedule, &latents, &[6, 7], options)?;
        let one = add_noise(&schedule, &latents.narrow(0, 1, 1)?, &[7], options)?;
        let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        assert_eq!(both.timesteps[1..], one.timesteps);
        assert_eq!(values(&both.noisy.narrow(0, 1, 1)?)?, values(&one.noisy)?);
        assert_eq!(values(&both.target.narrow(0, 1, 1)?)?, values(&one.target)?);

        // weight · mean squared error, averaged over samples
        let prediction = (&both.target
            + Tensor::new(&[[[[1f32]]], [[[3.0]]]], &Device::Cpu)?.broadcast_as((2, 4, 4, 3))?)?;
        let loss = weighted_mse(&prediction, &both.target, &[2.0, 0.5])?.to_scalar::<f32>()?;
        assert!((loss - (2.0 * 1.0 + 0.5 * 9.0) / 2.0).abs() < 1e-5, "{loss}");
        Ok(())
    }
}
