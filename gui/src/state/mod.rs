//! What the window shows: plain data. [`Settings`] is remembered between runs, [`Session`] is not.

mod session;
mod settings;

pub use session::*;
pub use settings::*;

/// Everything.
#[derive(Debug, Default)]
pub struct State {
    /// What is remembered.
    pub settings: Settings,
    /// What is not.
    pub session: Session,
}
