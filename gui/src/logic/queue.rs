//! What waits and what runs, for people.

use scumble::{
    engine::{Command, JobId},
    pipeline::GenerateRequest,
};

use super::{Effect, start, training};
use crate::state::{Job, Purpose, Seeds, Session, Settings, stem};

/// Letters of a prompt in a title.
const LETTERS: usize = 40;

/// What is remembered of a job that is submitted. `now` counts seconds from the program's start.
pub fn job(session: &mut Session, purpose: Purpose, command: &Command, now: f64) -> Job {
    let start = match purpose {
        Purpose::Base(_) => session.canvas.shot.as_ref().and_then(|shot| shot.start.clone()),
        _ => session.start.clone(),
    };
    let seeds = session.seeds.take_if(|_| purpose == Purpose::Draw);
    Job { purpose, title: title(command), start: start.filter(|_| start::starts(command)), at: now, seeds }
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

/// The seed of a picture that is about to be asked for.
pub(super) fn reseed(settings: &mut Settings, session: &mut Session, seed: u64) {
    session.seeds = Some(Seeds { own: seed, field: settings.seed, drawn: session.drawn_seed });
    settings.seed = seed;
}

/// A job is dropped. If it leaves no picture, the field shows the seed from before it again.
pub(super) fn unseed(settings: &mut Settings, session: &mut Session, id: JobId) {
    let Some(Seeds { own, field, drawn }) = session.jobs.get(&id).and_then(|job| job.seeds) else { return };
    let mut later = session.jobs.range_mut(id..).skip(1).filter_map(|(_, job)| job.seeds.as_mut());
    if let Some(seeds) = later.next() {
        // That one came after it.
        (seeds.field, seeds.drawn) = (field, drawn);
    } else if settings.seed == own {
        (settings.seed, session.drawn_seed) = (field, drawn);
    }
}
