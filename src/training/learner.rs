//! One optimizer step: batches in, changed factors out.

use candle_core::{DType, Tensor};

use super::{
    AdamW, Base, TrainConfig,
    feed::Batch,
    gradients::{self, Gradients},
    loss::{self, NoiseOptions},
};
use crate::{
    adapter::{Trainable, TrainableSpec},
    error::Result,
    models::UNetInput,
    nn::Part,
    ops::Tape,
    progress::CancelToken,
};

/// Small gradients vanish in f16; they are multiplied by this on the way and divided at the end.
const F16_LOSS_SCALE: f64 = 1024.0;

/// A frozen model, the factors that are trained on it, and what is remembered of their gradients.
#[derive(Debug)]
pub struct Learner {
    config: TrainConfig,
    /// The model, with the factors attached.
    pub model: Base,
    /// The factors.
    pub trainable: Trainable,
    /// Their moments, in the factors' order.
    pub optimizer: AdamW,
    /// What each factor is called, in the same order.
    pub names: Vec<String>,
}

/// Batch number i of the run, of a model, recorded on a tape where the text encoders learn.
pub type NextBatch<'a> = dyn FnMut(u64, &Base, Option<&Tape>) -> Result<Batch> + 'a;

impl Learner {
    /// Attaches fresh factors to `model` where `config` says.
    ///
    /// # Errors
    /// If the model has no layer of the wanted kinds, or the device has no room.
    pub fn new(config: &TrainConfig, mut model: Base) -> Result<Self> {
        let spec = TrainableSpec { unread: model.unread(config.clip_skip), ..config.trainable() };
        let trainable = Trainable::new(&spec, &mut model.parts())?;
        let rate = |part| if part == Part::Unet { 1.0 } else { config.text_encoder_rate() };
        let layers = &trainable.layers;
        let vars = layers.iter().flat_map(|l| [&l.down, &l.up].map(|var| (var.clone(), rate(l.path.part))));
        let optimizer = AdamW::new(config.optimizer, vars)?;
        let names = layers.iter().flat_map(|l| ["down", "up"].map(|f| format!("{}.{f}", l.path))).collect();
        Ok(Self { config: config.clone(), model, trainable, optimizer, names })
    }

    /// Step number `step` (from 0) of the run; returns the loss. The factors are as before if it fails.
    ///
    /// # Errors
    /// If a batch cannot be made, the loss or a gradient is not finite, or on cancel.
    pub fn step(
        &mut self,
        step: u64,
        learning_rate: f64,
        next: &mut NextBatch<'_>,
        cancel: &CancelToken,
    ) -> Result<f64> {
        self.step_at_once(step, learning_rate, next, cancel)
            .map_err(|e| if e.is_out_of_memory() { e.with_hint(self.config.with_less_memory()) } else { e })
    }

    fn step_at_once(
        &mut self,
        step: u64,
        learning_rate: f64,
        next: &mut NextBatch<'_>,
        cancel: &CancelToken,
    ) -> Result<f64> {
        let accumulation = self.config.gradient_accumulation as u64;
        let loss_scale = if self.model.dtype == DType::F16 { F16_LOSS_SCALE } else { 1.0 };
        let (mut sum, mut total, mut captions) = (Gradients::default(), 0.0, Vec::new());
        for batch in 0..accumulation {
            cancel.check()?;
            let number = step * accumulation + batch;
            let tape = Tape::new(&self.model.device)?;
            if self.model.dtype != DType::F32 {
                self.trainable.attach(&mut self.model.parts())?;
            }
            let keep = self.config.gradient_checkpointing.then_some(&tape);
            let batch = next(number, &self.model, keep)?;
            let loss = self.loss_of(&batch, keep, cancel)?;
            total += f64::from(loss.to_scalar::<f32>()?);
            sum.add(&self.trainable, &tape.backward(&(loss * loss_scale)?)?)?;
            captions.extend(batch.captions);
        }
        let loss = total / accumulation as f64;
        let norm = sum.norm()?;
        if !loss.is_finite() || !norm.is_finite() {
            let bad = sum.first_bad(&self.names)?;
            return Err(gradients::not_finite(step + 1, loss, bad, &captions));
        }
        let scale = 1.0 / (accumulation as f64 * loss_scale);
        let scale = Gradients::clip(norm, scale, self.config.max_grad_norm);
        self.optimizer.step(&sum.0, learning_rate, scale)?;
        Ok(loss)
    }

    pub(super) fn loss_of(&self, batch: &Batch, tape: Option<&Tape>, cancel: &CancelToken) -> Result<Tensor> {
        let schedule = &self.model.schedule;
        let options = NoiseOptions { seed: self.config.seed, offset: self.config.noise_offset };
        let noised = loss::add_noise(schedule, &batch.latents, &batch.samples, options)?;
        let timesteps: Vec<f32> = noised.timesteps.iter().map(|t| *t as f32).collect();
        let timesteps = Tensor::new(timesteps, &self.model.device)?;
        let input = UNetInput {
            added: batch.added.clone(),
            tape,
            cancel: Some(cancel),
            ..UNetInput::new(&noised.noisy, &timesteps, &batch.context)
        };
        let prediction = self.model.unet.forward(&input)?;
        let gamma = Some(self.config.min_snr_gamma).filter(|g| *g > 0.0);
        let weights = loss::min_snr_weights(schedule, &noised.timesteps, gamma)?;
        loss::weighted_mse(&prediction, &noised.target, &weights)
    }
}
