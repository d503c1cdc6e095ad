//! One layer of the text encoder.

use candle_core::Tensor;

use super::config::{Activation, ClipTextConfig};
use crate::{
    error::Result,
    nn::{
        Adaptable, Attention, AttentionConfig, LayerNorm, LayerPath, Linear, adaptable::Visitor, attention,
        checkpointed,
    },
    ops::{self, Mask, checkpoint::Tape},
    weights::Weights,
};

/// Causal self-attention and feed-forward, each on a normalised copy and added back.
#[derive(Debug, Clone)]
pub(super) struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl EncoderLayer {
    pub fn load(weights: &Weights, config: &ClipTextConfig) -> Result<Self> {
        let width = config.hidden_size;
        let norm = |name| LayerNorm::load(&weights.pp(name), width, config.layer_norm_eps);
        let attention = AttentionConfig {
            width,
            context_width: width,
            heads: config.num_attention_heads,
            bias: true,
            mask: Mask::Causal,
            names: attention::TRANSFORMERS,
        };
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            self_attn: Attention::load(&weights.pp("self_attn"), &attention)?,
            layer_norm2: norm("layer_norm2")?,
            fc1: Linear::load(&weights.pp("mlp.fc1"), width, config.intermediate_size, true)?,
            activation: config.activation()?,
            fc2: Linear::load(&weights.pp("mlp.fc2"), config.intermediate_size, width, true)?,
        })
    }

    /// # Shapes
    /// - `x`: (b, n, d) → (b, n, d)
    pub fn forward(&self, x: &Tensor, tape: Option<&Tape>) -> Result<Tensor> {
        let layer = self.clone();
        checkpointed(tape, [x], move |[x]| layer.run(x))
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.layer_norm1.forward(x)?;
        let x = ops::add(x, &self.self_attn.forward(&y, &y)?)?;
        let y = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        ops::add(&x, &self.fc2.forward(&self.activation.forward(&y)?)?)
    }
}

impl Adaptable for EncoderLayer {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.layer_norm1.visit(&path.join("layer_norm1"), f)?;
        self.self_attn.visit(&path.join("self_attn"), f)?;
        self.layer_norm2.visit(&path.join("layer_norm2"), f)?;
        self.fc1.visit(&path.join("mlp.fc1"), f)?;
        self.fc2.visit(&path.join("mlp.fc2"), f)
    }
}
