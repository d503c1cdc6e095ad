//! What the engine reports.

use std::sync::Arc;

use scumble::{
    engine::{Event, JobId, Picture},
    progress::Stage,
};

use super::{Action, Effect, act, ensure_base, history, next, queue, recipe, training};
use crate::state::{Job, Progress, Purpose, Session, Shot, Start, State, TrainPicture, stem};

/// Pictures whose pace is remembered: one slow one among them is not what the next ones take.
const PACES: usize = 9;
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
        Event::Loss { step, loss, .. } => learned(&mut session.training.losses, [step as f64, loss]),
        Event::Warning(_, message) => session.tell(message, None, false),
        Event::Model(job, facts) => {
            session.opened = Some((job, now));
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
            if let Some(under_way) = session.jobs.get_mut(&job) {
                under_way.seeds = None;
                let under_way = under_way.clone();
                finished(session, (job, under_way), *picture, (now, &mut effects));
                ensure_base(settings, session, &mut effects);
            }
        }
        Event::Sample { step, picture, .. } => {
            let shot = shot(session, *picture, (false, None), now);
            training::sampled(&mut session.training, step, shot, &mut effects);
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
            queue::unseed(settings, session, job);
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
        let made = training::ended(session, effects);
        if session.closing {
            effects.push(Effect::Close);
        } else if let Some(path) = made {
            effects.extend(act(state, Action::AddStyles(vec![path]), now));
        }
    }
}

fn finished(
    session: &mut Session,
    (id, job): (JobId, Job),
    picture: Picture,
    (now, effects): (f64, &mut Vec<Effect>),
) {
    let elapsed = picture.elapsed.as_secs_f64();
    let shot = shot(session, picture, (job.purpose == Purpose::Live, job.start), now);
    if let Purpose::Base(_) = job.purpose {
        session.canvas.base = Some((recipe::base_key(&shot), shot));
        return;
    }
    if job.purpose != Purpose::Grid {
        session.last_secs = Some(elapsed);
        // Opening the model is no part of drawing.
        let opened = session.opened.filter(|(by, _)| *by == id).map(|(_, at)| now - at);
        pace(session, opened.map_or(elapsed, |since| since.min(elapsed)), &shot);
    }
    session.canvas.preview = None;
    history::push(session, shot, job.at, effects);
}

/// Remembers how long a step of so many pixels took.
fn pace(session: &mut Session, secs: f64, shot: &Shot) {
    let steps = shot.recipe.steps.unwrap_or(1).max(1) as f64;
    // A second pass is counted with the first one's size, as the settings are.
    let (width, height) = shot.recipe.size_px.unwrap_or((1, 1));
    session.paces.push(secs / (steps * (width * height).max(1) as f64));
    if session.paces.len() > PACES {
        session.paces.remove(0);
    }
}

/// A point of the loss. One of a step that was reached before, too, begins anew from there.
fn learned(losses: &mut Vec<[f64; 2]>, point: [f64; 2]) {
    while losses.last().is_some_and(|[step, _]| *step >= point[0]) {
        losses.pop();
    }
    losses.push(point);
    if losses.len() > LOSSES {
        // Every other one tells the same: the loss is smoothed.
        let mut kept = false;
        losses.retain(|_| {
            kept = !kept;
            kept
        });
    }
}

fn shot(session: &mut Session, picture: Picture, (live, start): (bool, Option<Start>), now: f64) -> Shot {
    let (image, recipe) = (Arc::new(picture.image), Arc::new(picture.recipe));
    Shot { id: next(session), image, recipe, start, live, at: now, file: None }
}
