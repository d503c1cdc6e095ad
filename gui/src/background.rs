//! Work that must not hold up the window and is no job for the engine: dialogs, saving.

use scumble::error::{Error, Result};

/// Runs something on a thread of its own.
///
/// # Errors
/// If the system has no thread to give.
pub fn run(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name("scumble-aside".into()).spawn(work);
    thread.map(drop).map_err(|e| Error::invalid(format!("cannot start a thread: {e}")))
}
