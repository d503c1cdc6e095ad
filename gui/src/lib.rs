//! The Scumble viewer: draw while blending styles, and train them.
//!
//! It knows the library's engine and no tensors: `state` is plain data, `logic` says what actions and the engine's events
//! do to it, `panels` draw it, and `app` does what has effects outside. `crash` reports what must not happen.

mod app;
pub mod arguments;
mod background;
pub mod crash;
mod dialogs;
pub mod keep;
pub mod logic;
mod panels;
mod samples;
pub mod state;
pub mod text;
mod theme;
mod widgets;

pub use app::App;
pub use text::TITLE;

/// What the system knows the program by.
pub const APP_ID: &str = "scumble";
