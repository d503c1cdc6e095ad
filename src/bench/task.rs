//! Each task as something that can be run again and again.

use std::{fmt, io::Cursor, str::FromStr};

use candle_core::{DType, Device, Tensor};

use super::{Case, Task};
use crate::{
    diffusion::{Sampler, SigmaSchedule},
    error::{Error, Result},
    models::{
        AddedConditions, UNet2DConditionModel, UNetInput,
        clip::ClipOptions,
        family::{self, PictureFacts},
    },
    pipeline::{GenerateRequest, ModelSize, Pipeline, TextEncoders, load, random::random_model},
    progress::CancelToken,
    random::{Rng, Stream},
    training::{Base, TrainConfig, feed::Batch, learner::Learner},
    weights::{Checkpoint, Family, ModelSource, OpenOptions},
};

/// Denoising steps of a picture.
pub(super) const STEPS: usize = 20;
/// CLIP's tokens.
const TOKENS: usize = 77;

/// The model that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A family's own sizes with random weights: nothing to download.
    Random(Family),
    /// A model as `--model` names it.
    Real(String),
}

impl Subject {
    fn open(&self, cancel: &CancelToken) -> Result<Checkpoint> {
        match self {
            Self::Random(family) => random_model(*family),
            Self::Real(name) => ModelSource::parse(name)?.open(&OpenOptions::default(), &mut (), cancel),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random(family) => family.fmt(f),
            Self::Real(name) => name.fmt(f),
        }
    }
}

impl FromStr for Subject {
    type Err = Error;

    /// A family's name, or a model's. The embedded model is real.
    fn from_str(s: &str) -> Result<Self> {
        Ok(match s.parse() {
            Ok(family) if family != Family::Mini => Self::Random(family),
            _ => Self::Real(s.to_owned()),
        })
    }
}

/// Does the task once. What a single network computed comes back, so that precisions can be compared.
pub(super) type Work = Box<dyn FnMut() -> Result<Option<Tensor>>>;

/// The side of the pictures, and the task. Only what it needs is in memory.
pub(super) fn prepare(case: &Case, cancel: &CancelToken) -> Result<(usize, Work)> {
    let subject = Prepared::of(case, cancel)?;
    let work = match case.task {
        Task::Unet => subject.unet()?,
        Task::Train => subject.train(false, cancel)?,
        Task::TrainCheckpointing => subject.train(true, cancel)?,
        Task::VaeDecode => subject.vae_decode()?,
        Task::VaeEncode => subject.vae_encode()?,
        Task::Text => subject.text()?,
        Task::Generate => subject.generate(cancel)?,
    };
    Ok((subject.size_px, work))
}

/// The losses of the first two training steps, and the mean gradients of all factors then: first those of the downs, then
/// those of the ups.
#[cfg(all(test, target_os = "linux"))]
pub(super) fn learnt(case: &Case) -> Result<(Vec<f64>, [Tensor; 2])> {
    let cancel = CancelToken::default();
    let (mut learner, batch) = Prepared::of(case, &cancel)?.learner(case.task == Task::TrainCheckpointing)?;
    let step = |step| learner.step(step, 1e-3, &mut |_, _, _| Ok(batch.clone()), &cancel);
    let losses = (0..2).map(step).collect::<Result<_>>()?;
    let means: Vec<Tensor> =
        learner.optimizer.moments().map(|m| m.m.flatten_all()).collect::<Result<_, _>>()?;
    let every_second = |from| Tensor::cat(&means.iter().skip(from).step_by(2).collect::<Vec<_>>(), 0);
    Ok((losses, [every_second(0)?, every_second(1)?]))
}

struct Prepared<'a> {
    case: &'a Case,
    checkpoint: Checkpoint,
    size: ModelSize,
    size_px: usize,
    /// Of the latents.
    side: usize,
}

impl<'a> Prepared<'a> {
    fn of(case: &'a Case, cancel: &CancelToken) -> Result<Self> {
        let checkpoint = case.subject.open(cancel)?;
        let size = ModelSize::of_checkpoint(&checkpoint)?;
        let size_px = case.size_px.unwrap_or(size.native_px);
        if size_px == 0 || !size_px.is_multiple_of(size.step_px) {
            let message =
                format!("size {size_px}: {} draws multiples of {} pixels", case.subject, size.step_px);
            return Err(Error::invalid(message));
        }
        let side = size_px / load::vae_config(&checkpoint)?.downscale();
        Ok(Self { case, checkpoint, size, size_px, side })
    }

    fn unet(&self) -> Result<Work> {
        let unet = load::unet(&self.checkpoint, &self.case.device, self.case.dtype)?;
        let Batch { latents, context, added, .. } = self.batch(&unet)?;
        let timesteps = Tensor::full(500f32, latents.dim(0)?, &self.case.device)?;
        Ok(Box::new(move || {
            let input = UNetInput { added: added.clone(), ..UNetInput::new(&latents, &timesteps, &context) };
            unet.forward(&input).map(Some)
        }))
    }

    fn learner(&self, gradient_checkpointing: bool) -> Result<(Learner, Batch)> {
        let unet = load::unet(&self.checkpoint, &self.case.device, self.case.dtype)?;
        let batch = self.batch(&unet)?;
        let conventions = family::conventions(self.checkpoint.family);
        let base = Base {
            origin: self.checkpoint.origin.clone(),
            conventions,
            schedule: load::schedule(&self.checkpoint, &conventions)?,
            unet,
            encoders: Vec::new(),
            vae: None,
            size: self.size,
            device: self.case.device.clone(),
            dtype: self.case.dtype,
        };
        let config = TrainConfig { rank: self.case.rank, gradient_checkpointing, ..TrainConfig::default() };
        Ok((Learner::new(&config, base)?, batch))
    }

    fn train(&self, gradient_checkpointing: bool, cancel: &CancelToken) -> Result<Work> {
        let (mut learner, batch) = self.learner(gradient_checkpointing)?;
        let (mut step, cancel) = (0, cancel.clone());
        Ok(Box::new(move || {
            learner.step(step, 1e-4, &mut |_, _, _| Ok(batch.clone()), &cancel)?;
            step += 1;
            Ok(None)
        }))
    }

    fn vae_decode(&self) -> Result<Work> {
        let vae = load::vae(&self.checkpoint, &self.case.device, self.case.dtype)?;
        let latents = self.noise(&[self.side, self.side, vae.config().latent_channels])?;
        Ok(Box::new(move || vae.decode(&latents).map(Some)))
    }

    fn vae_encode(&self) -> Result<Work> {
        let vae = load::vae(&self.checkpoint, &self.case.device, self.case.dtype)?;
        let pictures = self.noise(&[self.size_px, self.size_px, 3])?;
        Ok(Box::new(move || Ok(Some(vae.encode(&pictures)?.mean))))
    }

    fn text(&self) -> Result<Work> {
        let text = TextEncoders::load(&self.checkpoint, &self.case.device, self.case.dtype)?;
        let Some(encoder) = text.encoders.into_iter().next() else {
            return Err(Error::invalid(format!("{} has no text encoder", self.case.subject)));
        };
        let ids: Vec<u32> = (0..self.case.batch * TOKENS).map(|i| (i % TOKENS) as u32).collect();
        let ids = Tensor::from_vec(ids, (self.case.batch, TOKENS), &self.case.device)?;
        Ok(Box::new(move || Ok(Some(encoder.model.forward(&ids, &ClipOptions::default())?.last))))
    }

    fn generate(&self, cancel: &CancelToken) -> Result<Work> {
        let mut pipeline = Pipeline::load(&self.checkpoint, &self.case.device, self.case.dtype)?;
        let request = GenerateRequest {
            steps: STEPS,
            size_px: Some((self.size_px, self.size_px)),
            count: self.case.batch,
            batch: self.case.batch,
            sampler: Sampler::Dpmpp2m,
            schedule: SigmaSchedule::Normal,
            ..GenerateRequest::new("a lighthouse at dusk")
        };
        let cancel = cancel.clone();
        Ok(Box::new(move || {
            for picture in pipeline.generate(&request, &mut (), &cancel)? {
                let mut file = Cursor::new(Vec::new());
                let written = picture.image.write_to(&mut file, image::ImageFormat::Png);
                written.map_err(|e| Error::invalid(format!("cannot encode the picture: {e}")))?;
            }
            Ok(None)
        }))
    }

    /// What a step is fed.
    fn batch(&self, unet: &UNet2DConditionModel) -> Result<Batch> {
        let (config, device, pictures) = (unet.config(), &self.case.device, self.case.batch);
        let facts = PictureFacts {
            original: (self.size_px, self.size_px),
            crop: (0, 0),
            target: (self.size_px, self.size_px),
            aesthetic_score: 6.0,
        };
        let added = match family::conventions(self.checkpoint.family).time_ids.of(&facts) {
            None => None,
            Some(ids) => {
                let width = ids.len();
                let pooled = config.plan()?.addition.map_or(0, |a| a.input - width * a.time_id_width);
                let time_ids = Tensor::from_vec(ids.repeat(pictures), (pictures, width), device)?;
                Some(AddedConditions { pooled: self.noise(&[pooled])?, time_ids })
            }
        };
        Ok(Batch {
            latents: self.noise(&[self.side, self.side, config.in_channels])?.to_dtype(DType::F32)?,
            samples: (0..pictures as u64).collect(),
            pictures: (0..pictures).collect(),
            captions: vec![String::new(); pictures],
            context: self.noise(&[TOKENS, config.context_width()])?,
            added,
        })
    }

    /// Standard normal values for every picture.
    fn noise(&self, shape: &[usize]) -> Result<Tensor> {
        let shape = [&[self.case.batch], shape].concat();
        let noise = Rng::new(1, Stream::Latents, shape.len() as u64).normal(shape, &Device::Cpu)?;
        Ok(noise.to_dtype(self.case.dtype)?.to_device(&self.case.device)?)
    }
}
