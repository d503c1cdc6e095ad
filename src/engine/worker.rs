//! The thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    Command, Event, JobId,
    handle::Outbox,
    memory,
    model::Loaded,
    queue::{Job, Queue},
};
use crate::{
    device::{DeviceChoice, Precision},
    error::{Error, Result},
    progress::{self, CancelToken, Observer},
};

#[derive(Debug)]
pub(super) struct Worker {
    pub device: DeviceChoice,
    pub precision: Precision,
    pub out: Outbox,
    pub loaded: Option<Loaded>,
}

/// The job under way, for those who do it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task<'a> {
    pub id: JobId,
    pub out: &'a Outbox,
    pub cancel: &'a CancelToken,
}

impl Worker {
    pub fn new(device: DeviceChoice, precision: Precision, out: Outbox) -> Self {
        Self { device, precision, out, loaded: None }
    }

    pub fn work(mut self, queue: &Queue) {
        while let Some(job) = queue.next() {
            self.run(job);
        }
    }

    fn run(&mut self, Job { id, command, cancel }: Job) {
        let out = self.out.clone();
        let task = Task { id, out: &out, cancel: &cancel };
        out.send(Event::Started(id));
        let work = AssertUnwindSafe(|| cancel.check().and_then(|()| self.execute(task, command)));
        let outcome = catch_unwind(work).unwrap_or_else(|panic| {
            // What it was doing to the model is not known.
            self.loaded = None;
            Err(internal(&*panic))
        });
        if let Some(bytes) = memory::resident_bytes() {
            out.send(Event::Memory(id, bytes));
        }
        out.send(match outcome {
            Ok(()) => Event::Finished(id),
            Err(e) if e.is_cancelled() => Event::Cancelled(id),
            Err(e) => Event::Failed { job: id, message: e.to_string(), hint: e.hint().map(str::to_owned) },
        });
    }

    fn execute(&mut self, task: Task<'_>, command: Command) -> Result<()> {
        match command {
            Command::Load(model) => self.open(&model, task).map(drop),
            Command::Draw(draw) => self.draw(*draw, task),
            Command::Grid(grid) => self.grid(*grid, task),
            Command::Train(training) => self.train(*training, task),
            Command::Scan(config) => super::look::scan(&config, task),
            Command::Library(folder) => super::look::library(folder, task),
            Command::Describe(path) => super::look::describe(path, task),
            Command::Export(export) => self.export(&export, task),
        }
    }
}

impl Task<'_> {
    pub fn send(&self, event: Event) {
        self.out.send(event);
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.send(Event::Warning(self.id, message.into()));
    }

    /// Passes on what can be said without knowing more.
    pub fn observer(&self) -> impl Observer + use<> {
        let (job, out) = (self.id, self.out.clone());
        move |event: &progress::Event<'_>| {
            if let Some(event) = told(job, event) {
                out.send(event);
            }
        }
    }
}

/// What is passed on of work's own events.
pub(super) fn told(job: JobId, event: &progress::Event<'_>) -> Option<Event> {
    Some(match *event {
        progress::Event::Started { stage, total } => Event::Progress { job, stage, done: 0, total },
        progress::Event::Advanced { stage, done, total } => Event::Progress { job, stage, done, total },
        progress::Event::Loss { step, loss, .. } => Event::Loss { job, step, loss },
        progress::Event::Warning { message } => Event::Warning(job, message.to_owned()),
        _ => return None,
    })
}

fn internal(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::invalid(format!("a mistake in this program: {text}"))
        .with_hint("please report it, with what you did; the model will be opened anew")
}
