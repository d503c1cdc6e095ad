//! The denoising network of Stable Diffusion, under diffusers' names.

mod blocks;
pub mod config;
pub mod transformer;

use std::collections::BTreeMap;

use candle_core::{DType, Shape, Tensor};

use self::blocks::{Conditioning, DownBlock, MidBlock, Shared, UpBlock};
pub use self::config::UNetConfig;
use crate::{
    error::{Error, Result},
    nn::{Adaptable, Conv2d, GroupNorm, LayerPath, Sinusoid, TimestepEmbedding, adaptable::Visitor},
    ops::{Conv2dGeometry, checkpoint::Tape},
    progress::CancelToken,
    weights::{self, Weights},
};

/// What SDXL is told besides the text.
#[derive(Debug, Clone)]
pub struct AddedConditions {
    /// Pooled text (b, p).
    pub pooled: Tensor,
    /// Original size, crop and target size in pixels (b, 6), or with an aesthetic score (b, 5) in the refiner.
    pub time_ids: Tensor,
}

/// What the network is given.
#[derive(Debug, Clone)]
pub struct UNetInput<'a> {
    /// Noisy latents (b, h, w, c).
    pub sample: &'a Tensor,
    /// One timestep for each picture (b), f32.
    pub timesteps: &'a Tensor,
    /// Text (b, m, context width).
    pub context: &'a Tensor,
    /// Needed by SDXL.
    pub added: Option<AddedConditions>,
    /// Embedded guidance scale (b, `time_cond_proj_dim`) of networks distilled for it (LCM); may be left out.
    pub guidance: Option<&'a Tensor>,
    /// With a tape, resnet-transformer pairs are recomputed in the backward pass; call `tape.backward`.
    pub tape: Option<&'a Tape>,
    /// Looked at between layers: a step on a large picture can take minutes. May be left out.
    pub cancel: Option<&'a CancelToken>,
}

impl<'a> UNetInput<'a> {
    /// An input without the optional parts.
    pub fn new(sample: &'a Tensor, timesteps: &'a Tensor, context: &'a Tensor) -> Self {
        Self { sample, timesteps, context, added: None, guidance: None, tape: None, cancel: None }
    }
}

/// `UNet2DConditionModel`: U-shaped network of resnets and transformers
/// (<https://arxiv.org/abs/2112.10752>, <https://arxiv.org/abs/2307.01952>).
#[derive(Debug, Clone)]
pub struct UNet2DConditionModel {
    config: UNetConfig,
    time_proj: Sinusoid,
    time_embedding: TimestepEmbedding,
    addition: Option<(Sinusoid, TimestepEmbedding)>,
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DConditionModel {
    /// Loads the network that `config` describes.
    ///
    /// # Errors
    /// If the config has a value this network does not have, or a tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &UNetConfig) -> Result<Self> {
        let plan = config.plan()?;
        let shared = Shared { config, plan: &plan };
        let finest = config.block_out_channels[0];
        let sinusoid = |width| Sinusoid {
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        };
        let conv = |name, input, output, kernel: usize| {
            let geometry = Conv2dGeometry::new(1, kernel.saturating_sub(1) / 2);
            Conv2d::load(&weights.pp(name), input, output, kernel, geometry)
        };
        let embedding = |name, input, guidance| {
            TimestepEmbedding::load(&weights.pp(name), input, plan.time_width, guidance)
        };
        let addition = |a: config::AdditionPlan| -> Result<_> {
            Ok((sinusoid(a.time_id_width), embedding("add_embedding", a.input, None)?))
        };
        let (down, up) = (weights.pp("down_blocks"), weights.pp("up_blocks"));
        Ok(Self {
            config: config.clone(),
            time_proj: sinusoid(plan.time_input),
            time_embedding: embedding("time_embedding", plan.time_input, config.time_cond_proj_dim)?,
            addition: plan.addition.map(addition).transpose()?,
            conv_in: conv("conv_in", config.in_channels, finest, config.conv_in_kernel)?,
            down_blocks: (plan.down.iter().enumerate())
                .map(|(i, block)| DownBlock::load(&down.pp(i), shared, block))
                .collect::<Result<_>>()?,
            mid_block: (plan.mid.as_ref())
                .map(|block| MidBlock::load(&weights.pp("mid_block"), shared, block))
                .transpose()?,
            up_blocks: (plan.up.iter().enumerate())
                .map(|(i, block)| UpBlock::load(&up.pp(i), shared, block))
                .collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(
                &weights.pp("conv_norm_out"),
                finest,
                plan.groups,
                config.norm_eps,
            )?,
            conv_out: conv("conv_out", finest, config.out_channels, config.conv_out_kernel)?,
        })
    }

    /// Name and shape of every tensor of the network that `config` describes.
    ///
    /// # Errors
    /// If the config has a value this network does not have.
    pub fn parameter_shapes(config: &UNetConfig) -> Result<BTreeMap<String, Shape>> {
        weights::record_shapes(|weights| Self::load(weights, config).map(drop))
    }

    /// The config the network was made from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// # Shapes
    /// - (b, h, w, input channels) → (b, h, w, output channels)
    ///
    /// # Errors
    /// If the latents have other channels than the network takes (an inpainting network takes 9), other shapes
    /// disagree, or the network needs `added` and there is none; [`Error::Cancelled`] if `cancel` says so.
    pub fn forward(&self, input: &UNetInput<'_>) -> Result<Tensor> {
        let (found, expected) = (input.sample.dim(3)?, self.config.in_channels);
        if found != expected {
            return Err(Error::invalid(format!(
                "latents of {found} channels, expected {expected} for this network"
            )));
        }
        let dtype = self.dtype();
        // 1. time
        let time = self.time(input)?;
        // 2. pre-process
        let context = input.context.to_dtype(dtype)?;
        let never = CancelToken::default();
        let cancel = input.cancel.unwrap_or(&never);
        let conditioning = Conditioning { time: &time, context: &context, tape: input.tape, cancel };
        let mut x = self.conv_in.forward(&input.sample.to_dtype(dtype)?)?;
        // 3. down
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(&x, conditioning, &mut skips)?;
        }
        // 4. mid
        if let Some(block) = &self.mid_block {
            x = block.forward(&x, conditioning)?;
        }
        // 5. up
        for block in &self.up_blocks {
            x = block.forward(&x, conditioning, &mut skips)?;
        }
        // 6. post-process
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }

    /// The time embedding, with the additional conditions (b, time width).
    fn time(&self, input: &UNetInput<'_>) -> Result<Tensor> {
        let dtype = self.dtype();
        let b = input.sample.dim(0)?;
        let sinusoid = self.time_proj.forward(input.timesteps)?.to_dtype(dtype)?;
        let guidance = input.guidance.map(|g| g.to_dtype(dtype)).transpose()?;
        let time = self.time_embedding.forward(&sinusoid, guidance.as_ref())?;
        let Some((time_proj, embedding)) = &self.addition else { return Ok(time) };
        let AddedConditions { pooled, time_ids } = input.added.as_ref().ok_or_else(|| {
            Error::invalid("this network needs pooled text and picture sizes (`added`), found none")
        })?;
        let ids = time_proj.forward(&time_ids.flatten_all()?)?.reshape((b, ()))?.to_dtype(dtype)?;
        let added = Tensor::cat(&[&pooled.to_dtype(dtype)?, &ids], 1)?;
        Ok((time + embedding.forward(&added, None)?)?)
    }

    /// The dtype activations have.
    fn dtype(&self) -> DType {
        self.conv_out.weight().dtype()
    }
}

impl Adaptable for UNet2DConditionModel {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.conv_in.visit(&path.join("conv_in"), f)?;
        self.time_embedding.visit(&path.join("time_embedding"), f)?;
        if let Some((_, embedding)) = &mut self.addition {
            embedding.visit(&path.join("add_embedding"), f)?;
        }
        for (i, block) in self.down_blocks.iter_mut().enumerate() {
            block.visit(&path.join("down_blocks").join(i), f)?;
        }
        if let Some(block) = &mut self.mid_block {
            block.visit(&path.join("mid_block"), f)?;
        }
        for (i, block) in self.up_blocks.iter_mut().enumerate() {
            block.visit(&path.join("up_blocks").join(i), f)?;
        }
        self.conv_norm_out.visit(&path.join("conv_norm_out"), f)?;
        self.conv_out.visit(&path.join("conv_out"), f)
    }
}
