//! Work that must not hold up the window and is no job for the engine: dialogs, saving.

use scumble::error::{Error, Result};

/// How much the engine gives way to the window, in steps of `nice`.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 5;

/// Runs something where the threads it starts, and those that they start, give way to this one: a frame is not late
/// because all cores compute. Only Linux counts this by thread; elsewhere it makes no difference.
///
/// # Errors
/// Its own; if the system has no thread to give.
pub fn giving_way<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let lower = || {
        #[cfg(target_os = "linux")]
        // SAFETY: sets a number of the calling thread; if it is refused, nothing has changed.
        unsafe {
            libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
        }
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("scumble-start".into()).spawn_scoped(scope, lower);
        let thread = thread.map_err(|e| Error::invalid(format!("cannot start a thread: {e}")))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs something on a thread of its own.
///
/// # Errors
/// If the system has no thread to give.
pub fn run(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name("scumble-aside".into()).spawn(work);
    thread.map(drop).map_err(|e| Error::invalid(format!("cannot start a thread: {e}")))
}
