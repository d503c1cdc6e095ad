//! Multi-head attention with its four projections (<https://arxiv.org/abs/1706.03762>).

use candle_core::Tensor;

use super::{Adaptable, LayerPath, Linear, adaptable::Visitor};
use crate::{
    error::{Error, Result},
    ops::{self, Mask},
    weights::Weights,
};

/// What the four projections are called in a checkpoint: query, key, value, output.
pub type ProjectionNames = [&'static str; 4];

/// diffusers' names.
pub const DIFFUSERS: ProjectionNames = ["to_q", "to_k", "to_v", "to_out.0"];

/// Hugging Face transformers' names.
pub const TRANSFORMERS: ProjectionNames = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// The shape of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Channels of the queries' input and of the output.
    pub width: usize,
    /// Channels of the input of keys and values.
    pub context_width: usize,
    /// Heads; they share `width` equally.
    pub heads: usize,
    /// Do query, key and value have a bias?
    pub bias: bool,
    /// Which keys a query may see.
    pub mask: Mask,
    /// Names in the checkpoint.
    pub names: ProjectionNames,
}

/// out(softmax(q kᵀ / √(d / heads)) v).
#[derive(Debug, Clone)]
pub struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
    mask: Mask,
    names: ProjectionNames,
}

impl Attention {
    /// Loads the four projections.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the heads do not divide the width.
    pub fn load(weights: &Weights, config: &AttentionConfig) -> Result<Self> {
        let AttentionConfig { width, context_width, heads, bias, mask, names } = *config;
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::invalid(format!("{heads} attention heads do not divide {width} channels")));
        }
        let [query, key, value, out] = names;
        Ok(Self {
            query: Linear::load(&weights.pp(query), width, width, bias)?,
            key: Linear::load(&weights.pp(key), context_width, width, bias)?,
            value: Linear::load(&weights.pp(value), context_width, width, bias)?,
            out: Linear::load(&weights.pp(out), width, width, true)?,
            heads,
            mask,
            names,
        })
    }

    /// # Shapes
    /// - `x`: (b, n, d), `context`: (b, m, context width) → (b, n, d)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let q = self.query.forward(x)?;
        let k = self.key.forward(context)?;
        let v = self.value.forward(context)?;
        self.out.forward(&ops::attention(&q, &k, &v, self.heads, self.mask)?)
    }
}

impl Adaptable for Attention {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        let [query, key, value, out] = self.names;
        self.query.visit(&path.join(query), f)?;
        self.key.visit(&path.join(key), f)?;
        self.value.visit(&path.join(value), f)?;
        self.out.visit(&path.join(out), f)
    }
}
