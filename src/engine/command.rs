//! What the engine may be asked.

use std::path::PathBuf;

use crate::{
    adapter::Strength,
    pipeline::{GenerateRequest, grid::Grid},
    training::TrainConfig,
};

/// An adapter's file and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraUse {
    /// The file.
    pub path: PathBuf,
    /// Its weight. An adapter that is only switched off has 0: that keeps it in memory.
    pub strength: Strength,
}

/// A model with a blend of adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// As `--model` takes it.
    pub model: String,
    /// The blend, in order.
    pub loras: Vec<LoraUse>,
    /// Keeps styles that pull the same way from adding up.
    pub normalize: bool,
}

/// Pictures to draw.
#[derive(Debug, Clone)]
pub struct Draw {
    /// With what.
    pub mix: Mix,
    /// What.
    pub request: GenerateRequest,
    /// The newest wins: jobs of this kind that wait are dropped for this one, one that runs stops within a step.
    pub replace: bool,
}

/// Many pictures as one.
#[derive(Debug, Clone)]
pub struct DrawGrid {
    /// With what.
    pub mix: Mix,
    /// What all pictures have in common.
    pub request: GenerateRequest,
    /// What differs; styles by their place in the mix.
    pub grid: Grid,
}

/// A style to train.
#[derive(Debug, Clone)]
pub struct Training {
    /// As for `scumble train`.
    pub config: TrainConfig,
    /// Pictures on the way.
    pub previews: Option<Previews>,
}

/// Pictures drawn with an adapter while it is trained. Each time, adapter and state are saved.
#[derive(Debug, Clone)]
pub struct Previews {
    /// Optimizer steps between them.
    pub every: u64,
    /// What is drawn, with the adapter at weight 1.
    pub request: GenerateRequest,
}

/// A blend to keep as one adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// What.
    pub mix: Mix,
    /// The file, which is replaced.
    pub out: PathBuf,
    /// The nearest adapter of this rank; the exact one, as large as all of them together, if there is none.
    pub rank: Option<usize>,
}

/// A job. Jobs run in the order they came.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Command {
    /// Opens a model, as `--model` takes it.
    Load(String),
    /// Draws pictures; the model is loaded if it is not the one in memory.
    Draw(Box<Draw>),
    /// Draws a grid, shown as it grows. Cancelling keeps what is there.
    Grid(Box<DrawGrid>),
    /// Trains an adapter. Cancelling keeps adapter and state: `resume` goes on from there.
    Train(Box<Training>),
    /// Examines the folder of a training, without loading the model.
    Scan(Box<TrainConfig>),
    /// Looks through a folder of adapters.
    Library(PathBuf),
    /// Reads what an adapter's file says of itself.
    Describe(PathBuf),
    /// Writes a blend as one adapter.
    Export(Box<Export>),
}
