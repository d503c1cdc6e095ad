//! Multi-head attention with its four projections (<https://arxiv.org/abs/1706.03762>).

use candle_core::Tensor;

use super::{Adaptable, LayerPath, Linear, adaptable::Visitor};
use crate::{
    error::{Error, Result},
    ops::{self, Mask},
    progress::CancelToken,
    weights::Weights,
};

/// What the four projections are called in a checkpoint: query, key, value, output.
pub type ProjectionNames = [&'static str; 4];

/// diffusers' names.
pub const DIFFUSERS: ProjectionNames = ["to_q", "to_k", "to_v", "to_out.0"];

/// Hugging Face transformers' names.
pub const TRANSFORMERS: ProjectionNames = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// Products of numbers between two looks at a cancel token: a few seconds on a slow processor, and more than a picture of
/// the usual sizes takes.
const PRODUCTS: usize = 1 << 35;
/// What a score costs besides its products: an exponential, and matrices too narrow for speed.
const SCORE: usize = 64;
/// Queries are taken in multiples of this: the blocks the operation works in anyway, so that values stay the same.
const QUERIES: usize = 64;

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
        self.forward_until(x, context, &CancelToken::default())
    }

    /// [`Attention::forward`], stopped on the way: among the pixels of a large picture it takes minutes. The values are
    /// the same.
    ///
    /// # Errors
    /// If shapes disagree; [`Error::Cancelled`].
    pub fn forward_until(&self, x: &Tensor, context: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let q = self.query.forward(x)?;
        let k = self.key.forward(context)?;
        let v = self.value.forward(context)?;
        let ((b, n, d), m) = (q.dims3()?, k.dim(1)?);
        let rows = (PRODUCTS / (b * m * (d + SCORE * self.heads)).max(1)).max(1).next_multiple_of(QUERIES);
        let learns = q.track_op() || k.track_op() || v.track_op();
        let y = if rows >= n || self.mask != Mask::None || learns {
            ops::attention(&q, &k, &v, self.heads, self.mask)?
        } else {
            in_pieces([&q, &k, &v], self.heads, rows, cancel)?
        };
        self.out.forward(&y)
    }
}

/// The attention of `rows` queries at a time.
fn in_pieces([q, k, v]: [&Tensor; 3], heads: usize, rows: usize, cancel: &CancelToken) -> Result<Tensor> {
    let n = q.dim(1)?;
    let piece = |first: usize| {
        cancel.check()?;
        let q = q.narrow(1, first, rows.min(n - first))?.contiguous()?;
        ops::attention(&q, k, v, heads, Mask::None)
    };
    let pieces: Vec<Tensor> = (0..n).step_by(rows).map(piece).collect::<Result<_>>()?;
    Ok(Tensor::cat(&pieces, 1)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Rng, Stream};

    #[test]
    fn pieces_are_the_whole_bit_for_bit_and_can_be_stopped() -> Result<()> {
        let random = |i, n| Rng::new(1, Stream::Weights, i).normal((2, n, 8), &candle_core::Device::Cpu);
        let (q, k, v) = (random(0, 150)?, random(1, 90)?, random(2, 90)?);
        let cancel = CancelToken::default();
        let values = |t: Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        let whole = values(ops::attention(&q, &k, &v, 2, Mask::None)?)?;
        assert_eq!(values(in_pieces([&q, &k, &v], 2, QUERIES, &cancel)?)?, whole);
        cancel.cancel();
        assert!(in_pieces([&q, &k, &v], 2, QUERIES, &cancel).is_err_and(|e| e.is_cancelled()));
        Ok(())
    }
}
