//! Jobs that wait, and the one that runs.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{Command, JobId};
use crate::progress::CancelToken;

/// Jobs that may wait.
const LONGEST: usize = 64;

#[derive(Debug)]
pub(super) struct Job {
    pub id: JobId,
    pub command: Command,
    pub cancel: CancelToken,
}

impl Job {
    fn is_replaceable(&self) -> bool {
        matches!(&self.command, Command::Draw(draw) if draw.replace)
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Option<Running>,
    last: u64,
    closed: bool,
}

#[derive(Debug)]
struct Running {
    id: JobId,
    cancel: CancelToken,
    replaceable: bool,
}

/// What putting a job in has done.
pub(super) struct Queued {
    pub id: JobId,
    /// Jobs that will never run.
    pub dropped: Vec<JobId>,
}

impl Queue {
    /// `None` if too many wait, or the queue is closed.
    pub fn push(&self, command: Command) -> Option<Queued> {
        let mut state = self.lock();
        let job = Job { id: JobId(state.last + 1), command, cancel: CancelToken::default() };
        let replaced = |waiting: &Job| job.is_replaceable() && waiting.is_replaceable();
        let dropped: Vec<JobId> = state.waiting.iter().filter(|w| replaced(w)).map(|w| w.id).collect();
        if state.closed || state.waiting.len() - dropped.len() >= LONGEST {
            return None;
        }
        if job.is_replaceable() {
            state.waiting.retain(|waiting| !waiting.is_replaceable());
            state.running.iter().filter(|r| r.replaceable).for_each(|r| r.cancel.cancel());
        }
        state.last += 1;
        let id = job.id;
        state.waiting.push_back(job);
        self.changed.notify_one();
        Some(Queued { id, dropped })
    }

    /// True if the job waited and will never run. One that runs is asked to stop.
    pub fn cancel(&self, id: JobId) -> bool {
        let mut state = self.lock();
        state.running.iter().filter(|r| r.id == id).for_each(|r| r.cancel.cancel());
        let before = state.waiting.len();
        state.waiting.retain(|job| job.id != id);
        state.waiting.len() < before
    }

    /// The next job, as soon as there is one; `None` when the queue is closed.
    pub fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        state.running = None;
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.waiting.pop_front() {
                let (cancel, replaceable) = (job.cancel.clone(), job.is_replaceable());
                state.running = Some(Running { id: job.id, cancel, replaceable });
                return Some(job);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stops what runs and forgets what waits.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
        state.running.iter().for_each(|r| r.cancel.cancel());
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
