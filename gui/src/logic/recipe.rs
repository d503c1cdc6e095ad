//! From a picture's recipe back to the settings.

use std::path::{Path, PathBuf};

use scumble::{
    adapter::Strength,
    diffusion::{Sampler, SigmaSchedule},
    pipeline::{
        Hires,
        infotext::{LORA_MODE, LORA_NORMALIZE, LoraUse, Recipe},
    },
};

use super::{start, strength};
use crate::state::{HiresForm, Place, Session, Settings, Shot, Style};

/// Sets everything a recipe names; what it leaves out becomes the default. Styles it does not name are switched off.
pub(super) fn restore(
    settings: &mut Settings,
    session: &mut Session,
    recipe: &Recipe,
    folder: Option<&Path>,
) {
    let defaults = Settings::default();
    settings.prompt.clone_from(&recipe.prompt);
    settings.negative.clone_from(&recipe.negative_prompt);
    let sampler = recipe.sampler.as_deref().and_then(|name| name.parse::<Sampler>().ok());
    let schedule = recipe.schedule.as_deref().and_then(|name| name.parse::<SigmaSchedule>().ok());
    settings.sampler = sampler.map_or(defaults.sampler, |s| s.name().to_owned());
    settings.schedule = schedule.map_or(defaults.schedule, |s| s.name().to_owned());
    settings.steps = recipe.steps.unwrap_or(defaults.steps);
    (settings.cfg, settings.size) = (recipe.cfg_scale, recipe.size_px);
    settings.seed = recipe.seed.unwrap_or(settings.seed);
    settings.count = 1;
    settings.normalize = recipe.other(LORA_NORMALIZE).is_some();
    if let Some(model) = recipe.model.clone().filter(|model| *model != settings.model) {
        settings.model = model;
    }
    restore_passes(settings, session, recipe);
    session.painting = None;
    let mut styles = settings.styles.take().unwrap_or_default();
    styles.iter_mut().for_each(|style| (style.on, style.solo) = (false, false));
    for lora in &recipe.loras {
        match styles.iter_mut().find(|style| style.name() == lora.name) {
            Some(style) => set(style, &lora.strength, session),
            None => match find(session, lora, folder) {
                Some(path) => {
                    let mut style = Style::new(path, 1.0);
                    set(&mut style, &lora.strength, session);
                    styles.push(style);
                }
                None => session.tell(
                    format!("the style `{}` of this picture is not known here", lora.name),
                    Some("add its file to the blend, or its folder to the library, and restore the picture again".into()),
                    true,
                ),
            },
        }
    }
    settings.styles = Some(styles);
}

/// The second pass, and how much of a picture to start from is drawn anew. That picture itself is the caller's to bring.
fn restore_passes(settings: &mut Settings, session: &mut Session, recipe: &Recipe) {
    start::put(settings, session, None);
    let hires = Hires::of(recipe);
    settings.hires = match hires {
        Some(Hires { scale, strength, steps }) => {
            HiresForm { on: true, scale, strength, steps: steps.unwrap_or_default() }
        }
        None => HiresForm { on: false, ..settings.hires },
    };
    if let (None, Some(strength)) = (hires, recipe.denoising_strength) {
        settings.strength = strength.clamp(0.0, 1.0);
    }
}

/// Sets a card. A mask that is gone cannot be followed, which is said.
fn set(style: &mut Style, strength: &Strength, session: &mut Session) {
    style.on = true;
    strength::set(style, strength);
    if let Place::Painted { mask: Some(mask), .. } = &style.place
        && !mask.is_file()
    {
        let message = format!(
            "the mask of `{}` is not there any more, so it acts everywhere: {}",
            style.name(),
            mask.display()
        );
        session.tell(
            message,
            Some("put the file back and restore the picture again, or paint a new one".into()),
            true,
        );
        style.place = Place::Everywhere;
    }
}

/// The file a recipe means: one that was seen before, or lies beside the picture.
fn find(session: &Session, lora: &LoraUse, folder: Option<&Path>) -> Option<PathBuf> {
    let beside = folder.map(|folder| folder.join(format!("{}.safetensors", lora.name)));
    session.known.get(&lora.name).cloned().or_else(|| beside.filter(|path| path.is_file()))
}

/// What a picture without styles depends on.
pub(super) fn base_key(shot: &Shot) -> String {
    let styles = |key: &str| key == LORA_NORMALIZE || key == LORA_MODE;
    let other = shot.recipe.other.iter().filter(|(key, _)| !styles(key)).cloned().collect();
    let recipe = Recipe { loras: Vec::new(), other, ..Recipe::clone(&shot.recipe) };
    // A picture that is in no file is in no recipe.
    format!("{} {:?}", recipe.to_text(), shot.start.as_ref().map(|start| start.id))
}
