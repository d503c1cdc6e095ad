//! From what the user typed to token ids with weights.
//!
//! [`tags`] takes the `<lora:…>` calls out, [`weighting`] reads `(a:1.2)`, [`tokenizer`] makes ids, [`embeddings`] finds
//! the words that stand for trained vectors, [`chunks`] packs all into rows of 77, and [`emphasis`] applies the weights to
//! what the text encoder made of them.
//! All of it follows AUTOMATIC1111's web UI, whose prompts are what people paste.

pub mod chunks;
pub mod embeddings;
pub mod emphasis;
pub mod tags;
pub mod tokenizer;
pub mod weighting;

pub use chunks::{Chunks, Filler};
pub use embeddings::EmbeddingNames;
pub use emphasis::Emphasis;
pub use tags::LoraTag;
pub use tokenizer::Tokenizer;
pub use weighting::Segment;
