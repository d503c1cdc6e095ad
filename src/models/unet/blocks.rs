//! The UNet's blocks: pairs of a resnet and a transformer, then a change of size.

use candle_core::Tensor;

use super::{
    config::{BlockPlan, UNetConfig, UNetPlan},
    transformer::{Transformer, TransformerConfig},
};
use crate::{
    error::{Error, Result},
    nn::{
        Adaptable, Downsample, LayerPath, ResnetBlock, ResnetConfig, Upsample, adaptable::Visitor,
        checkpointed,
    },
    ops::{self, checkpoint::Tape},
    progress::CancelToken,
    weights::Weights,
};

/// What every block is told besides the picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditioning<'a> {
    /// (b, time width)
    pub time: &'a Tensor,
    /// (b, m, context width)
    pub context: &'a Tensor,
    /// Recompute pairs in the backward pass instead of keeping what is inside them?
    pub tape: Option<&'a Tape>,
    /// Looked at between layers.
    pub cancel: &'a CancelToken,
}

/// What all blocks of a network share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<'a> {
    pub config: &'a UNetConfig,
    pub plan: &'a UNetPlan,
}

/// A resnet and the transformer after it: what gradient checkpointing keeps or recomputes as a whole.
#[derive(Debug, Clone)]
struct Pair {
    resnet: ResnetBlock,
    attention: Option<Transformer>,
}

impl Pair {
    fn forward(&self, x: &Tensor, conditioning: Conditioning<'_>) -> Result<Tensor> {
        let Conditioning { time, context, tape, cancel } = conditioning;
        cancel.check()?;
        // A backward pass is not left halfway.
        let inside = if tape.is_some() { CancelToken::default() } else { cancel.clone() };
        let pair = self.clone();
        checkpointed(tape, [x, time, context], move |[x, time, context]| pair.run(x, time, context, &inside))
    }

    fn run(&self, x: &Tensor, time: &Tensor, context: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let y = self.resnet.forward(x, Some(time))?;
        match &self.attention {
            Some(attention) => attention.forward(&y, context, cancel),
            None => Ok(y),
        }
    }
}

/// The pairs of a block, under `resnets` and `attentions`.
#[derive(Debug, Clone)]
struct Pairs(Vec<Pair>);

impl Pairs {
    /// As many transformers as the plan has depths: one fewer than resnets in the middle.
    fn load(weights: &Weights, shared: Shared<'_>, block: &BlockPlan) -> Result<Self> {
        let Shared { config, plan } = shared;
        let pair = |(i, input): (usize, &usize)| {
            let resnet = ResnetConfig {
                input: *input,
                output: block.output,
                time: Some(plan.time_width),
                groups: plan.groups,
                eps: config.norm_eps,
            };
            let resnet = ResnetBlock::load(&weights.pp("resnets").pp(i), &resnet)?;
            let attention = match &block.attention {
                Some(attention) if i < attention.depths.len() => {
                    let transformer = TransformerConfig {
                        width: block.output,
                        context_width: attention.context_width,
                        heads: attention.heads,
                        depth: attention.depths[i],
                        groups: plan.groups,
                        linear_projection: config.use_linear_projection,
                        only_cross_attention: attention.only_cross_attention,
                    };
                    Some(Transformer::load(&weights.pp("attentions").pp(i), &transformer)?)
                }
                _ => None,
            };
            Ok(Pair { resnet, attention })
        };
        Ok(Self(block.inputs.iter().enumerate().map(pair).collect::<Result<_>>()?))
    }
}

impl Adaptable for Pairs {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        for (i, pair) in self.0.iter_mut().enumerate() {
            pair.resnet.visit(&path.join("resnets").join(i), f)?;
            if let Some(attention) = &mut pair.attention {
                attention.visit(&path.join("attentions").join(i), f)?;
            }
        }
        Ok(())
    }
}

/// `CrossAttnDownBlock2D` or, without attention, `DownBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct DownBlock {
    pairs: Pairs,
    downsampler: Option<Downsample>,
}

impl DownBlock {
    pub fn load(weights: &Weights, shared: Shared<'_>, block: &BlockPlan) -> Result<Self> {
        let downsampler = || {
            Downsample::load(&weights.pp("downsamplers.0"), block.output, shared.config.downsample_padding)
        };
        Ok(Self {
            pairs: Pairs::load(weights, shared, block)?,
            downsampler: block.resample.then(downsampler).transpose()?,
        })
    }

    /// Pushes every intermediate picture on `skips`, for the way up.
    pub fn forward(
        &self,
        x: &Tensor,
        conditioning: Conditioning<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for pair in &self.pairs.0 {
            x = pair.forward(&x, conditioning)?;
            skips.push(x.clone());
        }
        conditioning.cancel.check()?;
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

impl Adaptable for DownBlock {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.pairs.visit(path, f)?;
        match &mut self.downsampler {
            Some(downsampler) => downsampler.visit(&path.join("downsamplers.0"), f),
            None => Ok(()),
        }
    }
}

/// `UNetMidBlock2DCrossAttn` (resnet, transformer, resnet) or `UNetMidBlock2D` (one resnet).
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    pairs: Pairs,
}

impl MidBlock {
    pub fn load(weights: &Weights, shared: Shared<'_>, block: &BlockPlan) -> Result<Self> {
        Ok(Self { pairs: Pairs::load(weights, shared, block)? })
    }

    pub fn forward(&self, x: &Tensor, conditioning: Conditioning<'_>) -> Result<Tensor> {
        self.pairs.0.iter().try_fold(x.clone(), |x, pair| pair.forward(&x, conditioning))
    }
}

impl Adaptable for MidBlock {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.pairs.visit(path, f)
    }
}

/// `CrossAttnUpBlock2D` or, without attention, `UpBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct UpBlock {
    pairs: Pairs,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    pub fn load(weights: &Weights, shared: Shared<'_>, block: &BlockPlan) -> Result<Self> {
        let upsampler = || Upsample::load(&weights.pp("upsamplers.0"), block.output);
        Ok(Self {
            pairs: Pairs::load(weights, shared, block)?,
            upsampler: block.resample.then(upsampler).transpose()?,
        })
    }

    /// Pops one picture of `skips` for each resnet; the enlarged picture is as large as the next one there, since a
    /// side that is no multiple of 2ⁿ does not come back by doubling.
    pub fn forward(
        &self,
        x: &Tensor,
        conditioning: Conditioning<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for pair in &self.pairs.0 {
            let skip = skips.pop().ok_or_else(|| Error::invalid("more resnets on the way up than down"))?;
            x = pair.forward(&ops::concat_channels(&x, &skip)?, conditioning)?;
        }
        conditioning.cancel.check()?;
        if let Some(upsampler) = &self.upsampler {
            let size = skips.last().map(|next| next.dims4()).transpose()?.map(|(_, h, w, _)| (h, w));
            x = upsampler.forward(&x, size)?;
        }
        Ok(x)
    }
}

impl Adaptable for UpBlock {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.pairs.visit(path, f)?;
        match &mut self.upsampler {
            Some(upsampler) => upsampler.visit(&path.join("upsamplers.0"), f),
            None => Ok(()),
        }
    }
}
