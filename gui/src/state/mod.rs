//! What the window shows: plain data. [`Settings`] is remembered between runs, [`Session`] is not.

mod painting;
mod session;
mod settings;
mod style;

pub use painting::*;
pub use session::*;
pub use settings::*;
pub use style::*;

/// Everything.
#[derive(Debug, Default)]
pub struct State {
    /// What is remembered.
    pub settings: Settings,
    /// What is not.
    pub session: Session,
}
