//! Every random number of the crate, from one `u64` seed.
//!
//! Numbers are drawn on the CPU by ChaCha8 and then moved, so that a seed gives the same noise on every device.
//! A stream is named by what it is for and an index (a step, an image), never by what was drawn before:
//! resuming at step k needs no saved generator state.

use candle_core::{Device, Shape, Tensor};
use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::error::Result;

/// What the numbers are for. Streams of one seed never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stream {
    /// The initial noise of a picture; index = 0.
    Latents = 1,
    /// Noise that ancestral and SDE samplers add; index = solver step.
    Sampler = 2,
    /// Noise added to latents in training; index = sample count so far.
    TrainNoise = 3,
    /// Timesteps in training; index = sample count so far.
    Timesteps = 4,
    /// The order of images and captions; index = epoch.
    Shuffle = 5,
    /// The initial `lora_down`; index = layer number.
    AdapterInit = 6,
    /// Caption and network dropout; index = sample count so far.
    Dropout = 7,
    /// Sampling the VAE's posterior; index = image number.
    Vae = 8,
    /// Random weights of tests and benchmarks; index = tensor number.
    Weights = 9,
    /// Tag order and caption dropout; index = sample count so far.
    Captions = 10,
    /// Crops and mirroring; index = sample count so far.
    Augment = 11,
    /// What merging adapters drops and where a randomised decomposition starts; index = tensor number.
    Merge = 12,
}

/// A generator positioned at the start of one (seed, stream, index).
#[derive(Debug, Clone)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator for `stream` at `index`.
    pub fn new(seed: u64, stream: Stream, index: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(stream as u64);
        Self(rng)
    }

    /// Standard normal f32 values of the given shape.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn normal(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count()).map(|_| self.0.sample(StandardNormal)).collect();
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// f32 values uniform in `[low, high)`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn uniform(
        &mut self,
        low: f32,
        high: f32,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> =
            (0..shape.elem_count()).map(|_| low + (high - low) * self.0.random::<f32>()).collect();
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// A number uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.0.random()
    }

    /// A whole number uniform in `0..n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { self.0.random_range(0..n as u64) as usize }
    }

    /// Shuffles in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_reproducible_and_distinct() -> Result<()> {
        let draw = |seed, stream, index| -> Result<Vec<f32>> {
            Ok(Rng::new(seed, stream, index).normal(64, &Device::Cpu)?.to_vec1()?)
        };
        let a = draw(7, Stream::Latents, 0)?;
        assert_eq!(a, draw(7, Stream::Latents, 0)?);
        for other in
            [draw(8, Stream::Latents, 0)?, draw(7, Stream::Sampler, 0)?, draw(7, Stream::Latents, 1)?]
        {
            assert_ne!(a, other);
        }
        Ok(())
    }

    /// The values are part of the product: a seed in a picture's recipe must mean the same noise for ever.
    #[test]
    fn first_values_never_change() -> Result<()> {
        let v: Vec<f32> = Rng::new(7, Stream::Latents, 0).normal(4, &Device::Cpu)?.to_vec1()?;
        assert_eq!(format!("{v:?}"), "[1.2520168, -1.2816026, 1.191635, 0.86173815]");
        Ok(())
    }

    #[test]
    fn normal_has_unit_moments() -> Result<()> {
        let v: Vec<f32> = Rng::new(1, Stream::TrainNoise, 0).normal(20_000, &Device::Cpu)?.to_vec1()?;
        let n = v.len() as f64;
        let mean = v.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let var = v.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.04, "mean {mean}, variance {var}");
        Ok(())
    }
}
