//! Prompts to what the denoising network reads.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Device, Tensor};

use super::embeddings::Known;
use crate::{
    adapter::{Embedding, Parts},
    error::{Error, Result},
    models::{
        ClipTextModel,
        clip::{ClipOptions, ClipTextConfig},
        family::{self, Conventions},
    },
    nn::Part,
    prompt::{
        chunks::{self, Chunks},
        embeddings::EmbeddingNames,
        emphasis::Emphasis,
        tokenizer::Tokenizer,
        weighting,
    },
    weights::{Checkpoint, Component, Weights},
};

/// Encoded prompts kept for the next request.
const CACHED: usize = 64;

/// An encoded prompt.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// (1, n, d): n is 77 for each row of the prompt, d the sum of the encoders' widths.
    pub context: Tensor,
    /// (1, p): the second encoder's summary of the first row, for networks that take one.
    pub pooled: Option<Tensor>,
}

/// How prompts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TextOptions {
    /// Which layer's state from the end, 1 the last; `None` is the family's own.
    pub clip_skip: Option<usize>,
    /// What `(weights:1.2)` do.
    pub emphasis: Emphasis,
}

/// A model's text encoders with their tokenizers, and the prompts encoded so far.
#[derive(Debug)]
pub struct TextEncoders {
    /// One, or SDXL's two in the order their outputs are joined.
    pub encoders: Vec<TextEncoder>,
    conventions: Conventions,
    pub(super) known: Known,
    cache: HashMap<(String, usize, TextOptions), Conditioning>,
}

/// One encoder.
#[derive(Debug)]
pub struct TextEncoder {
    /// Which of the model's components it is.
    pub part: Part,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Ids to states.
    pub model: ClipTextModel,
    /// The embeddings' names, as this tokenizer reads them.
    pub(super) names: EmbeddingNames,
    device: Device,
}

impl TextEncoders {
    /// Loads all text encoders of a checkpoint.
    ///
    /// # Errors
    /// If one is missing, or does not have the shapes its config says.
    pub fn load(checkpoint: &Checkpoint, device: &Device, dtype: DType) -> Result<Self> {
        let conventions = family::conventions(checkpoint.family);
        let components = checkpoint.family.components().iter();
        let text = components.filter(|c| matches!(c, Component::TextEncoder | Component::TextEncoder2));
        let encoders = text
            .zip(family::text_encoder_configs(checkpoint.family))
            .map(|(component, config)| TextEncoder::load(checkpoint, *component, config, (device, dtype)))
            .collect::<Result<_>>()?;
        Ok(Self { encoders, conventions, known: Known::default(), cache: HashMap::new() })
    }

    /// Encodes a prompt and its opposite, in equally many rows.
    ///
    /// # Errors
    /// If a prompt has malformed weights, or clip skip exceeds the layers.
    pub fn encode_pair(
        &mut self,
        prompt: &str,
        negative: &str,
        options: TextOptions,
    ) -> Result<[Conditioning; 2]> {
        let rows = self.rows(prompt)?.max(self.rows(negative)?);
        let positive = self.encode(prompt, rows, options)?;
        let mut other = self.encode(negative, rows, options)?;
        if self.conventions.zero_empty_negative && negative.trim().is_empty() {
            other.context = other.context.zeros_like()?;
            other.pooled = other.pooled.map(|p| p.zeros_like()).transpose()?;
        }
        Ok([positive, other])
    }

    /// Encodes a prompt in at least `rows` rows of 77 tokens.
    ///
    /// # Errors
    /// If the prompt has malformed weights, or clip skip exceeds the layers.
    pub fn encode(&mut self, prompt: &str, rows: usize, options: TextOptions) -> Result<Conditioning> {
        let key = (prompt.to_string(), rows, options);
        if let Some(known) = self.cache.get(&key) {
            return Ok(known.clone());
        }
        let skip = options.clip_skip.unwrap_or(self.conventions.clip_skip);
        let clip = ClipOptions { skip, final_norm: self.conventions.final_norm, tape: None };
        let (mut contexts, mut pooled) = (Vec::new(), None);
        for encoder in &self.encoders {
            let mut chunks = encoder.chunks(prompt)?;
            chunks.pad_to(rows, (&encoder.tokenizer).into());
            let (context, summary) = encoder.encode(&chunks, self.embeddings(), &clip, options.emphasis)?;
            contexts.push(context);
            pooled = Some(summary);
        }
        let takes_pooled = self.conventions.time_ids != family::TimeIds::None;
        let context = Tensor::cat(&contexts, 2)?;
        let conditioning = Conditioning { context, pooled: pooled.filter(|_| takes_pooled) };
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(key, conditioning.clone());
        Ok(conditioning)
    }

    /// The rows of 75 tokens a prompt needs.
    ///
    /// # Errors
    /// If the prompt has malformed weights.
    pub fn rows(&self, prompt: &str) -> Result<usize> {
        let counts = self.encoders.iter().map(|e| Ok(e.chunks(prompt)?.ids.len()));
        Ok(counts.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(1))
    }

    /// Drops the encoded prompts: the encoders' weights have changed.
    pub fn forget(&mut self) {
        self.cache.clear();
    }

    /// Adds the encoders to what an adapter touches.
    #[must_use]
    pub fn add_to<'a>(&'a mut self, parts: Parts<'a>) -> Parts<'a> {
        self.encoders.iter_mut().fold(parts, |parts, encoder| parts.with(encoder.part, &mut encoder.model))
    }
}

impl TextEncoder {
    fn load(
        checkpoint: &Checkpoint,
        component: Component,
        default: ClipTextConfig,
        (device, dtype): (&Device, DType),
    ) -> Result<Self> {
        let second = component == Component::TextEncoder2;
        let files = checkpoint.component(component)?;
        let config = match &files.config {
            Some(json) => ClipTextConfig::from_json(json)?,
            None => default,
        };
        let tokenizer = tokenizer(checkpoint, second)?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::invalid(format!(
                "the tokenizer has {} tokens, {component} only {}",
                tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        let weights = Weights::new(files.store, dtype, device.clone());
        let model = ClipTextModel::load(&weights, &config).map_err(|e| e.context(component.to_string()))?;
        let part = if second { Part::TextEncoder2 } else { Part::TextEncoder };
        Ok(Self { part, tokenizer, model, names: EmbeddingNames::default(), device: device.clone() })
    }

    pub(super) fn chunks(&self, prompt: &str) -> Result<Chunks> {
        self.chunks_with(prompt, &self.names)
    }

    pub(super) fn chunks_with(&self, prompt: &str, names: &EmbeddingNames) -> Result<Chunks> {
        chunks::chunk(&weighting::parse(prompt)?, &self.tokenizer, names)
    }

    /// The context (1, rows · 77, d) and the first row's summary (1, p).
    fn encode(
        &self,
        chunks: &Chunks,
        embeddings: &[Arc<Embedding>],
        options: &ClipOptions<'_>,
        emphasis: Emphasis,
    ) -> Result<(Tensor, Tensor)> {
        let rows = chunks.ids.len();
        let ids: Vec<u32> = chunks.ids.iter().flatten().copied().collect();
        let ids = Tensor::from_vec(ids, (rows, chunks::ROW_LENGTH), &self.device)?;
        let embedded = self.insert(self.model.embed(&ids)?, &chunks.insertions, embeddings)?;
        let output = self.model.forward_embedded(&embedded, &ids, options)?;
        let hidden = emphasis.apply(&output.hidden, &chunks.weights)?; // rows n d
        let (_, n, d) = hidden.dims3()?;
        Ok((hidden.reshape((1, rows * n, d))?, output.pooled.narrow(0, 0, 1)?))
    }
}

/// The tokenizer of a model's first or `second` text encoder: its own, or the built-in one.
///
/// # Errors
/// If its files are malformed.
pub fn tokenizer(checkpoint: &Checkpoint, second: bool) -> Result<Tokenizer> {
    if let Some(files) = checkpoint.tokenizer_files(second)? {
        return Tokenizer::from_files(&files.vocab, &files.merges, files.config.as_ref());
    }
    let mut tokenizer = Tokenizer::openai()?;
    let pad = family::conventions(checkpoint.family).pad_ids[usize::from(second)];
    tokenizer.pad = pad.unwrap_or(tokenizer.eos);
    Ok(tokenizer)
}
