//! The picture to start from.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use image::RgbImage;
use scumble::{
    engine::Command,
    pipeline::{
        InitImage, InitSource,
        infotext::{INIT_IMAGE, INIT_IMAGE_HASH, Recipe},
    },
};

use super::{Effect, changed, draw, ensure_base, next};
use crate::{
    keep::starts,
    state::{Purpose, Session, Settings, Start, StartFile},
    text,
};

/// What follows when a picture to start from has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is drawn over, if changes are.
    Change,
    /// The same of what was remembered, unless something else is wished for by then.
    Remembered,
    /// It is drawn over in any case.
    Draw,
    /// The picture of this number, in the middle, was drawn over it.
    Show(u64),
}

/// True if a job's pictures start from one.
pub(super) fn starts(command: &Command) -> bool {
    match command {
        Command::Draw(draw) => draw.request.init.is_some(),
        Command::Grid(grid) => grid.request.init.is_some(),
        _ => false,
    }
}

/// As requests take it.
pub(super) fn init(start: Option<&Start>, strength: f64) -> Option<InitImage> {
    let start = start?;
    Some(InitImage { source: start.source.clone(), ..InitImage::new(start.pixels.clone(), strength) })
}

/// Sets the picture to start from, which is remembered if it is in a file.
pub(super) fn put(settings: &mut Settings, session: &mut Session, start: Option<Start>) {
    let source = start.as_ref().and_then(|start| start.source.clone());
    settings.start = source.map(|source| StartFile { path: source.path, hash: Some(source.hash) });
    session.start = start;
}

pub(super) fn set(
    settings: &mut Settings,
    session: &mut Session,
    pixels: Arc<RgbImage>,
    source: Option<InitSource>,
) {
    let path = source.as_ref().map(|source| source.path.clone());
    session.offer = session.offer.take().filter(|offer| Some(offer) != path.as_ref());
    let name = path.map(|path| called(&path)).unwrap_or_default();
    let start = Start { id: next(session), name, pixels, source };
    put(settings, session, Some(start));
}

/// What a picture is called: its file, or the seed of one that was drawn here.
fn called(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let seed = name.strip_prefix(starts::DRAWN).and_then(|rest| rest.split_once('-')).map(|(seed, _)| seed);
    seed.map(|seed| format!("{}{seed}", text::START_DRAWN)).unwrap_or(name)
}

/// Takes the picture in the middle.
pub(super) fn from_shot(settings: &mut Settings, session: &mut Session, effects: &mut Vec<Effect>) {
    let Some(shot) = session.canvas.shot.clone() else { return };
    session.offer = None;
    if session.keeping.is_some() {
        // Recipes can name it then.
        effects.push(Effect::KeepStart(shot));
        return;
    }
    let name = format!("{}{}", text::START_DRAWN, shot.recipe.seed.unwrap_or_default());
    put(settings, session, Some(Start { id: shot.id, name, pixels: shot.image, source: None }));
    changed(settings, session, effects);
}

/// False if it was read for a picture that is not in the middle any more, or was remembered and is not wished for any more.
pub(super) fn is_wanted(settings: &Settings, session: &Session, then: Then) -> bool {
    match then {
        Then::Show(id) => session.canvas.shot.as_ref().is_some_and(|shot| shot.id == id),
        Then::Remembered => settings.start.is_some(),
        Then::Change | Then::Draw => true,
    }
}

/// That picture has been read.
pub(super) fn then(settings: &Settings, session: &mut Session, then: Then, effects: &mut Vec<Effect>) {
    match then {
        Then::Draw => draw(settings, session, (Purpose::Draw, true), effects),
        Then::Change | Then::Remembered => changed(settings, session, effects),
        Then::Show(_) => {
            if let Some(shot) = &mut session.canvas.shot {
                shot.start.clone_from(&session.start);
            }
            ensure_base(settings, session, effects);
        }
    }
}

/// It cannot be: with the reason, or because it is gone.
pub(super) fn unread(
    (settings, session): (&mut Settings, &mut Session),
    reason: Option<(String, Option<String>)>,
    what: Then,
    effects: &mut Vec<Effect>,
) {
    let lost = reason.is_none();
    match reason {
        Some((message, hint)) => session.tell(message, hint, true),
        None => session.tell(text::START_LOST, Some(text::START_LOST_HINT.into()), false),
    }
    if lost || matches!(what, Then::Change | Then::Remembered) {
        // What was remembered, or is noted in a recipe: the picture is drawn without it.
        settings.start = session.start.as_ref().and(settings.start.take());
        then(settings, session, what, effects);
    }
}

/// The file of the picture that a recipe started from; says so if it names none.
pub(super) fn noted(session: &mut Session, recipe: &Recipe) -> Option<StartFile> {
    if recipe.denoising_strength.is_none() || scumble::pipeline::Hires::of(recipe).is_some() {
        return None;
    }
    let path = recipe.other(INIT_IMAGE).map(PathBuf::from);
    if path.is_none() {
        session.tell(text::START_LOST, Some(text::START_LOST_HINT.into()), false);
    }
    // Without a hash, a file that is gone would be a mistake of the user's.
    let hash = recipe.other(INIT_IMAGE_HASH).unwrap_or_default().to_owned();
    Some(StartFile { path: path?, hash: Some(hash) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_does_not_come_over_a_newer_wish() {
        let (mut settings, mut session) = (Settings::default(), Session::default());
        settings.start = Some(StartFile::new(PathBuf::from("before.png")));
        assert!(is_wanted(&settings, &session, Then::Remembered));
        // A picture with a recipe was opened meanwhile.
        put(&mut settings, &mut session, None);
        assert!(!is_wanted(&settings, &session, Then::Remembered));
        assert!(
            is_wanted(&settings, &session, Then::Change) && !is_wanted(&settings, &session, Then::Show(1))
        );
    }
}
