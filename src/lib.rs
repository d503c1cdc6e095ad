//! Scumble: train, blend and draw with Stable Diffusion style adapters.
//!
//! A folder is a stage of the pipeline; `ARCHITECTURE.md` says what may import what.

pub mod device;
pub mod error;
pub mod files;
pub mod heap;
pub mod progress;
pub mod random;

pub mod ops;

pub mod diffusion;
pub mod nn;
pub mod weights;

pub mod adapter;
pub mod dataset;
pub mod models;
pub mod prompt;

pub mod pipeline;
pub mod training;

pub mod bench;
pub mod cli;
pub mod engine;

pub use error::{Error, Result};
