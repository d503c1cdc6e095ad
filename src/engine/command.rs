//! What the engine may be asked.

use std::path::PathBuf;

use crate::{adapter::Strength, pipeline::GenerateRequest, training::TrainConfig};

/// An adapter's file and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraUse {
    /// The file.
    pub path: PathBuf,
    /// Its weight.
    pub strength: Strength,
}

/// A job. Jobs run in the order they came.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Command {
    /// Draws pictures; the model is loaded if it is not the one in memory.
    Generate {
        /// As `--model` takes it.
        model: String,
        /// The blend.
        loras: Vec<LoraUse>,
        /// What to draw.
        request: Box<GenerateRequest>,
    },
    /// Trains an adapter.
    Train(Box<TrainConfig>),
}
