//! What encoder and decoder are made of.

use candle_core::{DType, Tensor};

use super::VaeConfig;
use crate::{
    error::Result,
    nn::{
        Attention, AttentionConfig, Conv2d, Downsample, GroupNorm, ResnetBlock, ResnetConfig, Upsample,
        attention,
    },
    ops::{self, Conv2dGeometry, Mask},
    progress::CancelToken,
    weights::Weights,
};

/// Added to variances everywhere in the autoencoder.
const EPS: f64 = 1e-6;

/// What the projections of the attention were called in old diffusers folders.
const OLD_NAMES: attention::ProjectionNames = ["query", "key", "value", "proj_attn"];

pub(super) fn conv(weights: &Weights, input: usize, output: usize, kernel: usize) -> Result<Conv2d> {
    Conv2d::load(weights, input, output, kernel, Conv2dGeometry::new(1, kernel / 2))
}

fn resnet(weights: &Weights, config: &VaeConfig, input: usize, output: usize) -> Result<ResnetBlock> {
    let groups = config.norm_num_groups;
    ResnetBlock::load(weights, &ResnetConfig { input, output, time: None, groups, eps: EPS })
}

/// Resnets, then a change of size.
#[derive(Debug, Clone)]
struct Stage {
    resnets: Vec<ResnetBlock>,
    down: Option<Downsample>,
    up: Option<Upsample>,
}

impl Stage {
    fn load(weights: &Weights, config: &VaeConfig, channels: (usize, usize), resnets: usize) -> Result<Self> {
        let (input, output) = channels;
        let resnets = (0..resnets)
            .map(|j| {
                resnet(&weights.pp("resnets").pp(j), config, if j == 0 { input } else { output }, output)
            })
            .collect::<Result<_>>()?;
        Ok(Self { resnets, down: None, up: None })
    }

    fn forward(&self, x: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            cancel.check()?;
            x = resnet.forward(&x, None)?;
        }
        cancel.check()?;
        if let Some(down) = &self.down {
            x = down.forward(&x)?;
        }
        if let Some(up) = &self.up {
            x = up.forward(&x, None)?;
        }
        Ok(x)
    }
}

/// Resnet, attention among the pixels with one head, resnet.
#[derive(Debug, Clone)]
struct Middle {
    first: ResnetBlock,
    attention: Option<(GroupNorm, Attention)>,
    last: ResnetBlock,
}

impl Middle {
    fn load(weights: &Weights, config: &VaeConfig, width: usize) -> Result<Self> {
        let attention = || -> Result<_> {
            let weights = weights.pp("attentions.0");
            let names = if weights.contains("query.weight") { OLD_NAMES } else { attention::DIFFUSERS };
            let attention = AttentionConfig {
                width,
                context_width: width,
                heads: 1,
                bias: true,
                mask: Mask::None,
                names,
            };
            let norm = GroupNorm::load(&weights.pp("group_norm"), width, config.norm_num_groups, EPS)?;
            Ok((norm, Attention::load(&weights, &attention)?))
        };
        Ok(Self {
            first: resnet(&weights.pp("resnets.0"), config, width, width)?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            last: resnet(&weights.pp("resnets.1"), config, width, width)?,
        })
    }

    fn forward(&self, x: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let mut x = self.first.forward(x, None)?;
        if let Some((norm, attention)) = &self.attention {
            let (b, h, w, c) = x.dims4()?;
            let y = norm.forward(&x)?.reshape((b, h * w, c))?;
            x = ops::add(&attention.forward_until(&y, &y, cancel)?.reshape((b, h, w, c))?, &x)?;
        }
        self.last.forward(&x, None)
    }
}

/// Pictures to the mean and log variance of latents.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    stages: Vec<Stage>,
    middle: Middle,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (finest, coarsest) = (channels[0], channels[channels.len() - 1]);
        let stage = |i: usize| {
            let weights = weights.pp("down_blocks").pp(i);
            let input = channels[i.saturating_sub(1)];
            let mut stage = Stage::load(&weights, config, (input, channels[i]), config.layers_per_block)?;
            if i + 1 < channels.len() {
                stage.down = Some(Downsample::load(&weights.pp("downsamplers.0"), channels[i], 0)?);
            }
            Ok(stage)
        };
        Ok(Self {
            conv_in: conv(&weights.pp("conv_in"), config.in_channels, finest, 3)?,
            stages: (0..channels.len()).map(stage).collect::<Result<_>>()?,
            middle: Middle::load(&weights.pp("mid_block"), config, coarsest)?,
            conv_norm_out: GroupNorm::load(
                &weights.pp("conv_norm_out"),
                coarsest,
                config.norm_num_groups,
                EPS,
            )?,
            conv_out: conv(&weights.pp("conv_out"), coarsest, 2 * config.latent_channels, 3)?,
        })
    }

    pub fn forward(&self, x: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let x = self.conv_in.forward(x)?;
        let x = self.stages.iter().try_fold(x, |x, stage| stage.forward(&x, cancel))?;
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&self.middle.forward(&x, cancel)?)?)
    }
}

/// Latents to pictures.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    stages: Vec<Stage>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (coarsest, finest) = (channels[0], channels[channels.len() - 1]);
        let stage = |i: usize| {
            let weights = weights.pp("up_blocks").pp(i);
            let input = channels[i.saturating_sub(1)];
            let mut stage = Stage::load(&weights, config, (input, channels[i]), config.layers_per_block + 1)?;
            if i + 1 < channels.len() {
                stage.up = Some(Upsample::load(&weights.pp("upsamplers.0"), channels[i])?);
            }
            Ok(stage)
        };
        Ok(Self {
            conv_in: conv(&weights.pp("conv_in"), config.latent_channels, coarsest, 3)?,
            middle: Middle::load(&weights.pp("mid_block"), config, coarsest)?,
            stages: (0..channels.len()).map(stage).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(
                &weights.pp("conv_norm_out"),
                finest,
                config.norm_num_groups,
                EPS,
            )?,
            conv_out: conv(&weights.pp("conv_out"), finest, config.out_channels, 3)?,
        })
    }

    pub fn dtype(&self) -> DType {
        self.conv_in.weight().dtype()
    }

    pub fn forward(&self, x: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let x = self.middle.forward(&self.conv_in.forward(x)?, cancel)?;
        let x = self.stages.iter().try_fold(x, |x, stage| stage.forward(&x, cancel))?;
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }
}
