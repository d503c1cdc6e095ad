//! What the engine reports.

use std::{collections::BTreeMap, sync::Arc};

use scumble::{
    engine::{Event, JobId, Picture},
    progress::Stage,
};

use super::{Action, Effect, act, ensure_base, recipe, training};
use crate::state::{Job, Progress, Purpose, Session, Shot, Start, State, TrainPicture, stem};

/// Pictures kept, and the bytes they may take all together: 85 of 1024².
const HISTORY: (usize, usize) = (200, 256 << 20);
/// Previews of a training kept.
const SAMPLES: usize = 64;
/// Points of the loss kept: more than a plot has pixels.
const LOSSES: usize = 4096;

/// Takes in an event. `now` counts seconds from the program's start.
pub fn receive(state: &mut State, event: Event, now: f64) -> Vec<Effect> {
    let mut effects = Vec::new();
    let purpose = |session: &Session, job: JobId| session.jobs.get(&job).map(|job| job.purpose.clone());
    let State { settings, session } = state;
    match event {
        Event::Started(job) => session.running = Some(job),
        Event::Progress { job, stage, done, total } => {
            session.progress = Some(Progress { job, stage, done, total });
            if stage == Stage::Train {
                session.training.now = (now, done);
                session.training.pace.get_or_insert((now, done));
            }
        }
        Event::Loss { step, loss, .. } => {
            let losses = &mut session.training.losses;
            losses.push([step as f64, loss]);
            if losses.len() > LOSSES {
                // Every other one tells the same: the loss is smoothed.
                let mut kept = false;
                losses.retain(|_| {
                    kept = !kept;
                    kept
                });
            }
        }
        Event::Warning(_, message) => session.tell(message, None, false),
        Event::Model(_, facts) => {
            let known = settings.recent_models.contains(&facts.name);
            if !known && facts.name != "mini" {
                settings.recent_models.push(facts.name.clone());
            }
            session.model = Some(facts);
        }
        // The base that is compared with is no blend.
        Event::Blend(job, _) if matches!(purpose(session, job), Some(Purpose::Base(_))) => {}
        Event::Blend(_, report) => session.report = Some(report),
        Event::Preview { job, picture, .. } => {
            if matches!(purpose(session, job), Some(Purpose::Draw | Purpose::Live | Purpose::Grid)) {
                session.canvas.preview = Some((next(session), Arc::new(picture)));
            }
        }
        Event::Picture(job, picture) => {
            if let Some(job) = session.jobs.get(&job).cloned() {
                finished(session, job, *picture);
                ensure_base(settings, session, &mut effects);
            }
        }
        Event::Sample { step, picture, .. } => {
            let shot = shot(session, *picture, (false, None));
            let samples = &mut session.training.samples;
            samples.push((step, shot));
            if samples.len() > SAMPLES {
                // The first one stays to be compared with.
                samples.remove(1);
            }
        }
        Event::Scanned { report, pictures, .. } => {
            session.training.report = Some(report);
            session.training.pictures = pictures
                .into_iter()
                .map(|scanned| TrainPicture {
                    caption: scanned.caption.clone(),
                    id: next(session),
                    scanned: Arc::new(scanned),
                })
                .collect();
        }
        Event::Library { folder, entries, .. } => {
            for entry in entries.iter().filter(|entry| entry.content.is_ok()) {
                session.known.insert(entry.name.clone(), folder.join(&entry.path));
            }
            (session.library.folder, session.library.entries) = (folder, entries);
        }
        Event::Described { path, card, .. } => drop(session.cards.insert(path, card)),
        Event::Adapter { path, resumable, .. } => {
            session.known.insert(stem(&path), path.clone());
            training::made(session, path, resumable);
        }
        Event::Exported { path, rank, relative_error, .. } => {
            let error = match relative_error {
                error if error < 1e-3 => "exact".to_owned(),
                error => format!("{:.1} % of the change is lost", error * 100.0),
            };
            session.tell(format!("exported: {}, rank {rank}, {error}", path.display()), None, false);
        }
        Event::Memory(_, bytes) => session.memory_bytes = Some(bytes),
        Event::Finished(job) => {
            session.tally.finished += 1;
            ended(state, job, &mut effects, now);
        }
        Event::Cancelled(job) => {
            session.tally.cancelled += 1;
            ended(state, job, &mut effects, now);
        }
        Event::Failed { job, message, hint } => {
            session.tally.failed += 1;
            session.tell(message, hint, true);
            back_to_a_model(state, job);
            ended(state, job, &mut effects, now);
        }
        _ => {}
    }
    effects
}

/// A model that did not open is not kept: the one before it is, or the built-in one. Its name stays where it was typed.
fn back_to_a_model(State { settings, session }: &mut State, job: JobId) {
    let purpose = session.jobs.get(&job).map(|job| &job.purpose);
    if matches!(purpose, Some(Purpose::Load | Purpose::Draw | Purpose::Live | Purpose::Grid)) {
        let open = session.model.as_ref().map_or("mini", |model| &model.name);
        if settings.model != open {
            session.model_name = std::mem::replace(&mut settings.model, open.to_owned());
        }
    }
}

fn ended(state: &mut State, job: JobId, effects: &mut Vec<Effect>, now: f64) {
    let session = &mut state.session;
    let purpose = session.jobs.remove(&job).map(|job| job.purpose);
    session.tally.strays += u64::from(purpose.is_none());
    session.running = session.running.filter(|running| *running != job);
    if session.progress.is_some_and(|p| p.job == job) {
        session.progress = None;
    }
    if !session.is_drawing() {
        session.canvas.preview = None;
    }
    if purpose == Some(Purpose::Train) {
        let made = training::ended(session);
        if session.closing {
            effects.push(Effect::Close);
        } else if let Some(path) = made {
            effects.extend(act(state, Action::AddStyles(vec![path]), now));
        }
    }
}

fn finished(session: &mut Session, Job { purpose, start, .. }: Job, picture: Picture) {
    let elapsed = picture.elapsed.as_secs_f64();
    let shot = shot(session, picture, (purpose == Purpose::Live, start));
    if let Purpose::Base(_) = purpose {
        session.canvas.base = Some((recipe::base_key(&shot), shot));
        return;
    }
    if purpose != Purpose::Grid {
        session.last_secs = Some(elapsed);
    }
    session.canvas.preview = None;
    let current = session.canvas.shot.as_ref().map(|shot| shot.id);
    // Dragging a slider leaves one picture, not thirty.
    let follows = |last: &Shot| last.live && shot.live && Some(last.id) == current;
    if session.history.last().is_some_and(follows) {
        session.history.pop();
    }
    session.history.push(shot.clone());
    let (pictures, bytes) = HISTORY;
    let held = |shots: &[Shot]| {
        // Many pictures may start from the same one.
        let starts: BTreeMap<u64, usize> = shots
            .iter()
            .filter_map(|shot| shot.start.as_ref())
            .map(|start| (start.id, start.pixels.as_raw().len()))
            .collect();
        let drawn: usize = shots.iter().map(|shot| shot.image.as_raw().len()).sum();
        drawn + starts.values().sum::<usize>()
    };
    while session.history.len() > pictures || session.history.len() > 1 && held(&session.history) > bytes {
        session.history.remove(0);
    }
    session.canvas.shot = Some(shot);
}

fn shot(session: &mut Session, picture: Picture, (live, start): (bool, Option<Start>)) -> Shot {
    let (image, recipe) = (Arc::new(picture.image), Arc::new(picture.recipe));
    Shot { id: next(session), image, recipe, start, live }
}

fn next(session: &mut Session) -> u64 {
    session.next_shot += 1;
    session.next_shot
}
