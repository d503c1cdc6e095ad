//! Work on files, one thing after the other: what is written later is what stays.

use std::{
    sync::mpsc::{Sender, channel},
    thread::JoinHandle,
};

use scumble::error::{Error, Result};

type Work = Box<dyn FnOnce() + Send>;

/// A thread that does what it is given in that order. Dropping it waits until all is done.
#[derive(Debug, Default)]
pub struct Line {
    /// Since there was something to do.
    started: Option<(Sender<Work>, JoinHandle<()>)>,
}

impl Line {
    /// # Errors
    /// If the system has no thread to give.
    pub fn put(&mut self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        if self.started.as_ref().is_none_or(|(_, thread)| thread.is_finished()) {
            let (sender, receiver) = channel::<Work>();
            let thread = std::thread::Builder::new().name("scumble-keep".into());
            let thread = thread.spawn(move || receiver.into_iter().for_each(|work| work()));
            let thread = thread.map_err(|e| Error::invalid(format!("cannot start a thread: {e}")))?;
            self.started = Some((sender, thread));
        }
        if let Some((sender, _)) = &self.started {
            sender.send(Box::new(work)).ok();
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.started.take() {
            drop(sender);
            thread.join().ok();
        }
    }
}
