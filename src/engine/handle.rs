//! What a program holds.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

use super::{Command, Event, JobId, queue::Queue, worker::Worker};
use crate::{
    device::{DeviceChoice, Precision},
    error::{Error, Result},
};

/// The handle of the worker. Dropping it cancels the job under way and waits for its end.
#[derive(Debug)]
pub struct Engine {
    queue: Arc<Queue>,
    out: Outbox,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the worker. Models are opened on `device` in `precision`; `wake` is called after every event, on the
    /// worker's thread, and must be quick.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(
        device: DeviceChoice,
        precision: Precision,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let (sender, events) = channel();
        let out = Outbox { sender, wake: Arc::new(wake) };
        let worker = Worker::new(device, precision, out.clone());
        let jobs = queue.clone();
        let thread = Builder::new().name("scumble-engine".into()).spawn(move || worker.work(&jobs));
        let thread = thread.map_err(|e| Error::invalid(format!("cannot start the engine's thread: {e}")))?;
        Ok(Self { queue, out, events, thread: Some(thread) })
    }

    /// Queues a job.
    ///
    /// # Errors
    /// If too many wait already, or the worker died.
    pub fn submit(&mut self, command: Command) -> Result<JobId> {
        let queued = self.queue.push(command).ok_or_else(|| Error::invalid("too many jobs wait already"))?;
        queued.dropped.into_iter().for_each(|job| self.out.send(Event::Cancelled(job)));
        Ok(queued.id)
    }

    /// Asks a job to stop, whether it runs or waits.
    pub fn cancel(&self, job: JobId) {
        if self.queue.cancel(job) {
            self.out.send(Event::Cancelled(job));
        }
    }

    /// The next event, if there is one now. Never waits.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Where events go.
#[derive(Clone)]
pub(super) struct Outbox {
    sender: Sender<Event>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Outbox {
    pub fn send(&self, event: Event) {
        // A receiver that is gone has no wish for events.
        self.sender.send(event).ok();
        (self.wake)();
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}
