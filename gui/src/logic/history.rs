//! The pictures that were drawn.

use std::{collections::BTreeMap, sync::Arc};

use super::{Effect, Keep, next};
use crate::{
    keep::history::{self, Kept},
    state::{Session, Shot},
};

/// Pictures kept, and the bytes they may take all together: 85 of 1024².
pub const HISTORY: (usize, usize) = (200, 256 << 20);
/// Seconds a picture that follows changes must have been looked at to stay when there is another change.
const SETTLED: f64 = 2.0;

/// A picture is finished, which was asked for at a time. What only follows changes takes the place of the one before.
pub(super) fn push(session: &mut Session, shot: Shot, asked: f64, effects: &mut Vec<Effect>) {
    let current = session.canvas.shot.as_ref().map(|shot| shot.id);
    if let Some(last) = session.history.last() {
        let same = is_same(last, &shot);
        if same && shot.live && !last.live {
            session.canvas.shot = Some(last.clone());
            return;
        }
        // Dragging a slider leaves one picture, not thirty.
        let follows = last.live && shot.live && Some(last.id) == current && asked - last.at < SETTLED;
        if follows || same {
            remove(session, session.history.len() - 1, effects);
        }
    }
    session.history.push(shot.clone());
    session.canvas.shot = Some(shot);
    // Those before it are not replaced any more.
    let replaceable = session.history.iter().rev().take_while(|shot| shot.live).take(1).count();
    keep(session, replaceable, effects);
    trim(session, effects);
}

/// Writes what has no file yet, but for so many of the newest.
pub(super) fn keep(session: &mut Session, but: usize, effects: &mut Vec<Effect>) {
    let Some(prefix) = session.keeping.clone() else { return };
    let settled = session.history.len().saturating_sub(but);
    for shot in session.history[..settled].iter_mut().filter(|shot| shot.file.is_none()) {
        let file = history::file(&prefix, shot.id);
        shot.file = Some(file.clone());
        effects.push(Effect::Keep(Keep::Picture(shot.clone(), file)));
    }
}

/// A picture of an earlier run: older than all that is there.
pub(super) fn remember(session: &mut Session, kept: Kept, effects: &mut Vec<Effect>) {
    let Kept { file, image, recipe } = kept;
    let (id, image, recipe) = (next(session), Arc::new(image), Arc::new(recipe));
    let shot = Shot { id, image, recipe, start: None, live: false, at: 0.0, file: Some(file) };
    // The first picture of a run may be the last one of the run before.
    let again = |there: &Shot| there.live && there.file.is_none() && is_same(there, &shot);
    if session.history.first().is_some_and(again) {
        let first = session.history.remove(0);
        if session.canvas.shot.as_ref().is_some_and(|current| current.id == first.id) {
            session.canvas.shot = Some(Shot { start: first.start, ..shot.clone() });
        }
    }
    session.history.insert(0, shot);
    trim(session, effects);
}

/// Away with a picture and its file.
pub(super) fn forget(session: &mut Session, id: u64, effects: &mut Vec<Effect>) {
    if let Some(index) = session.history.iter().position(|shot| shot.id == id) {
        remove(session, index, effects);
    }
}

fn remove(session: &mut Session, index: usize, effects: &mut Vec<Effect>) {
    effects.extend(session.history.remove(index).file.map(|file| Effect::Keep(Keep::Not(file))));
}

fn trim(session: &mut Session, effects: &mut Vec<Effect>) {
    let (pictures, bytes) = HISTORY;
    while session.history.len() > pictures || session.history.len() > 1 && held(&session.history) > bytes {
        remove(session, 0, effects);
    }
}

fn held(shots: &[Shot]) -> usize {
    // Many pictures may start from the same one.
    let starts: BTreeMap<u64, usize> = shots
        .iter()
        .filter_map(|shot| shot.start.as_ref())
        .map(|start| (start.id, start.pixels.as_raw().len()))
        .collect();
    let drawn: usize = shots.iter().map(|shot| shot.image.as_raw().len()).sum();
    drawn + starts.values().sum::<usize>()
}

/// True if the same was drawn in the same way.
fn is_same(a: &Shot, b: &Shot) -> bool {
    a.recipe.to_text() == b.recipe.to_text() && a.image == b.image
}
