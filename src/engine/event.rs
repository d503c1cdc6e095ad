//! What the engine tells. Plain data: no tensors.

use std::{path::PathBuf, time::Duration};

use image::RgbImage;

use crate::{
    adapter::{guard::BlendReport, library},
    dataset::doctor,
    error::Result,
    pipeline::{infotext, infotext::Recipe},
    progress::Stage,
    prompt::{EmbeddingNames, Tokenizer, chunks},
    weights::Family,
};

/// Names a job from its submission to its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(super) u64);

/// Every job ends with exactly one of `Finished`, `Failed` and `Cancelled`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The job's turn has come. One that is cancelled before that has no such event.
    Started(JobId),
    /// A stage is so far.
    Progress {
        /// The job.
        job: JobId,
        /// What is being done.
        stage: Stage,
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
    },
    /// The smoothed loss after an optimizer step.
    Loss {
        /// The job.
        job: JobId,
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// Something the user should know.
    Warning(JobId, String),
    /// A model was opened.
    Model(JobId, Box<ModelFacts>),
    /// What the blend of a job does to the model.
    Blend(JobId, Box<BlendReport>),
    /// The picture so far, after a step: small, roughly coloured, at once.
    Preview {
        /// The job.
        job: JobId,
        /// Steps done.
        step: u64,
        /// The first picture of the batch, one pixel for one of the latents.
        picture: RgbImage,
    },
    /// A picture is finished.
    Picture(JobId, Box<Picture>),
    /// A picture drawn with an adapter while it is trained.
    Sample {
        /// The job.
        job: JobId,
        /// Optimizer steps done.
        step: u64,
        /// The picture.
        picture: Box<Picture>,
    },
    /// What a folder of pictures holds.
    Scanned {
        /// The job.
        job: JobId,
        /// What the doctor says.
        report: Box<doctor::Report>,
        /// Every usable picture.
        pictures: Vec<ScannedPicture>,
    },
    /// The adapters of a folder.
    Library {
        /// The job.
        job: JobId,
        /// The folder that entries' paths start from.
        folder: PathBuf,
        /// Sorted by path.
        entries: Vec<library::Entry>,
    },
    /// What an adapter's file says of itself.
    Described {
        /// The job.
        job: JobId,
        /// The file.
        path: PathBuf,
        /// What it says.
        card: Box<library::Card>,
    },
    /// An adapter was trained, or stopped and kept.
    Adapter {
        /// The job.
        job: JobId,
        /// Its file.
        path: PathBuf,
        /// Optimizer steps done.
        step: u64,
        /// True if it was stopped and can go on.
        resumable: bool,
    },
    /// A blend was written.
    Exported {
        /// The job.
        job: JobId,
        /// Its file.
        path: PathBuf,
        /// The highest rank in it.
        rank: usize,
        /// ‖error‖ / ‖change‖ over all layers; 0 if it is exact.
        relative_error: f64,
    },
    /// What this process holds in memory after a job, mapped files included.
    Memory(JobId, u64),
    /// All went well.
    Finished(JobId),
    /// It did not.
    Failed {
        /// The job.
        job: JobId,
        /// What happened.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Stopped on request; what was made until then is kept.
    Cancelled(JobId),
}

impl Event {
    /// The job, if this is its last event.
    pub fn ends(&self) -> Option<JobId> {
        match self {
            Self::Finished(job) | Self::Cancelled(job) | Self::Failed { job, .. } => Some(*job),
            _ => None,
        }
    }
}

/// A picture and everything needed to draw it again.
#[derive(Debug, Clone)]
pub struct Picture {
    /// As drawn.
    pub image: RgbImage,
    /// What [`infotext::write_png`] puts into its file.
    pub recipe: Recipe,
    /// From the job's start, or from the picture before.
    pub elapsed: Duration,
}

impl Picture {
    /// Writes it as PNG with its recipe.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &std::path::Path) -> Result<()> {
        infotext::write_png(path, &self.image, &self.recipe)
    }
}

/// A model that is open.
#[derive(Debug, Clone)]
pub struct ModelFacts {
    /// As it was asked for.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// The side of the pictures it was trained on, in pixels.
    pub native_px: usize,
    /// What sides must be multiples of.
    pub step_px: usize,
    /// The guidance it is used with.
    pub cfg_scale: f64,
    /// What a weight may have factors on: `te`, `in00`, `down.0`, …, `mid`, `up.0`, …
    pub blocks: Vec<String>,
    /// Counts a prompt's tokens as the model does.
    pub tokens: TokenCounter,
}

/// Counts tokens without the model.
#[derive(Debug, Clone)]
pub struct TokenCounter(pub(super) Tokenizer);

impl TokenCounter {
    /// Of full-size models.
    ///
    /// # Errors
    /// None in practice: the vocabulary is compiled in.
    pub fn usual() -> Result<Self> {
        Ok(Self(Tokenizer::openai()?))
    }

    /// The tokens of a prompt and how many its rows hold: 23 of 75.
    ///
    /// # Errors
    /// If the prompt has malformed weights.
    pub fn count(&self, prompt: &str) -> Result<(usize, usize)> {
        chunks::count(prompt, &self.0, &EmbeddingNames::default())
    }
}

/// A picture of a training's folder.
#[derive(Debug, Clone)]
pub struct ScannedPicture {
    /// Its file.
    pub path: PathBuf,
    /// What it is trained with.
    pub caption: String,
    /// True if that stands in a file beside it.
    pub captioned: bool,
    /// The caption's tokens.
    pub tokens: usize,
    /// Its size in pixels.
    pub size_px: (u32, u32),
    /// A small copy.
    pub thumbnail: RgbImage,
}
