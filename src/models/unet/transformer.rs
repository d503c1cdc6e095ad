//! The transformers between the UNet's resnets.

use candle_core::Tensor;

use crate::{
    error::Result,
    nn::{
        Adaptable, Attention, AttentionConfig, Conv2d, FeedForward, GroupNorm, LayerNorm, LayerPath, Linear,
        adaptable::Visitor, attention,
    },
    ops::{self, Conv2dGeometry, Mask},
    progress::CancelToken,
    weights::Weights,
};

/// The shape of a [`Transformer`].
#[derive(Debug, Clone, Copy)]
pub struct TransformerConfig {
    /// Channels.
    pub width: usize,
    /// Width of the text.
    pub context_width: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Groups of the normalisation in front.
    pub groups: usize,
    /// Are the projections linear layers (SD 2, SDXL) or 1×1 convolutions (SD 1)?
    pub linear_projection: bool,
    /// Does the first attention look at the text too?
    pub only_cross_attention: bool,
}

/// Attention among the picture's pixels and from them to the text: diffusers' `Transformer2DModel`.
#[derive(Debug, Clone)]
pub struct Transformer {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer {
    /// Loads `norm`, `proj_in`, `transformer_blocks` and `proj_out`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &TransformerConfig) -> Result<Self> {
        let projection = |name| Projection::load(&weights.pp(name), config.width, config.linear_projection);
        let blocks = weights.pp("transformer_blocks");
        Ok(Self {
            norm: GroupNorm::load(&weights.pp("norm"), config.width, config.groups, 1e-6)?,
            proj_in: projection("proj_in")?,
            blocks: (0..config.depth)
                .map(|i| TransformerBlock::load(&blocks.pp(i), config))
                .collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// # Shapes
    /// - `x`: (b, h, w, c), `context`: (b, m, context width) → (b, h, w, c)
    ///
    /// # Errors
    /// If shapes disagree; [`Error::Cancelled`](crate::error::Error::Cancelled).
    pub fn forward(&self, x: &Tensor, context: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let y = self.proj_in.forward(&self.norm.forward(x)?)?;
        let mut y = ops::view(&y, (b, h * w, c))?; // b n c
        for block in &self.blocks {
            y = block.forward(&y, context, cancel)?;
        }
        let y = self.proj_out.forward(&ops::view(&y, (b, h, w, c))?)?;
        ops::add(&y, x)
    }
}

impl Adaptable for Transformer {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.norm.visit(&path.join("norm"), f)?;
        self.proj_in.visit(&path.join("proj_in"), f)?;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.visit(&path.join("transformer_blocks").join(i), f)?;
        }
        self.proj_out.visit(&path.join("proj_out"), f)
    }
}

/// The same arithmetic under two shapes of weight, which adapter files follow.
#[derive(Debug, Clone)]
enum Projection {
    Linear(Linear),
    Conv2d(Conv2d),
}

impl Projection {
    fn load(weights: &Weights, width: usize, linear: bool) -> Result<Self> {
        Ok(if linear {
            Self::Linear(Linear::load(weights, width, width, true)?)
        } else {
            Self::Conv2d(Conv2d::load(weights, width, width, 1, Conv2dGeometry::new(1, 0))?)
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(layer) => layer.forward(x),
            Self::Conv2d(layer) => layer.forward(x),
        }
    }
}

impl Adaptable for Projection {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        match self {
            Self::Linear(layer) => layer.visit(path, f),
            Self::Conv2d(layer) => layer.visit(path, f),
        }
    }
}

/// Self-attention, cross-attention, feed-forward, each on a normalised copy and added back: diffusers'
/// `BasicTransformerBlock`.
#[derive(Debug, Clone)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
}

impl TransformerBlock {
    fn load(weights: &Weights, config: &TransformerConfig) -> Result<Self> {
        let TransformerConfig { width, context_width, heads, only_cross_attention, .. } = *config;
        let norm = |name| LayerNorm::load(&weights.pp(name), width, 1e-5);
        let attention = |name, context_width| {
            let names = attention::DIFFUSERS;
            let config =
                AttentionConfig { width, context_width, heads, bias: false, mask: Mask::None, names };
            Attention::load(&weights.pp(name), &config)
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", if only_cross_attention { context_width } else { width })?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", context_width)?,
            norm3: norm("norm3")?,
            ff: FeedForward::load(&weights.pp("ff"), width)?,
            only_cross_attention,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        cancel.check()?;
        let y = self.norm1.forward(x)?;
        let first = if self.only_cross_attention { context } else { &y };
        let x = ops::add(&self.attn1.forward_until(&y, first, cancel)?, x)?;
        let x = ops::add(&self.attn2.forward_until(&self.norm2.forward(&x)?, context, cancel)?, &x)?;
        cancel.check()?;
        ops::add(&self.ff.forward(&self.norm3.forward(&x)?)?, &x)
    }
}

impl Adaptable for TransformerBlock {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.norm1.visit(&path.join("norm1"), f)?;
        self.attn1.visit(&path.join("attn1"), f)?;
        self.norm2.visit(&path.join("norm2"), f)?;
        self.attn2.visit(&path.join("attn2"), f)?;
        self.norm3.visit(&path.join("norm3"), f)?;
        self.ff.visit(&path.join("ff"), f)
    }
}
