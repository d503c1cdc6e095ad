//! Text to pictures.

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::{
    Conditioning, GenerateRequest, Pipeline, TextEncoders,
    blending::{Applied, Changed, Schedule},
};
use crate::{
    adapter::BlendEntry,
    diffusion::{
        Denoiser, Guidance, Model, ModelDenoiser, Noise, NoiseSchedule, Rows, SampleOptions, StepInfo,
    },
    error::{Error, Result},
    models::{
        UNet2DConditionModel,
        family::PictureFacts,
        unet::{AddedConditions, UNetInput},
    },
    progress::{CancelToken, Event, Observer, Stage},
    random::{Rng, Stream},
};

/// A finished picture.
#[derive(Debug, Clone)]
pub struct Generated {
    /// As drawn.
    pub image: RgbImage,
    /// Before decoding, in the network's scale (1, h, w, c), f32.
    pub latents: Tensor,
    /// Draws this picture alone.
    pub seed: u64,
}

impl Pipeline {
    /// Draws all pictures of a request.
    ///
    /// # Errors
    /// If the request makes no sense for the model, or the user cancels.
    pub fn generate(
        &mut self,
        request: &GenerateRequest,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Vec<Generated>> {
        let mut pictures = Vec::new();
        self.generate_each(request, observer, cancel, &mut |picture, _| {
            pictures.push(picture);
            Ok(())
        })?;
        Ok(pictures)
    }

    /// Draws the pictures of a request and hands over each as soon as it is finished, so that none is lost when the
    /// user cancels.
    ///
    /// # Errors
    /// If the request makes no sense for the model, the user cancels, or `finished` fails.
    pub fn generate_each(
        &mut self,
        request: &GenerateRequest,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
        finished: &mut dyn FnMut(Generated, &mut dyn Observer) -> Result<()>,
    ) -> Result<()> {
        request.check(self)?;
        if let Some(hires) = request.hires {
            return self.generate_twice((request, hires), observer, cancel, finished);
        }
        let size_px = request.size_on(self)?;
        cancel.check()?;
        if let Some(message) = self.size().warning(&self.origin, size_px) {
            observer.observe(&Event::Warning { message: &message });
        }
        // A malformed prompt is said before anything is computed.
        self.text.rows(&request.prompt)?;
        self.text.rows(&request.negative)?;
        let start = self.encode_init(request, size_px, cancel)?;
        let sigmas = self.sigmas(request)?;
        let steps = sigmas.len().saturating_sub(1);
        let total = (steps * request.count.div_ceil(request.batch)) as u64;
        self.settle_blend(request)?;
        observer.observe(&Event::Started { stage: Stage::Sample, total });
        let mut done = 0;
        for first in (0..request.count).step_by(request.batch) {
            let len = request.batch.min(request.count - first);
            let batch = Batch { first, len, request, size_px, cancel };
            let x = self.start(&batch, start.as_ref(), &sigmas)?;
            let mut on_step = |info: StepInfo<'_>| -> Result<()> {
                done += 1;
                observer.observe(&Event::Advanced { stage: Stage::Sample, done, total });
                if request.preview_every > 0 && info.step.is_multiple_of(request.preview_every) {
                    observer.observe(&Event::Preview { step: info.step as u64, latents: info.denoised });
                }
                cancel.check()
            };
            let latents = self.denoise(&batch, (&x, &sigmas), &mut on_step)?;
            for index in 0..batch.len {
                cancel.check()?;
                let latents = latents.narrow(0, index, 1)?;
                let image = self.decode_until(&latents, cancel)?;
                finished(Generated { image, latents, seed: batch.seed(index) }, observer)?;
            }
        }
        observer.observe(&Event::Finished { stage: Stage::Sample });
        Ok(())
    }

    fn denoise(
        &mut self,
        batch: &Batch<'_>,
        (x, sigmas): (&Tensor, &[f64]),
        on_step: &mut dyn FnMut(StepInfo<'_>) -> Result<()>,
    ) -> Result<Tensor> {
        let request = batch.request;
        let time_ids = self.time_ids(batch.size_px);
        let (_, h, w, _) = x.dims4()?;
        let weights = self.schedule_blend((h, w), sigmas.len().saturating_sub(1))?;
        let normalize = self.blend.normalize;
        let guidance = Guidance { scale: request.cfg_scale_on(self), rescale: request.cfg_rescale };
        let mut drawing = Drawing {
            unet: &mut self.unet,
            text: &mut self.text,
            applied: (&mut self.applied, normalize),
            weights,
            time_ids,
            batch,
            sigmas,
            guidance,
            schedule: &self.schedule,
            inputs: None,
        };
        let seeds = (0..batch.len).map(|index| batch.seed(index)).collect();
        let options =
            SampleOptions { eta: request.eta, noise: Noise::Seeds(seeds), ..SampleOptions::default() };
        let latents = request.sampler.sample(&mut drawing, x, sigmas, &options, on_step)?;
        let flat = latents.flatten_all()?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        if flat.to_vec1::<f32>()?.iter().any(|v| !v.is_finite()) {
            return Err(self.overflow("the network's output is NaN or infinite", self.dtype()));
        }
        Ok(latents)
    }

    /// Numbers too large for their dtype, and what may have made them so.
    pub(super) fn overflow(&self, what: &str, dtype: DType) -> Error {
        let mut advice = Vec::new();
        let peak = |entry: &BlendEntry| entry.strength.at_peak().unet().peak().abs();
        if let Some(strongest) = self.blend.entries.iter().max_by(|a, b| peak(a).total_cmp(&peak(b))) {
            advice.push(format!(
                "lower the adapters' weights, `{}` ({}) first",
                strongest.name, strongest.strength
            ));
        }
        if dtype != DType::F32 {
            advice.push("try `--dtype f32`".to_string());
        }
        if advice.is_empty() {
            advice.push("lower `--cfg`; if that changes nothing, the model is damaged".to_string());
        }
        Error::invalid(what).with_hint(advice.join(", or "))
    }

    /// The noise a batch starts from, on top of `start`, at the first noise level.
    fn start(&self, batch: &Batch<'_>, start: Option<&Tensor>, sigmas: &[f64]) -> Result<Tensor> {
        let (width, height) = batch.size_px;
        let (h, w) = (height / self.downscale(), width / self.downscale());
        let c = self.vae.config().latent_channels;
        let noise = match &batch.request.noise {
            Some(noise) => {
                let expected = [batch.request.count, h, w, c];
                if noise.dims() != expected {
                    let found = noise.dims();
                    return Err(Error::invalid(format!(
                        "the noise has shape {found:?}, expected {expected:?}"
                    )));
                }
                noise.narrow(0, batch.first, batch.len)?.to_dtype(DType::F32)?.to_device(self.device())?
            }
            None => {
                let one = |i| Rng::new(batch.seed(i), Stream::Latents, 0).normal((1, h, w, c), self.device());
                Tensor::cat(&(0..batch.len).map(one).collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        let sigma = sigmas.first().copied().unwrap_or(0.0);
        match start {
            None => self.schedule.initial(&noise, sigma),
            Some(start) => Ok((noise * sigma)?.broadcast_add(start)?),
        }
    }

    /// What the network is told of the picture's size, if it wants to know.
    fn time_ids(&self, (width, height): (usize, usize)) -> Option<Vec<f32>> {
        let size = (height, width);
        let facts = PictureFacts { original: size, crop: (0, 0), target: size, aesthetic_score: 6.0 };
        self.conventions.time_ids.of(&facts)
    }
}

/// Pictures drawn together.
struct Batch<'a> {
    first: usize,
    len: usize,
    request: &'a GenerateRequest,
    size_px: (usize, usize),
    /// Looked at inside every step.
    cancel: &'a CancelToken,
}

impl Batch<'_> {
    fn seed(&self, index: usize) -> u64 {
        self.request.seed.wrapping_add((self.first + index) as u64)
    }
}

/// Guesses the clean latents of a batch, with the adapters' weights of the step under way.
struct Drawing<'a> {
    unet: &'a mut UNet2DConditionModel,
    text: &'a mut TextEncoders,
    /// With the wish to normalise.
    applied: (&'a mut Applied, bool),
    weights: Option<Schedule>,
    time_ids: Option<Vec<f32>>,
    batch: &'a Batch<'a>,
    sigmas: &'a [f64],
    guidance: Guidance,
    schedule: &'a NoiseSchedule,
    inputs: Option<Conditioned>,
}

impl Drawing<'_> {
    /// The weights are a function of the noise: a look between two steps has those of the step it belongs to.
    fn step_at(&self, sigma: f64) -> usize {
        let reached = self.sigmas.partition_point(|level| *level >= sigma * (1.0 - 1e-9));
        reached.clamp(1, self.sigmas.len().saturating_sub(1).max(1)) - 1
    }

    fn encode(&mut self) -> Result<Conditioned> {
        let request = self.batch.request;
        let text = self.text.encode_pair(&request.prompt, &request.negative, request.text_options())?;
        Conditioned::new(&text, self.batch.len, self.time_ids.as_deref())
    }
}

impl Denoiser for Drawing<'_> {
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        let step = self.step_at(sigma);
        let (applied, normalize) = &mut self.applied;
        let changed = match &mut self.weights {
            Some(weights) => weights.apply(step, (&mut *self.unet, &mut *self.text), applied, *normalize)?,
            None => Changed::Nothing,
        };
        let inputs = match self.inputs.take() {
            Some(inputs) if changed != Changed::Text => inputs,
            _ => self.encode()?,
        };
        let network = Network { unet: &*self.unet, inputs: &inputs, cancel: self.batch.cancel };
        let denoised = ModelDenoiser::new(network, self.schedule, self.guidance).denoise(x, sigma);
        self.inputs = Some(inputs);
        denoised
    }
}

/// What the network is told besides the picture, repeated for a batch.
struct Conditioned {
    positive: Inputs,
    /// The negative prompt's rows, then the positive's.
    both: Inputs,
}

struct Inputs {
    context: Tensor,
    added: Option<AddedConditions>,
}

impl Conditioned {
    fn new([positive, negative]: &[Conditioning; 2], batch: usize, time_ids: Option<&[f32]>) -> Result<Self> {
        let inputs = |halves: &[&Conditioning]| -> Result<Inputs> {
            let rows = |of: &dyn Fn(&Conditioning) -> Tensor| -> Result<Tensor> {
                let all: Vec<Tensor> =
                    halves.iter().flat_map(|half| std::iter::repeat_n(of(half), batch)).collect();
                Ok(Tensor::cat(&all, 0)?)
            };
            let context = rows(&|half| half.context.clone())?;
            let added = match time_ids {
                None => None,
                Some(ids) => {
                    let pooled = halves.iter().map(|half| half.pooled.clone()).collect::<Option<Vec<_>>>();
                    let pooled = pooled.ok_or_else(|| Error::invalid("the network needs pooled text"))?;
                    let pooled: Vec<Tensor> =
                        pooled.into_iter().flat_map(|p| std::iter::repeat_n(p, batch)).collect();
                    let n = halves.len() * batch;
                    let ids = Tensor::from_slice(ids, (1, ids.len()), context.device())?.repeat((n, 1))?;
                    Some(AddedConditions { pooled: Tensor::cat(&pooled, 0)?, time_ids: ids })
                }
            };
            Ok(Inputs { context, added })
        };
        Ok(Self { positive: inputs(&[positive])?, both: inputs(&[negative, positive])? })
    }
}

/// The denoising network with its conditioning.
struct Network<'a> {
    unet: &'a UNet2DConditionModel,
    inputs: &'a Conditioned,
    cancel: &'a CancelToken,
}

impl Model for Network<'_> {
    fn predict(&mut self, x: &Tensor, timestep: f64, rows: Rows) -> Result<Tensor> {
        let inputs = match rows {
            Rows::Positive => &self.inputs.positive,
            Rows::NegativeThenPositive => &self.inputs.both,
        };
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        let input = UNetInput {
            added: inputs.added.clone(),
            cancel: Some(self.cancel),
            ..UNetInput::new(x, &timesteps, &inputs.context)
        };
        self.unet.forward(&input)
    }
}
