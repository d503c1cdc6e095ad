//! Work on a thread of its own with a large stack, seen from here: a graph is dropped recursively, and a network's
//! is deep.

use std::{
    path::PathBuf,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    progress::{Event, Observer, Stage},
};

/// Reserved, not used: pages are taken as they are touched.
const STACK_BYTES: usize = 512 << 20;

/// Runs `work` on a named thread and passes its events to `observer` on this one.
///
/// # Errors
/// Whatever `work` returns, or if the system has no thread left.
pub(super) fn on_large_stack<T: Send>(
    observer: &mut dyn Observer,
    work: impl FnOnce(&mut dyn Observer) -> Result<T> + Send,
) -> Result<T> {
    // Work waits until an event was taken: while a picture is drawn on the way, it is one step ahead at most, and a wish to
    // stop finds it there.
    let (sender, receiver) = sync_channel(0);
    thread::scope(|scope| {
        let body = move || work(&mut Relay(sender));
        let worker = thread::Builder::new()
            .name("scumble-train".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, body)
            .map_err(|e| Error::invalid(format!("no thread to train on: {e}")))?;
        for event in receiver {
            event.tell(observer);
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Relay(SyncSender<Owned>);

impl Observer for Relay {
    fn observe(&mut self, event: &Event<'_>) {
        // Nobody listens any more only while a panic unwinds.
        self.0.send(Owned::from(event)).ok();
    }
}

/// An [`Event`] that can cross threads.
enum Owned {
    Started { stage: Stage, total: u64 },
    Advanced { stage: Stage, done: u64, total: u64 },
    Finished { stage: Stage },
    Loss { step: u64, loss: f64, learning_rate: f64 },
    Preview { step: u64, latents: Tensor },
    Saved { path: PathBuf },
    Warning { message: String },
}

impl From<&Event<'_>> for Owned {
    fn from(event: &Event<'_>) -> Self {
        match *event {
            Event::Started { stage, total } => Self::Started { stage, total },
            Event::Advanced { stage, done, total } => Self::Advanced { stage, done, total },
            Event::Finished { stage } => Self::Finished { stage },
            Event::Loss { step, loss, learning_rate } => Self::Loss { step, loss, learning_rate },
            Event::Preview { step, latents } => Self::Preview { step, latents: latents.clone() },
            Event::Saved { path } => Self::Saved { path: path.to_path_buf() },
            Event::Warning { message } => Self::Warning { message: message.to_string() },
        }
    }
}

impl Owned {
    fn tell(&self, observer: &mut dyn Observer) {
        observer.observe(&match *self {
            Self::Started { stage, total } => Event::Started { stage, total },
            Self::Advanced { stage, done, total } => Event::Advanced { stage, done, total },
            Self::Finished { stage } => Event::Finished { stage },
            Self::Loss { step, loss, learning_rate } => Event::Loss { step, loss, learning_rate },
            Self::Preview { step, ref latents } => Event::Preview { step, latents },
            Self::Saved { ref path } => Event::Saved { path },
            Self::Warning { ref message } => Event::Warning { message },
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };

    use super::*;

    #[test]
    fn events_arrive_in_order_and_the_stack_is_deep() -> Result<()> {
        fn deep(n: usize) -> usize {
            let frame = std::hint::black_box([n; 128]);
            if n == 0 { frame[0] } else { deep(n - 1) + usize::from(frame[1] == n) }
        }
        let mut steps = Vec::new();
        let mut observer = |event: &Event<'_>| {
            if let Event::Loss { step, .. } = event {
                steps.push(*step);
            }
        };
        let depth = on_large_stack(&mut observer, |observer| {
            for step in 0..200 {
                observer.observe(&Event::Loss { step, loss: 0.0, learning_rate: 0.0 });
            }
            Ok(deep(20_000))
        })?;
        assert_eq!((depth, steps), (20_000, (0..200).collect()));
        let failed: Result<()> = on_large_stack(&mut (), |_| Err(Error::Cancelled));
        assert!(failed.is_err_and(|e| e.is_cancelled()));
        Ok(())
    }

    #[test]
    fn work_waits_while_an_event_is_looked_at() -> Result<()> {
        let done = AtomicU64::new(0);
        let mut observer = |event: &Event<'_>| {
            if let Event::Loss { step, .. } = event {
                thread::sleep(Duration::from_millis(5));
                assert!(done.load(Ordering::SeqCst) <= step + 1, "ahead of step {step}");
            }
        };
        on_large_stack(&mut observer, |observer| {
            for step in 0..10 {
                observer.observe(&Event::Loss { step, loss: 0.0, learning_rate: 0.0 });
                done.store(step + 1, Ordering::SeqCst);
            }
            Ok(())
        })
    }
}
