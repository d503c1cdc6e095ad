//! The thread.

use std::{
    sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    thread::{Builder, JoinHandle},
};

use super::{Command, Event, JobId};
use crate::{
    adapter::{Blend, LoadOptions},
    device::{DeviceChoice, Precision},
    error::{Error, Result},
    pipeline::{GenerateRequest, Pipeline},
    progress::{self, CancelToken, Observer},
    training::{TrainConfig, TrainOutcome, Trainer},
    weights::{ModelSource, OpenOptions},
};

use super::command::LoraUse;

/// Jobs that may wait.
const QUEUE: usize = 64;

struct Job {
    id: JobId,
    command: Command,
    cancel: CancelToken,
}

/// The handle of the worker. Dropping it cancels the job under way and waits for its end.
#[derive(Debug)]
pub struct Engine {
    jobs: Option<SyncSender<Job>>,
    events: Receiver<Event>,
    tokens: Vec<(JobId, CancelToken)>,
    next: u64,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the worker. Models are opened on `device` in `precision`.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(device: DeviceChoice, precision: Precision) -> Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let (sender, events) = channel();
        let work = move || {
            let mut worker = Worker { device, precision, events: sender, loaded: None };
            for job in queue {
                worker.run(job);
            }
        };
        let thread = Builder::new().name("scumble-engine".into()).spawn(work);
        let thread = thread.map_err(|e| Error::invalid(format!("cannot start the engine's thread: {e}")))?;
        Ok(Self { jobs: Some(jobs), events, tokens: Vec::new(), next: 1, thread: Some(thread) })
    }

    /// Queues a job.
    ///
    /// # Errors
    /// If too many wait already, or the worker died.
    pub fn submit(&mut self, command: Command) -> Result<JobId> {
        let (id, cancel) = (JobId(self.next), CancelToken::default());
        let job = Job { id, command, cancel: cancel.clone() };
        let sent = self.jobs.as_ref().map(|jobs| jobs.try_send(job));
        match sent {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => {
                return Err(Error::invalid(format!("{QUEUE} jobs wait already")));
            }
            _ => return Err(Error::invalid("the engine has stopped")),
        }
        self.next += 1;
        self.tokens.push((id, cancel));
        Ok(id)
    }

    /// Asks a job to stop, whether it runs or waits.
    pub fn cancel(&self, job: JobId) {
        self.tokens.iter().filter(|(id, _)| *id == job).for_each(|(_, token)| token.cancel());
    }

    /// The next event, if there is one now. Never waits.
    pub fn poll(&mut self) -> Option<Event> {
        let event = self.events.try_recv().ok()?;
        if let Event::Finished(job) | Event::Cancelled(job) | Event::Failed { job, .. } = &event {
            self.tokens.retain(|(id, _)| id != job);
        }
        Some(event)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tokens.iter().for_each(|(_, token)| token.cancel());
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Worker {
    device: DeviceChoice,
    precision: Precision,
    events: Sender<Event>,
    loaded: Option<(String, Pipeline)>,
}

impl Worker {
    fn run(&mut self, Job { id, command, cancel }: Job) {
        // A receiver that is gone has no wish for events.
        self.events.send(Event::Started(id)).ok();
        let outcome = cancel.check().and_then(|()| match command {
            Command::Generate { model, loras, request } => {
                self.generate(id, &model, (&loras, &request), &cancel)
            }
            Command::Train(config) => self.train(id, *config, &cancel),
        });
        let last = match outcome {
            Ok(()) => Event::Finished(id),
            Err(e) if e.is_cancelled() => Event::Cancelled(id),
            Err(e) => Event::Failed { job: id, message: e.to_string(), hint: e.hint().map(str::to_owned) },
        };
        self.events.send(last).ok();
    }

    fn generate(
        &mut self,
        id: JobId,
        model: &str,
        (loras, request): (&[LoraUse], &GenerateRequest),
        cancel: &CancelToken,
    ) -> Result<()> {
        let events = self.events.clone();
        let mut observer = forward(id, &self.events);
        if self.loaded.as_ref().is_none_or(|(name, _)| name != model) {
            // The old model leaves memory before the new one comes.
            self.loaded = None;
            let device = self.device.open()?;
            let source = ModelSource::parse(model)?;
            let checkpoint = source.open(&OpenOptions::default(), &mut observer, cancel)?;
            let pipeline = Pipeline::load(&checkpoint, &device, self.precision.dtype(&device))?;
            self.loaded = Some((model.to_owned(), pipeline));
        }
        let Some((_, pipeline)) = &mut self.loaded else { return Ok(()) };
        let mut blend = Blend::new();
        for lora in loras {
            let adapter = pipeline.load_adapter(&lora.path, &LoadOptions::default())?;
            blend = blend.with(lora.path.display().to_string(), adapter, lora.strength.clone());
        }
        pipeline.set_blend(blend)?;
        pipeline.generate_each(request, &mut observer, cancel, &mut |picture, _| {
            events.send(Event::Picture(id, Box::new(picture))).ok();
            Ok(())
        })
    }

    fn train(&mut self, id: JobId, config: TrainConfig, cancel: &CancelToken) -> Result<()> {
        let mut observer = forward(id, &self.events);
        let (adapter, cancelled) = match Trainer::new(config)?.run(&mut observer, cancel)? {
            TrainOutcome::Finished { adapter, .. } => (adapter, false),
            TrainOutcome::Cancelled { adapter, .. } => (adapter, true),
        };
        self.events.send(Event::Adapter(id, adapter)).ok();
        if cancelled { Err(Error::Cancelled) } else { Ok(()) }
    }
}

fn forward(job: JobId, events: &Sender<Event>) -> impl Observer + use<> {
    let events = events.clone();
    move |event: &progress::Event<'_>| {
        let event = match *event {
            progress::Event::Advanced { stage, done, total } => Event::Progress { job, stage, done, total },
            progress::Event::Loss { step, loss, .. } => Event::Loss { job, step, loss },
            progress::Event::Warning { message } => Event::Warning(job, message.to_owned()),
            _ => return,
        };
        events.send(event).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_job_ends_once_and_says_why() -> Result<()> {
        let mut engine = Engine::start(DeviceChoice::Cpu, Precision::F32)?;
        let mut submit = || {
            let request = Box::new(GenerateRequest::new("a cat"));
            engine.submit(Command::Generate { model: "no such model".into(), loras: Vec::new(), request })
        };
        let jobs = [submit()?, submit()?];
        let mut ends = Vec::new();
        for _ in 0..500 {
            match engine.poll() {
                Some(Event::Failed { job, hint, .. }) => ends.push((job, hint.is_some())),
                Some(_) => {}
                None if ends.len() == 2 => break,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        assert_eq!(ends, jobs.map(|job| (job, true)));
        Ok(())
    }
}
