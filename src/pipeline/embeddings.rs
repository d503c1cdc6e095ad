//! Textual inversions in prompts: which are known, which a prompt calls, and their vectors in the tokens' place.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Pipeline, TextEncoders, text::TextEncoder};
use crate::{
    adapter::{Blend, Embedding, embedding},
    error::{Error, Result},
    prompt::{EmbeddingNames, chunks::Insertion},
};

/// The embeddings prompts may call.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Given by the user.
    own: Vec<Arc<Embedding>>,
    /// Brought by the adapters in use.
    bundled: Vec<Arc<Embedding>>,
    /// Both, less those whose name another has.
    all: Vec<Arc<Embedding>>,
}

impl Pipeline {
    /// Makes embeddings known to prompts in place of those given before. One of these wins over one of the same name
    /// that an adapter brings.
    ///
    /// # Errors
    /// If two have the same name, or a name means nothing to the tokenizer.
    pub fn set_embeddings(&mut self, embeddings: Vec<Embedding>) -> Result<()> {
        let own = embeddings.into_iter().map(Arc::new).collect();
        self.text.know(Known { own, ..self.text.known.clone() })
    }

    /// Reads an embedding for this model; [`Pipeline::set_embeddings`] makes it known.
    ///
    /// # Errors
    /// As [`Embedding::load`].
    pub fn load_embedding(&mut self, path: impl AsRef<std::path::Path>) -> Result<Embedding> {
        Embedding::load(path, &self.name_table()?)
    }
}

impl TextEncoders {
    /// Makes the embeddings known that a blend's adapters bring, in place of those of the blend before.
    ///
    /// # Errors
    /// If two adapters bring different ones of the same name.
    pub(super) fn set_bundled(&mut self, blend: &Blend) -> Result<()> {
        let bundled = embedding::of_blend(blend);
        if bundled.is_empty() && self.known.bundled.is_empty() {
            return Ok(());
        }
        self.know(Known { bundled, ..self.known.clone() })
    }

    /// Every embedding prompts may call.
    pub fn embeddings(&self) -> &[Arc<Embedding>] {
        &self.known.all
    }

    /// Those that some of the prompts call.
    ///
    /// # Errors
    /// If a prompt has malformed weights.
    pub fn called_in(&self, prompts: &[&str]) -> Result<Vec<Arc<Embedding>>> {
        let Some(encoder) = self.encoders.first() else { return Ok(Vec::new()) };
        let mut called = vec![false; self.known.all.len()];
        for prompt in prompts {
            encoder.chunks(prompt)?.insertions.iter().for_each(|i| called[i.embedding] = true);
        }
        let called = self.known.all.iter().zip(called).filter(|(_, called)| *called);
        Ok(called.map(|(embedding, _)| embedding.clone()).collect())
    }

    /// True for each name that some of the prompts hold, whatever is known.
    ///
    /// # Errors
    /// If a prompt has malformed weights.
    pub fn named_in(&self, names: &[String], prompts: &[&str]) -> Result<Vec<bool>> {
        let Some(encoder) = self.encoders.first() else { return Ok(vec![false; names.len()]) };
        let held = |name: &String| -> Result<bool> {
            // A name that is nothing to the tokenizer is in no prompt.
            let Ok(name) = EmbeddingNames::new([(name.as_str(), 1)], &encoder.tokenizer) else {
                return Ok(false);
            };
            for prompt in prompts {
                if !encoder.chunks_with(prompt, &name)?.insertions.is_empty() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        names.iter().map(held).collect()
    }

    fn know(&mut self, mut known: Known) -> Result<()> {
        known.all = embedding::distinct(&known.own, &[], "given twice, in different files")?;
        let more = embedding::distinct(&known.bundled, &known.all, embedding::CLASH)
            .map_err(|e| e.with_hint("say which you mean: give its file with `--embedding`"))?;
        known.all.extend(more);
        let lengths: Vec<(&str, usize)> = known.all.iter().map(|e| (e.name.as_str(), e.length())).collect();
        let names = self.encoders.iter().map(|e| EmbeddingNames::new(lengths.iter().copied(), &e.tokenizer));
        let names = names.collect::<Result<Vec<_>>>()?;
        for (encoder, names) in self.encoders.iter_mut().zip(names) {
            encoder.names = names;
        }
        self.known = known;
        self.forget();
        Ok(())
    }
}

impl TextEncoder {
    /// Puts embeddings in the place of the rows of `embedded` (b, n, d) they were called in.
    pub(super) fn insert(
        &self,
        embedded: Tensor,
        insertions: &[Insertion],
        embeddings: &[Arc<Embedding>],
    ) -> Result<Tensor> {
        if insertions.is_empty() {
            return Ok(embedded);
        }
        let (b, n, _) = embedded.dims3()?;
        let mut rows = Vec::with_capacity(b);
        for row in 0..b {
            let tokens = embedded.get(row)?; // n d
            let (mut pieces, mut from) = (Vec::new(), 0);
            for insertion in insertions.iter().filter(|i| i.row == row) {
                let embedding = &embeddings[insertion.embedding];
                let vectors = embedding.vectors(self.part).ok_or_else(|| {
                    Error::invalid(format!(
                        "the embedding `{}` has nothing for this text encoder",
                        embedding.name
                    ))
                })?;
                pieces.push(tokens.narrow(0, from, insertion.column - from)?);
                pieces.push(vectors.to_dtype(embedded.dtype())?.to_device(embedded.device())?);
                from = insertion.column + embedding.length();
            }
            pieces.push(tokens.narrow(0, from, n - from)?);
            pieces.retain(|piece| piece.dims()[0] > 0);
            rows.push(Tensor::cat(&pieces, 0)?);
        }
        Ok(Tensor::stack(&rows, 0)?)
    }
}
