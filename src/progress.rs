//! How long work reports and how it is stopped. Nothing below `cli/` prints; it tells an [`Observer`].

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use candle_core::Tensor;

use crate::error::{Error, Result};

/// What is being done. One bar each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Bytes from the hub.
    Download,
    /// Weights into memory.
    Load,
    /// Images read and prepared.
    Scan,
    /// Latents and text embeddings computed once.
    Cache,
    /// Optimizer steps.
    Train,
    /// Denoising steps.
    Sample,
    /// Latents to pictures.
    Decode,
    /// Layers of an adapter computed.
    Layers,
    /// Adapters' files looked at.
    Adapters,
    /// Files written.
    Save,
}

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A stage begins; `total` counts its steps (bytes for [`Stage::Download`]).
    Started { stage: Stage, total: u64 },
    /// `done` steps of a stage are finished.
    Advanced { stage: Stage, done: u64, total: u64 },
    /// A stage ended.
    Finished { stage: Stage },
    /// An optimizer step: the smoothed loss and the learning rate used.
    Loss { step: u64, loss: f64, learning_rate: f64 },
    /// The picture so far, as predicted x0 latents (b, h, w, c) after `step` denoising steps.
    Preview { step: u64, latents: &'a Tensor },
    /// A file was completely written.
    Saved { path: &'a Path },
    /// Something the user should know that did not stop the work.
    Warning { message: &'a str },
}

/// Receives what happens. Must be quick: the work waits for it.
pub trait Observer {
    /// Called on the worker's thread.
    fn observe(&mut self, event: &Event<'_>);
}

/// Looks away.
impl Observer for () {
    fn observe(&mut self, _: &Event<'_>) {}
}

impl<F: FnMut(&Event<'_>)> Observer for F {
    fn observe(&mut self, event: &Event<'_>) {
        self(event);
    }
}

/// A flag that asks long work to stop within one step. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// For use with `?` between steps.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once somebody asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
