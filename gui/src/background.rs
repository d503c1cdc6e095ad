//! Work that must not hold up the window and is no job for the engine: dialogs, saving.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use eframe::egui::Context;
use scumble::error::{Error, Result};

/// What the engine says is shown this often at most: a small model takes more steps a second than anybody sees, and where
/// frames are drawn by software, each takes the engine's time.
const SHOWN_EVERY: Duration = Duration::from_millis(33);

/// How much the engine gives way to the window, in steps of `nice`.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 5;

/// Has a frame drawn: at once, or, if the last one it asked for is less than [`SHOWN_EVERY`] old, by then.
pub fn waking(ctx: Context) -> impl Fn() + Send + Sync {
    // When the last frame that was asked for is drawn.
    let drawn: Mutex<Option<Instant>> = Mutex::default();
    move || {
        let now = Instant::now();
        let mut drawn = drawn.lock().unwrap_or_else(PoisonError::into_inner);
        match *drawn {
            Some(last) if last > now => {}
            Some(last) if now - last < SHOWN_EVERY => {
                *drawn = Some(last + SHOWN_EVERY);
                ctx.request_repaint_after(last + SHOWN_EVERY - now);
            }
            _ => {
                *drawn = Some(now);
                ctx.request_repaint();
            }
        }
    }
}

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
