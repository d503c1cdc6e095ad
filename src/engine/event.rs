//! What the engine tells.

use std::path::PathBuf;

use crate::{pipeline::Generated, progress::Stage};

/// Names a job from its submission to its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(super) u64);

/// Every job ends with exactly one of `Finished`, `Failed` and `Cancelled`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The job's turn has come.
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
    /// A picture is finished.
    Picture(JobId, Box<Generated>),
    /// An adapter was written.
    Adapter(JobId, PathBuf),
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
