//! Training a style.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use scumble::{
    engine::{Command, Previews, Training},
    pipeline::GenerateRequest,
    training::{TrainConfig, UnetLayers, state_path},
};

use super::{Action, Effect, Keep, next};
use crate::{
    keep::runs::Record,
    state::{Purpose, Run, Session, Settings, Shot, TrainForm, TrainView},
};

/// Previews kept.
const SAMPLES: usize = 64;
/// Steps of a preview.
const PREVIEW_STEPS: usize = 12;

pub(super) fn act(settings: &mut Settings, session: &mut Session, action: Action, effects: &mut Vec<Effect>) {
    match action {
        Action::TrainFolder(folder) if !session.is_training() => {
            settings.train.folder = Some(folder);
            session.training = TrainView::default();
            scan(settings, session, effects);
        }
        Action::ReadRun(out, record) => recall(settings, session, &out, *record),
        Action::Rescan => scan(settings, session, effects),
        Action::SaveCaption(index) => {
            let tokens = session.model.as_ref().map(|model| &model.tokens);
            if let Some(picture) = session.training.pictures.get_mut(index) {
                let caption = picture.caption.trim().to_owned();
                let scanned = Arc::make_mut(&mut picture.scanned);
                if let Some(Ok((count, _))) = tokens.map(|tokens| tokens.count(&caption)) {
                    scanned.tokens = count;
                }
                (scanned.caption, scanned.captioned) = (picture.caption.clone(), true);
                effects.push(Effect::WriteCaption(scanned.path.with_extension("txt"), caption));
            }
        }
        Action::StartTraining => start(settings, session, false, effects),
        Action::ResumeTraining => start(settings, session, true, effects),
        Action::PauseTraining => stop(session, true, effects),
        Action::StopTraining => {
            stop(session, false, effects);
            // One that was paused has its adapter already.
            if session.training.run == Run::Paused && !session.is_training() {
                session.training.run = Run::Done;
                if let Some(path) = session.training.out.clone() {
                    super::blend::add(settings, session, vec![path], effects);
                }
            }
        }
        _ => {}
    }
}

fn scan(settings: &Settings, session: &mut Session, effects: &mut Vec<Effect>) {
    if settings.train.folder.is_none() {
        return;
    }
    if session.training.run != Run::Running {
        session.training.run = Run::Idle;
        session.training.is_there = settings.train.folder.as_deref().is_some_and(Path::is_dir);
        // A run that was stopped earlier, perhaps by closing the window, can go on.
        let out = out_path(&settings.train, session);
        if state_path(&out).is_file() {
            session.training.run = Run::Paused;
            effects.push(Effect::ReadRun(out.clone()));
            session.training.out = out.is_file().then_some(out);
        }
    }
    let config = TrainConfig { offline: true, ..config(settings, session) };
    effects.push(Effect::Submit(Purpose::Scan, Command::Scan(Box::new(config))));
}

fn start(settings: &Settings, session: &mut Session, resume: bool, effects: &mut Vec<Effect>) {
    if session.is_training() || settings.train.folder.is_none() {
        return;
    }
    let config = config(settings, session);
    // A run that was stopped is never lost to one that starts.
    let resume = resume || state_path(&config.out).is_file();
    let config = TrainConfig { resume, ..config };
    let request = GenerateRequest {
        steps: PREVIEW_STEPS,
        seed: settings.train.seed,
        ..GenerateRequest::new(settings.train.preview_prompt.clone())
    };
    let every = settings.train.preview_every;
    let previews = (every > 0).then_some(Previews { every, request });
    let view = &mut session.training;
    (view.run, view.pace, view.pausing) = (Run::Running, None, false);
    view.out = Some(config.out.clone());
    if !resume {
        view.losses.clear();
        view.samples.clear();
        effects.push(Effect::Keep(Keep::NoRun(config.out.clone())));
    }
    effects.push(Effect::Submit(Purpose::Train, Command::Train(Box::new(Training { config, previews }))));
}

/// Stops, for now or for good.
pub(super) fn stop(session: &mut Session, pausing: bool, effects: &mut Vec<Effect>) {
    session.training.pausing = pausing;
    let jobs = session.jobs.iter().filter(|(_, job)| job.purpose == Purpose::Train);
    effects.extend(jobs.map(|(job, _)| Effect::Stop(*job)));
}

/// An adapter was written at the end of a run, or where it was stopped.
pub(super) fn made(session: &mut Session, path: PathBuf, resumable: bool) {
    let view = &mut session.training;
    view.run = if resumable && view.pausing { Run::Paused } else { Run::Done };
    view.out = Some(path);
    // What the question before closing is about has ended.
    session.open.closing = false;
}

/// A preview was drawn.
pub(super) fn sampled(view: &mut TrainView, step: u64, shot: Shot, effects: &mut Vec<Effect>) {
    view.samples.retain(|(before, _)| *before < step);
    if let Some(out) = &view.out {
        effects.push(Effect::Keep(Keep::Sample(out.clone(), step, shot.clone())));
    }
    view.samples.push((step, shot));
    if view.samples.len() > SAMPLES {
        // The first one stays to be compared with.
        view.samples.remove(1);
    }
    keep_losses(view, effects);
}

fn keep_losses(view: &TrainView, effects: &mut Vec<Effect>) {
    let out = view.out.clone().filter(|_| !view.losses.is_empty());
    effects.extend(out.map(|out| Effect::Keep(Keep::Losses(out, view.losses.clone()))));
}

/// How a run went that was stopped in an earlier one of the window, if it is still the one: before what was added since.
fn recall(settings: &Settings, session: &mut Session, out: &Path, record: Record) {
    if session.training.run == Run::Idle || out_path(&settings.train, session) != out {
        return;
    }
    let begun = session.training.losses.first().map_or(f64::INFINITY, |[step, _]| *step);
    let earlier = record.losses.into_iter().filter(|[step, _]| *step < begun);
    session.training.losses.splice(0..0, earlier);
    let begun = session.training.samples.first().map_or(u64::MAX, |(step, _)| *step);
    let earlier = record.samples.into_iter().filter(|(step, ..)| *step < begun).take(SAMPLES);
    let shot = |(step, image, recipe)| {
        let (image, recipe, id) = (Arc::new(image), Arc::new(recipe), next(session));
        (step, Shot { id, image, recipe, start: None, live: false, at: 0.0, file: None })
    };
    let earlier: Vec<(u64, Shot)> = earlier.map(shot).collect();
    session.training.samples.splice(0..0, earlier);
}

/// The style to put into the blend, if the run is over and made one.
pub(super) fn ended(session: &mut Session, effects: &mut Vec<Effect>) -> Option<PathBuf> {
    let view = &mut session.training;
    keep_losses(view, effects);
    match view.run {
        Run::Done => view.out.clone(),
        Run::Paused => None,
        // It failed, or was stopped before the first step.
        Run::Running | Run::Idle => {
            let kept = view.out.as_deref().is_some_and(|out| state_path(out).is_file());
            view.run = if kept { Run::Paused } else { Run::Idle };
            None
        }
    }
}

/// What is trained. A style that is finished is never written over: the next one gets a number.
pub fn config(settings: &Settings, session: &Session) -> TrainConfig {
    let form = &settings.train;
    let mut config = TrainConfig {
        model: settings.model.clone(),
        images: form.folder.clone().unwrap_or_default(),
        out: out_path(form, session),
        steps: form.steps,
        batch_size: form.batch,
        seed: form.seed,
        random_flip: form.flip,
        rank: form.rank,
        learning_rate: form.rate,
        train_text_encoder: form.text_encoder,
        gradient_checkpointing: form.checkpointing,
        ..TrainConfig::default()
    };
    if form.all_layers {
        config.layers = UnetLayers::ALL.into();
    }
    let trigger = form.trigger.trim();
    config.dataset.captions.trigger = (!trigger.is_empty()).then(|| trigger.to_owned());
    config
}

/// The file a training writes: beside the folder of pictures.
pub fn out_path(form: &TrainForm, session: &Session) -> PathBuf {
    let view = &session.training;
    if let (Run::Running | Run::Paused, Some(out)) = (view.run, &view.out) {
        return out.clone();
    }
    let folder = form.folder.as_deref().map_or(Path::new(""), folder_of);
    let name = name(form);
    let numbered = (2..).map(|n| format!("{name}-{n}.safetensors"));
    let mut names = std::iter::once(format!("{name}.safetensors")).chain(numbered).map(|n| folder.join(n));
    // With a state beside it, it is a run that goes on.
    let free = names.find(|path| !path.exists() || state_path(path).exists());
    free.unwrap_or_else(|| folder.join("style.safetensors"))
}

/// Seconds until the last step, at the pace so far.
pub fn eta_secs(view: &TrainView, steps: u64) -> Option<f64> {
    let (secs, done) = pace(view)?;
    Some(secs / done * steps.saturating_sub(view.now.1) as f64)
}

/// Pictures the network has seen a second.
pub fn pictures_per_sec(view: &TrainView, batch: usize) -> Option<f64> {
    let (secs, done) = pace(view)?;
    Some(done * batch as f64 / secs)
}

/// Seconds from which on a pace says something.
const SOON: f64 = 0.5;

fn pace(view: &TrainView) -> Option<(f64, f64)> {
    let ((begun, first), (now, done)) = (view.pace?, view.now);
    // Steps that come at once were done before.
    (done > first && now > begun + SOON).then(|| (now - begun, (done - first) as f64))
}

fn folder_of(pictures: &Path) -> &Path {
    pictures.parent().unwrap_or(pictures)
}

fn name(form: &TrainForm) -> String {
    let bad = |c: char| matches!(c, '/' | '\\' | ':' | '<' | '>' | '"' | '|' | '?' | '*') || c.is_control();
    let name: String = form.name.trim().chars().map(|c| if bad(c) { '-' } else { c }).collect();
    if name.is_empty() { "style".into() } else { name }
}
