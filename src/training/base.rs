//! The model a run trains an adapter for: clones of a pipeline's networks, which share its weights. Whatever is attached
//! here never shows there.

use candle_core::{DType, Device, Tensor};

use crate::{
    adapter::Parts,
    diffusion::NoiseSchedule,
    error::{Error, Result},
    models::{
        AutoencoderKl, ClipOptions, ClipTextModel, UNet2DConditionModel,
        family::{Conventions, TimeIds},
    },
    nn::{LayerPath, Part},
    ops::Tape,
    pipeline::{ModelSize, Pipeline},
    prompt::{
        EmbeddingNames, Filler, Tokenizer,
        chunks::{Chunks, ROW_LENGTH, chunk},
        weighting,
    },
};

/// One text encoder with its tokenizer.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// Its place in adapter files.
    pub part: Part,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Ids to states.
    pub model: ClipTextModel,
}

/// Everything of a model that training reads.
#[derive(Debug, Clone)]
pub struct Base {
    /// What the user called the model.
    pub origin: String,
    /// How its family is used.
    pub conventions: Conventions,
    /// The denoising network.
    pub unet: UNet2DConditionModel,
    /// One text encoder, or SDXL's two in the order their outputs are joined.
    pub encoders: Vec<Encoder>,
    /// Pictures to latents; let go of when all of them are encoded.
    pub vae: Option<AutoencoderKl>,
    /// The noise the network was trained on.
    pub schedule: NoiseSchedule,
    /// The sizes it was trained at.
    pub size: ModelSize,
    /// Where it is.
    pub device: Device,
    /// What it computes in.
    pub dtype: DType,
}

/// Encoded captions.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// (b, n, d)
    pub context: Tensor,
    /// (b, p), for networks that take it.
    pub pooled: Option<Tensor>,
}

/// How captions are encoded.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeOptions<'a> {
    /// Counted from 1 = the last layer; the family's own if `None`.
    pub clip_skip: Option<usize>,
    /// Captions are filled up to this many rows of 77, so that they fit others.
    pub min_rows: usize,
    /// With a tape, layers are recomputed in the backward pass.
    pub tape: Option<&'a Tape>,
}

impl From<&Pipeline> for Base {
    fn from(pipeline: &Pipeline) -> Self {
        let encoder = |e: &crate::pipeline::text::TextEncoder| Encoder {
            part: e.part,
            tokenizer: e.tokenizer.clone(),
            model: e.model.clone(),
        };
        Self {
            origin: pipeline.origin.clone(),
            conventions: pipeline.conventions,
            unet: pipeline.unet.clone(),
            encoders: pipeline.text.encoders.iter().map(encoder).collect(),
            vae: Some(pipeline.vae.clone()),
            schedule: pipeline.schedule.clone(),
            size: pipeline.size(),
            device: pipeline.device().clone(),
            dtype: pipeline.dtype(),
        }
    }
}

impl Base {
    /// The networks adapters sit on.
    pub fn parts(&mut self) -> Parts<'_> {
        let parts = Parts::new().with(Part::Unet, &mut self.unet);
        self.encoders.iter_mut().fold(parts, |parts, encoder| parts.with(encoder.part, &mut encoder.model))
    }

    /// The text encoders' layers that nothing is read from: those after the hidden state, unless the pooled text comes
    /// through them.
    pub fn unread(&self, clip_skip: Option<usize>) -> Vec<LayerPath> {
        let options = self.clip_options(clip_skip, None);
        let last = self.encoders.len().saturating_sub(1);
        let unread = |(i, encoder): (usize, &Encoder)| {
            let part = encoder.part;
            let names = encoder.model.unread(&options, self.takes_pooled() && i == last);
            names.map(move |name| LayerPath { part, name })
        };
        self.encoders.iter().enumerate().flat_map(unread).collect()
    }

    /// Is the last encoder's summary of a text read?
    fn takes_pooled(&self) -> bool {
        self.conventions.time_ids != TimeIds::None
    }

    fn clip_options<'t>(&self, clip_skip: Option<usize>, tape: Option<&'t Tape>) -> ClipOptions<'t> {
        let skip = clip_skip.unwrap_or(self.conventions.clip_skip);
        ClipOptions { skip, final_norm: self.conventions.final_norm, tape }
    }

    /// How many rows of 77 tokens a caption takes. Brackets in captions are plain text, not weights.
    ///
    /// # Errors
    /// If a tokenizer fails.
    pub fn rows(&self, caption: &str) -> Result<usize> {
        // Captions are read without embeddings.
        let none = EmbeddingNames::default();
        let rows = |e: &Encoder| Ok(chunk(&weighting::plain(caption), &e.tokenizer, &none)?.ids.len());
        Ok(self.encoders.iter().map(rows).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(1))
    }

    /// How many tokens a caption has, by the tokenizer that cuts it finest.
    pub fn tokens(&self, caption: &str) -> usize {
        let counts = self.encoders.iter().map(|e| e.tokenizer.encode(caption).map_or(0, |ids| ids.len()));
        counts.max().unwrap_or_default()
    }

    /// Encodes captions as one batch, filled up to the same number of rows.
    ///
    /// # Errors
    /// If a tokenizer or an encoder fails.
    pub fn encode(&self, captions: &[&str], options: EncodeOptions<'_>) -> Result<Conditioning> {
        let mut rows = options.min_rows.max(1);
        for caption in captions {
            rows = rows.max(self.rows(caption)?);
        }
        let (mut contexts, mut pooled) = (Vec::new(), None);
        for encoder in &self.encoders {
            let (context, summary) = self.encode_with(encoder, captions, rows, options)?;
            contexts.push(context);
            pooled = Some(summary);
        }
        if contexts.is_empty() {
            return Err(Error::invalid(format!("{}: the model has no text encoder", self.origin)));
        }
        let pooled = pooled.filter(|_| self.takes_pooled());
        Ok(Conditioning { context: Tensor::cat(&contexts, 2)?, pooled })
    }

    fn encode_with(
        &self,
        encoder: &Encoder,
        captions: &[&str],
        rows: usize,
        options: EncodeOptions<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let (mut ids, none) = (Vec::new(), EmbeddingNames::default());
        for caption in captions {
            let mut chunks: Chunks = chunk(&weighting::plain(caption), &encoder.tokenizer, &none)?;
            chunks.pad_to(rows, Filler::from(&encoder.tokenizer));
            ids.extend(chunks.ids.concat());
        }
        let b = captions.len();
        let ids = Tensor::from_vec(ids, (b * rows, ROW_LENGTH), &self.device)?;
        let output = encoder.model.forward(&ids, &self.clip_options(options.clip_skip, options.tape))?;
        let (d, p) = (output.hidden.dim(2)?, output.pooled.dim(1)?);
        let context = output.hidden.reshape((b, rows * ROW_LENGTH, d))?;
        // What pools is the first row, as in every other tool.
        let pooled = output.pooled.reshape((b, rows, p))?.narrow(1, 0, 1)?.squeeze(1)?;
        Ok((context, pooled))
    }
}
