//! Masks painted on the picture.

use std::{path::PathBuf, sync::Arc};

use image::{GrayImage, Luma, imageops};

use super::{Effect, changed, next};
use crate::state::{Brush, Painting, Place, Session, Settings, Style};

/// The longer side of a new mask: finer than any layer of a network sees.
const SIDE_PX: f32 = 256.0;
/// Masks from elsewhere are made smaller than this before they are painted on.
const LARGEST_PX: u32 = 1024;

/// What the user does to a mask, and what has come of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Paint {
    /// Paint the mask of the style with this file.
    Begin(PathBuf),
    /// No more.
    End,
    /// The mask that was there, or why it cannot be read.
    Read(PathBuf, Result<Arc<GrayImage>, (String, Option<String>)>),
    /// Nothing is covered.
    Clear,
    /// What was covered is not, and the other way round.
    Invert,
    /// The mask is to be used as it is now.
    Keep,
    /// It was written: the style's file, which writing it was, and the mask's file.
    Kept(PathBuf, u64, PathBuf),
}

pub(super) fn act(settings: &mut Settings, session: &mut Session, what: Paint, effects: &mut Vec<Effect>) {
    match what {
        Paint::Begin(style) => begin(settings, session, style, effects),
        Paint::End => session.painting = None,
        Paint::Read(style, found) => {
            let outside = matches!(place(settings, &style), Some(Place::Painted { outside: true, .. }));
            let Some(painting) = session.painting.as_mut().filter(|painting| painting.style == style) else {
                return;
            };
            painting.ready = true;
            painting.version += 1;
            match found {
                Ok(mask) => painting.mask = Arc::new(usable(&mask, outside)),
                Err((message, hint)) => session.tell(message, hint, true),
            }
        }
        Paint::Clear => change(session, |mask| mask.pixels_mut().for_each(|p| *p = Luma([0])), effects),
        Paint::Invert => change(session, imageops::invert, effects),
        Paint::Keep => keep(session, effects),
        Paint::Kept(style, number, file) => {
            // Files are written beside each other: an older one that comes late is not the newest.
            let newest = session.masks.entry(style.clone()).or_default();
            let late = number < *newest;
            *newest = number.max(*newest);
            if let Some(place @ Place::Painted { .. }) = place(settings, &style).filter(|_| !late) {
                *place = Place::Painted { mask: Some(file), outside: false };
                changed(settings, session, effects);
            }
        }
    }
}

fn place<'a>(settings: &'a mut Settings, path: &PathBuf) -> Option<&'a mut Place> {
    let mut styles = settings.styles.iter_mut().flatten();
    styles.find(|style| style.path == *path).map(|style: &mut Style| &mut style.place)
}

fn begin(settings: &mut Settings, session: &mut Session, style: PathBuf, effects: &mut Vec<Effect>) {
    let shown = session.canvas.shot.as_ref().map(|shot| shot.image.dimensions());
    let asked = settings.size.map(|(w, h)| (w as u32, h as u32));
    let (w, h) = shown.or(asked).unwrap_or((1, 1));
    let scale = SIDE_PX / w.max(h).max(1) as f32;
    let side = |length: u32| ((length as f32 * scale).round() as u32).max(1);
    let brush = session.painting.as_ref().map(|painting| painting.brush).unwrap_or_default();
    let version = next(session) << 32;
    let file = match place(settings, &style) {
        Some(Place::Painted { mask: Some(file), .. }) => Some(file.clone()),
        _ => None,
    };
    session.painting = Some(Painting {
        mask: Arc::new(GrayImage::new(side(w), side(h))),
        version,
        ready: file.is_none(),
        brush: Brush { erase: false, ..brush },
        at: None,
        style: style.clone(),
    });
    effects.extend(file.map(|file| Effect::ReadMask(style, file)));
}

/// A mask to be painted on, white where the style acts.
fn usable(mask: &GrayImage, outside: bool) -> GrayImage {
    let longest = mask.width().max(mask.height());
    let mut usable = if longest > LARGEST_PX {
        let side =
            |length: u32| (u64::from(length) * u64::from(LARGEST_PX) / u64::from(longest)).max(1) as u32;
        imageops::thumbnail(mask, side(mask.width()), side(mask.height()))
    } else {
        mask.clone()
    };
    if outside {
        imageops::invert(&mut usable);
    }
    usable
}

fn change(session: &mut Session, change: impl FnOnce(&mut GrayImage), effects: &mut Vec<Effect>) {
    if let Some(painting) = session.painting.as_mut().filter(|painting| painting.ready) {
        change(Arc::make_mut(&mut painting.mask));
        painting.version += 1;
        keep(session, effects);
    }
}

fn keep(session: &mut Session, effects: &mut Vec<Effect>) {
    if let Some(painting) = &session.painting {
        let (style, mask) = (painting.style.clone(), painting.mask.clone());
        effects.push(Effect::WriteMask(style, next(session), mask));
    }
}

impl Painting {
    /// Paints, or erases, from where the brush was to a point, both in shares of the picture's sides.
    pub fn stroke(&mut self, to: (f32, f32)) {
        let from = self.at.replace(to).unwrap_or(to);
        let mask = Arc::make_mut(&mut self.mask);
        let (w, h) = (mask.width() as f32, mask.height() as f32);
        let (from, to) = ((from.0 * w, from.1 * h), (to.0 * w, to.1 * h));
        let radius = (self.brush.radius * w.max(h)).max(0.5);
        let inner = radius * (1.0 - self.brush.soft.clamp(0.0, 1.0));
        let reached = |a: f32, b: f32, end: f32| {
            let (low, high) = (a.min(b) - radius, a.max(b) + radius);
            (low.floor().clamp(0.0, end) as u32)..(high.ceil().clamp(0.0, end) as u32)
        };
        for y in reached(from.1, to.1, h) {
            for x in reached(from.0, to.0, w) {
                let far = distance((x as f32 + 0.5, y as f32 + 0.5), from, to);
                let covered = ((radius - far) / (radius - inner).max(1.0)).clamp(0.0, 1.0);
                let value = (covered * covered * (3.0 - 2.0 * covered) * 255.0).round() as u8;
                let pixel = &mut mask.get_pixel_mut(x, y).0[0];
                *pixel = if self.brush.erase { (*pixel).min(255 - value) } else { (*pixel).max(value) };
            }
        }
        self.version += 1;
    }

    /// How much of the picture is covered.
    pub fn share(&self) -> f64 {
        let sum: u64 = self.mask.pixels().map(|p| u64::from(p.0[0])).sum();
        sum as f64 / (255.0 * f64::from(self.mask.width().max(1)) * f64::from(self.mask.height().max(1)))
    }
}

/// From a point to a line between two.
fn distance(at: (f32, f32), from: (f32, f32), to: (f32, f32)) -> f32 {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx * dx + dy * dy;
    let along = ((at.0 - from.0) * dx + (at.1 - from.1) * dy) / length.max(f32::MIN_POSITIVE);
    let along = along.clamp(0.0, 1.0);
    (at.0 - from.0 - along * dx).hypot(at.1 - from.1 - along * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stroke_covers_its_way_and_the_eraser_takes_it_back() {
        let mut painting = Painting {
            style: "a.safetensors".into(),
            mask: Arc::new(GrayImage::new(64, 32)),
            version: 0,
            ready: true,
            brush: Brush { radius: 0.1, soft: 0.5, erase: false },
            at: None,
        };
        painting.stroke((0.1, 0.5));
        painting.stroke((0.9, 0.5));
        let at = |painting: &Painting, x, y| painting.mask.get_pixel(x, y).0[0];
        assert_eq!((at(&painting, 32, 16), at(&painting, 32, 2)), (255, 0));
        assert!((1..255).contains(&at(&painting, 32, 20)), "its edge is soft");
        let covered = painting.share();
        assert!((0.2..0.6).contains(&covered), "{covered}");
        // Painting the same again changes nothing; strokes may leave the picture.
        let before = painting.mask.clone();
        painting.stroke((0.1, 0.5));
        assert_eq!(painting.mask, before);
        painting.brush.erase = true;
        painting.at = None;
        painting.stroke((-1.0, 0.5));
        painting.stroke((2.0, 0.5));
        assert!(painting.share() < covered / 2.0);
        assert_eq!(at(&painting, 32, 16), 0);
    }
}
