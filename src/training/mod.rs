//! Training an adapter: configuration in, events out, a kohya-style file at the end.
//!
//! The base model stays frozen; only the adapter's factors have gradients. Everything random follows from the seed and
//! the step, so that a run resumed at any step equals one that never stopped.

pub mod base;
pub mod checkpoint;
pub mod config;
pub mod feed;
pub mod gradients;
pub mod learner;
pub mod loss;
pub mod lr_schedule;
pub mod optimizer;
pub mod record;
mod thread;
pub mod trainer;

pub use base::Base;
pub use checkpoint::{State, state_path};
pub use config::{TrainConfig, UnetLayers};
pub use lr_schedule::{LrSchedule, LrShape};
pub use optimizer::{AdamW, AdamWConfig};
pub use trainer::{TrainOutcome, Trainer, scan_options};
