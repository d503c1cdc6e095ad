//! One worker thread that holds the model, for programs that must not wait: commands in, events out, one job at a time.

mod command;
mod event;
mod worker;

pub use command::{Command, LoraUse};
pub use event::{Event, JobId};
pub use worker::Engine;
