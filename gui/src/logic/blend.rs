//! From the settings to what the engine takes.

use std::path::PathBuf;

use scumble::{
    adapter::Strength,
    engine::{LoraUse, Mix},
    pipeline::{GenerateRequest, Hires},
};

use super::{Effect, changed, describe_new, start, strength::strength};
use crate::{
    state::{HiresForm, Session, Settings, Style},
    text,
};

/// The blend, every weight times `factor`. Styles that are off stay in it with weight 0, so that they stay in memory.
pub fn mix(settings: &Settings, factor: f64) -> Mix {
    let styles = settings.styles.as_deref().unwrap_or_default();
    let counts = counting(styles);
    let lora = |style: &Style| {
        let strength = if counts(style) { strength(style).scaled(factor) } else { Strength::uniform(0.0) };
        LoraUse { path: style.path.clone(), strength }
    };
    Mix {
        model: settings.model.clone(),
        loras: styles.iter().map(lora).collect(),
        normalize: settings.normalize,
    }
}

/// Whether a style takes part.
fn counting(styles: &[Style]) -> impl Fn(&Style) -> bool + use<> {
    let solo = styles.iter().any(|style| style.solo);
    move |style| if solo { style.solo } else { style.on }
}

/// Why the blend cannot be a file: the first style whose weight is not one number.
pub fn not_a_file(settings: &Settings) -> Option<String> {
    let styles = settings.styles.as_deref().unwrap_or_default();
    let counts = counting(styles);
    let changing = styles.iter().filter(|style| counts(style)).find(|style| {
        let strength = strength(style);
        !strength.is_zero() && (strength.is_scheduled() || strength.region().is_some())
    })?;
    Some(format!("{} {}", changing.name(), text::EXPORT_CHANGES))
}

/// What to draw. Names that are no longer known become the defaults.
pub fn request(settings: &Settings, session: &Session) -> GenerateRequest {
    let defaults = GenerateRequest::default();
    let init = start::init(session.start.as_ref(), settings.strength);
    let HiresForm { on, scale, strength, steps } = settings.hires;
    // A picture to start from is enlarged to the size itself.
    let hires =
        (on && init.is_none()).then(|| Hires { scale, strength, steps: (steps > 0).then_some(steps) });
    GenerateRequest {
        prompt: settings.prompt.clone(),
        negative: settings.negative.clone(),
        size_px: settings.size,
        steps: settings.steps,
        sampler: settings.sampler.parse().unwrap_or(defaults.sampler),
        schedule: settings.schedule.parse().unwrap_or(defaults.schedule),
        cfg_scale: settings.cfg,
        seed: settings.seed,
        count: settings.count.max(1),
        init,
        hires,
        ..defaults
    }
}

/// Those of some files that may be adapters.
pub fn adapters(paths: &[PathBuf]) -> Vec<PathBuf> {
    let fits = |path: &&PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    paths.iter().filter(fits).cloned().collect()
}

/// Puts adapters at the blend's end, or switches on those that are in it.
pub(super) fn add(
    settings: &mut Settings,
    session: &mut Session,
    paths: Vec<PathBuf>,
    effects: &mut Vec<Effect>,
) {
    let styles = settings.styles.get_or_insert_default();
    for path in paths {
        if adapters(std::slice::from_ref(&path)).is_empty() {
            let hint = "adapters are `.safetensors` files; a picture is drawn again, or started from, where it is dropped";
            session.tell(format!("{}: is no adapter", path.display()), Some(hint.into()), true);
            continue;
        }
        match styles.iter_mut().find(|style| style.path == path) {
            Some(style) => style.on = true,
            None => styles.push(Style::new(path, 1.0)),
        }
    }
    describe_new(settings, session, effects);
    changed(settings, session, effects);
}
