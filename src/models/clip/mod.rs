//! CLIP's text encoder (<https://arxiv.org/abs/2103.00020>), under Hugging Face's names.

pub mod config;
mod layer;

use std::collections::BTreeMap;

use candle_core::{DType, Shape, Tensor};

pub use self::config::ClipTextConfig;
use self::layer::EncoderLayer;
use crate::{
    error::{Error, Result},
    nn::{Adaptable, Embedding, LayerNorm, LayerPath, Linear, adaptable::Visitor},
    ops::checkpoint::Tape,
    weights::{self, Weights},
};

/// Which hidden state is wanted.
#[derive(Debug, Clone, Copy)]
pub struct ClipOptions<'a> {
    /// Clip skip, counted from 1: the output of the last layer is 1, of the one before it 2.
    pub skip: usize,
    /// Is the final layer norm applied to it (SD 1, SD 2) or not (SDXL)?
    pub final_norm: bool,
    /// With a tape, layers are recomputed in the backward pass; call `tape.backward`.
    pub tape: Option<&'a Tape>,
}

impl Default for ClipOptions<'_> {
    fn default() -> Self {
        Self { skip: 1, final_norm: true, tape: None }
    }
}

/// What a text encoder says.
#[derive(Debug, Clone)]
pub struct ClipOutput {
    /// The hidden state that was asked for (b, n, d).
    pub hidden: Tensor,
    /// The last hidden state after the final layer norm (b, n, d).
    pub last: Tensor,
    /// `last` at the end of the text, projected where there is a `text_projection` (b, d or projection).
    pub pooled: Tensor,
}

/// `CLIPTextModel` or `CLIPTextModelWithProjection`.
#[derive(Debug, Clone)]
pub struct ClipTextModel {
    config: ClipTextConfig,
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipTextModel {
    /// Loads the encoder that `config` describes, from keys with or without `text_model.` in front, and
    /// `text_projection` where the weights have it or the config says so.
    ///
    /// # Errors
    /// If the config has a value this network does not have, or a tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &ClipTextConfig) -> Result<Self> {
        let bare = weights.contains("embeddings.token_embedding.weight");
        let model = if bare { weights.clone() } else { weights.pp("text_model") };
        let (width, layers) = (config.hidden_size, model.pp("encoder.layers"));
        let embedding = |name, entries| Embedding::load(&model.pp("embeddings").pp(name), entries, width);
        let projection = || Linear::load(&weights.pp("text_projection"), width, config.projection_dim, false);
        let projects = config.has_projection() || weights.contains("text_projection.weight");
        Ok(Self {
            config: config.clone(),
            token_embedding: embedding("token_embedding", config.vocab_size)?,
            position_embedding: embedding("position_embedding", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::load(&layers.pp(i), config))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&model.pp("final_layer_norm"), width, config.layer_norm_eps)?,
            text_projection: projects.then(projection).transpose()?,
        })
    }

    /// Name and shape of every tensor of the encoder that `config` describes.
    ///
    /// # Errors
    /// If the config has a value this network does not have.
    pub fn parameter_shapes(config: &ClipTextConfig) -> Result<BTreeMap<String, Shape>> {
        weights::record_shapes(|weights| Self::load(weights, config).map(drop))
    }

    /// The config the network was made from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// The paths of the layers nothing depends on if this hidden state is all that is read, and, if `pooled`, the
    /// pooled text. What an adapter changes there has no effect.
    pub fn unread(&self, options: &ClipOptions<'_>, pooled: bool) -> impl Iterator<Item = String> + use<> {
        let count = self.layers.len();
        let read = if pooled { count } else { (count + 1).saturating_sub(options.skip) };
        (read..count).map(|i| format!("text_model.encoder.layers.{i}"))
    }

    /// # Shapes
    /// - `ids`: (b, n) u32, begin and end included
    ///
    /// # Errors
    /// If a text is longer than there are positions, or fewer layers exist than are skipped.
    pub fn forward(&self, ids: &Tensor, options: &ClipOptions<'_>) -> Result<ClipOutput> {
        self.forward_embedded(&self.embed(ids)?, ids, options)
    }

    /// The tokens' vectors, before positions are added.
    ///
    /// # Shapes
    /// - `ids`: (b, n) u32 → (b, n, d)
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.token_embedding.forward(ids)
    }

    /// [`ClipTextModel::forward`] on vectors that may come from elsewhere (textual inversion); `ids` only say where
    /// each text ends.
    ///
    /// # Shapes
    /// - `embedded`: (b, n, d), `ids`: (b, n) u32
    ///
    /// # Errors
    /// If a text is longer than there are positions, or fewer layers exist than are skipped.
    pub fn forward_embedded(
        &self,
        embedded: &Tensor,
        ids: &Tensor,
        options: &ClipOptions<'_>,
    ) -> Result<ClipOutput> {
        let (_, n, _) = embedded.dims3()?;
        let positions = self.config.max_position_embeddings;
        if n > positions {
            return Err(Error::invalid(format!("a text of {n} tokens, expected at most {positions}")));
        }
        let count = self.layers.len();
        if !(1..=count).contains(&options.skip) {
            return Err(Error::invalid(format!("clip skip {}, expected 1 to {count}", options.skip)));
        }
        let position = Tensor::arange(0, n as u32, ids.device())?.unsqueeze(0)?;
        let mut x = embedded.broadcast_add(&self.position_embedding.forward(&position)?)?;
        let mut hidden = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, options.tape)?;
            if i + options.skip == count {
                hidden = x.clone();
            }
        }
        let last = self.final_layer_norm.forward(&x)?;
        let hidden = match (options.final_norm, options.skip) {
            (true, 1) => last.clone(),
            (true, _) => self.final_layer_norm.forward(&hidden)?,
            (false, _) => hidden,
        };
        Ok(ClipOutput { pooled: self.pool(&last, ids)?, hidden, last })
    }

    /// The state at the end of each text (b, d or projection).
    fn pool(&self, last: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (b, n, d) = last.dims3()?;
        let rows: Vec<Vec<u32>> = ids.to_dtype(DType::U32)?.to_vec2()?;
        let ends = rows.iter().enumerate().map(|(row, ids)| (row * n + self.end(ids)) as u32);
        let ends = Tensor::from_vec(ends.collect::<Vec<_>>(), b, last.device())?;
        let pooled = last.reshape((b * n, d))?.index_select(&ends, 0)?;
        match &self.text_projection {
            Some(projection) => projection.forward(&pooled),
            None => Ok(pooled),
        }
    }

    /// Where the text ends: the first end token, or, under the wrong `eos_token_id` of old configs, the first of the
    /// largest ids, as Hugging Face has it.
    fn end(&self, ids: &[u32]) -> usize {
        let end = match self.config.eos_token_id {
            2 => ids.iter().copied().max().unwrap_or_default(),
            id => id,
        };
        ids.iter().position(|id| *id == end).unwrap_or_default()
    }
}

impl Adaptable for ClipTextModel {
    /// Paths always have `text_model.` in front.
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        let model = path.join("text_model");
        self.token_embedding.visit(&model.join("embeddings.token_embedding"), f)?;
        self.position_embedding.visit(&model.join("embeddings.position_embedding"), f)?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.visit(&model.join("encoder.layers").join(i), f)?;
        }
        self.final_layer_norm.visit(&model.join("final_layer_norm"), f)?;
        match &mut self.text_projection {
            Some(projection) => projection.visit(&path.join("text_projection"), f),
            None => Ok(()),
        }
    }
}
