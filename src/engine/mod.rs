//! One worker thread that holds the model, for programs that must not wait: commands in, events out, one job at a time.
//!
//! What it holds stays: a job on the model of the job before opens nothing, and adapters that have been read are read
//! again only when their file has changed. A blend of the same adapters with other weights is a few numbers a layer.

mod command;
mod cover;
mod draw;
mod event;
mod export;
mod grid;
mod handle;
mod look;
mod masks;
mod memory;
mod model;
mod queue;
pub mod start;
#[cfg(test)]
mod tests;
mod train;
mod worker;

pub use command::{Command, Draw, DrawGrid, Export, LoraUse, Mix, Previews, Training};
pub use cover::cover;
pub use event::{Event, JobId, ModelFacts, Picture, ScannedPicture, TokenCounter};
pub use handle::Engine;
pub use masks::read_mask;
