//! What waits and what runs, for people.

use scumble::{
    engine::{Command, JobId},
    pipeline::GenerateRequest,
};

use super::{Effect, start, training};
use crate::state::{Job, Purpose, Session, stem};

/// Letters of a prompt in a title.
const LETTERS: usize = 40;

/// What is remembered of a job that is submitted.
pub fn job(session: &Session, purpose: Purpose, command: &Command) -> Job {
    let start = match purpose {
        Purpose::Base(_) => session.canvas.shot.as_ref().and_then(|shot| shot.start.clone()),
        _ => session.start.clone(),
    };
    Job { purpose, title: title(command), start: start.filter(|_| start::starts(command)) }
}

fn title(command: &Command) -> String {
    let prompt = |request: &GenerateRequest| {
        let short: String = request.prompt.chars().take(LETTERS).collect();
        let more = if short.len() < request.prompt.len() { "…" } else { "" };
        format!("{short}{more}, seed {}", request.seed)
    };
    match command {
        Command::Draw(draw) if draw.request.count > 1 => {
            format!("{} pictures: {}", draw.request.count, prompt(&draw.request))
        }
        Command::Draw(draw) => format!("picture: {}", prompt(&draw.request)),
        Command::Grid(grid) => format!("grid of {}: {}", grid.grid.len(), prompt(&grid.request)),
        Command::Train(training) => format!("training {}", stem(&training.config.out)),
        Command::Load(model) => format!("opening {model}"),
        Command::Export(export) => format!("exporting {}", stem(&export.out)),
        Command::Scan(config) => format!("looking at {}", stem(&config.images)),
        Command::Library(folder) => format!("looking through {}", stem(folder)),
        Command::Describe(path) => format!("reading {}", stem(path)),
        _ => "working".into(),
    }
}

/// Stops one job. A training is paused: nothing of it is lost.
pub(super) fn cancel(session: &mut Session, id: JobId, effects: &mut Vec<Effect>) {
    match session.jobs.get(&id).map(|job| &job.purpose) {
        Some(Purpose::Train) => training::stop(session, true, effects),
        Some(_) => effects.push(Effect::Stop(id)),
        None => {}
    }
}
