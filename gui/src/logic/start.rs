//! The picture to start from.

use std::{path::PathBuf, sync::Arc};

use image::RgbImage;
use scumble::{
    engine::Command,
    pipeline::{
        InitImage, InitSource,
        infotext::{INIT_IMAGE, Recipe},
    },
};

use crate::{
    state::{Session, Start},
    text,
};

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
    Some(InitImage { pixels: start.pixels.clone(), strength, source: start.source.clone() })
}

pub(super) fn set(session: &mut Session, pixels: Arc<RgbImage>, source: Option<InitSource>) {
    let path = source.as_ref().map(|source| source.path.clone());
    let name =
        path.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    session.offer = session.offer.take().filter(|offer| Some(offer) != path.as_ref());
    session.next_shot += 1;
    let (id, name) = (session.next_shot, name.unwrap_or_default());
    session.start = Some(Start { id, name, pixels, source });
}

/// Takes the picture in the middle.
pub(super) fn from_shot(session: &mut Session) {
    let Some(shot) = &session.canvas.shot else { return };
    session.offer = None;
    let name = format!("{}{}", text::START_DRAWN, shot.recipe.seed.unwrap_or_default());
    session.start = Some(Start { id: shot.id, name, pixels: shot.image.clone(), source: None });
}

/// The file of the picture that a recipe started from; says so if it is not there.
pub(super) fn noted(session: &mut Session, recipe: &Recipe) -> Option<PathBuf> {
    if recipe.denoising_strength.is_none() || scumble::pipeline::Hires::of(recipe).is_some() {
        return None;
    }
    let path = recipe.other(INIT_IMAGE).map(PathBuf::from);
    let found = path.filter(|path| path.is_file());
    if found.is_none() {
        session.tell(text::START_LOST, Some(text::START_LOST_HINT.into()), false);
    }
    found
}
