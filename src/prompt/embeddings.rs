//! Words of a prompt that stand for trained vectors (textual inversions), found as A1111 finds them: by the ids of the
//! name, the longest name first, anywhere in the text. The tokenizer folds case, so names do not depend on it.

use super::{chunks::CHUNK_LENGTH, tokenizer::Tokenizer};
use crate::error::{Error, Result};

/// The names in use, for one tokenizer.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingNames {
    /// Longest first.
    names: Vec<Name>,
}

#[derive(Debug, Clone)]
struct Name {
    ids: Vec<u32>,
    called: Called,
}

/// A name found in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Called {
    /// Which embedding, in the order given to [`EmbeddingNames::new`].
    pub embedding: usize,
    /// How many tokens its name has.
    pub tokens: usize,
    /// How many places it takes in their stead.
    pub vectors: usize,
}

impl EmbeddingNames {
    /// Takes names and how many vectors each stands for.
    ///
    /// # Errors
    /// If a name means nothing to the tokenizer, two are the same to it, or one has more vectors than a row holds.
    pub fn new<'a>(names: impl IntoIterator<Item = (&'a str, usize)>, tokenizer: &Tokenizer) -> Result<Self> {
        let mut known: Vec<(Name, &str)> = Vec::new();
        for (embedding, (name, vectors)) in names.into_iter().enumerate() {
            let ids = tokenizer.encode(name)?;
            if ids.is_empty() {
                return Err(Error::invalid(format!(
                    "the embedding's name `{name}` is empty to the tokenizer"
                )));
            }
            if !(1..=CHUNK_LENGTH).contains(&vectors) {
                return Err(Error::invalid(format!(
                    "the embedding `{name}` has {vectors} vectors, expected 1 to {CHUNK_LENGTH}"
                )));
            }
            if let Some((_, other)) = known.iter().find(|(known, _)| known.ids == ids) {
                return Err(Error::invalid(format!(
                    "the embeddings `{other}` and `{name}` have the same name to the tokenizer"
                ))
                .with_hint("rename one of the files"));
            }
            let called = Called { embedding, tokens: ids.len(), vectors };
            known.push((Name { ids, called }, name));
        }
        let mut names: Vec<Name> = known.into_iter().map(|(name, _)| name).collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.ids.len()));
        Ok(Self { names })
    }

    /// The longest name that `ids` start with.
    pub fn at_start_of(&self, ids: &[u32]) -> Option<Called> {
        self.names.iter().find(|name| ids.starts_with(&name.ids)).map(|name| name.called)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}
