//! The Scumble viewer: draw while blending styles.
//!
//! It knows the library's engine and no tensors: `ui` draws the state, `logic` takes in what the engine reports.

mod app;

pub use app::App;

/// What the window is called.
pub const TITLE: &str = "Scumble";
