//! A solver of your own: all it needs is a denoiser, (x, sigma) → x0.
//! `cargo run --release --example custom_sampler -- out.png 20`.

use candle_core::{DType, Device, Tensor};
use scumble::{
    Error, Result,
    diffusion::{Denoiser, Guidance, Model, ModelDenoiser, Rows, SigmaSchedule},
    models::{UNet2DConditionModel, unet::UNetInput},
    pipeline::{Pipeline, text::TextOptions},
    progress::CancelToken,
    random::{Rng, Stream},
    weights::source::{ModelSource, OpenOptions},
};

/// The network with its two prompts; guidance asks for both halves in one batch.
struct Network<'a> {
    unet: &'a UNet2DConditionModel,
    negative_then_positive: Tensor, // (2, n, d)
}

impl Model for Network<'_> {
    fn predict(&mut self, x: &Tensor, timestep: f64, rows: Rows) -> Result<Tensor> {
        let context = match rows {
            Rows::Positive => self.negative_then_positive.narrow(0, 1, 1)?,
            Rows::NegativeThenPositive => self.negative_then_positive.clone(),
        };
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        self.unet.forward(&UNetInput::new(x, &timesteps, &context))
    }
}

/// Euler's method that looks a little further than it steps ("overshoot"): sharper, at the cost of some noise.
fn overshooting_euler(denoiser: &mut dyn Denoiser, mut x: Tensor, sigmas: &[f64]) -> Result<Tensor> {
    for pair in sigmas.windows(2) {
        let denoised = denoiser.denoise(&x, pair[0])?;
        let d = ((&x - denoised)? / pair[0])?; // dx/dsigma
        x = (x + (d * ((pair[1] - pair[0]) * 1.02))?)?;
    }
    Ok(x)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let out = args.next().unwrap_or_else(|| "custom_sampler.png".into());
    let steps = args.next().and_then(|n| n.parse().ok()).unwrap_or(20);

    let checkpoint =
        ModelSource::parse("mini")?.open(&OpenOptions::default(), &mut (), &CancelToken::default())?;
    let mut pipeline = Pipeline::load(&checkpoint, &Device::Cpu, DType::F32)?;
    let [positive, negative] =
        pipeline.text.encode_pair("red apple, flat icon", "", TextOptions::default())?;

    let network = Network {
        unet: &pipeline.unet,
        negative_then_positive: Tensor::cat(&[negative.context, positive.context], 0)?,
    };
    let guidance = Guidance { scale: 5.0, rescale: 0.0 };
    let mut denoiser = ModelDenoiser::new(network, &pipeline.schedule, guidance);

    let sigmas = SigmaSchedule::Karras.sigmas(&pipeline.schedule, steps)?;
    let side = pipeline.native_size_px() / pipeline.downscale();
    let noise = Rng::new(7, Stream::Latents, 0).normal((1, side, side, 4), &Device::Cpu)?;
    let x = pipeline.schedule.initial(&noise, sigmas[0])?;
    let latents = overshooting_euler(&mut denoiser, x, &sigmas)?;
    pipeline.decode(&latents)?.save(&out).map_err(|e| Error::file(&out, e.to_string()))
}
