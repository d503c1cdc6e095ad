//! Where in the picture a card's style acts.

use eframe::egui::{Rect, RichText, Sense, Slider, Ui, vec2};

use super::{
    View,
    styles::{choice, choices},
};
use crate::{
    logic::{Action, Paint},
    state::{Painting, Place, Style},
    text,
    theme::{self, Palette},
    widgets::{named, veil},
};

pub(super) fn draw(ui: &mut Ui, view: &mut View<'_>, (index, style): (usize, &mut Style)) {
    let name = style.name();
    let places = [
        (text::PLACE_EVERYWHERE, Place::Everywhere),
        (text::PLACE_LEFT, Place::Left),
        (text::PLACE_RIGHT, Place::Right),
        (text::PLACE_TOP, Place::Top),
        (text::PLACE_BOTTOM, Place::Bottom),
    ];
    let is_painted = matches!(style.place, Place::Painted { .. });
    choices(ui, text::PLACE_HINT, |ui| {
        let title = |title| format!("{name} {}: {title}", text::PLACE);
        for (words, place) in places {
            let button = choice(ui, style.place == place, words);
            if named(button, title(words)).clicked() && style.place != place {
                style.place = place;
                stop(view, style);
            }
        }
        let button = choice(ui, is_painted, text::PLACE_PAINTED);
        if named(button, title(text::PLACE_PAINTED)).clicked() && !is_painted {
            style.place = Place::Painted { mask: None, outside: false };
            view.act(Action::Paint(Paint::Begin(style.path.clone())));
        }
    });
    if let Place::Painted { mask, .. } = &style.place {
        painted(ui, view, (index, style), mask.is_some());
    }
}

fn stop(view: &mut View<'_>, style: &Style) {
    if is_being_painted(view, style) {
        view.act(Action::Paint(Paint::End));
    }
}

fn is_being_painted(view: &View<'_>, style: &Style) -> bool {
    view.state.session.painting.as_ref().is_some_and(|painting| painting.style == style.path)
}

fn painted(ui: &mut Ui, view: &mut View<'_>, (index, style): (usize, &Style), there: bool) {
    let name = style.name();
    let painting = is_being_painted(view, style);
    ui.horizontal(|ui| {
        let (dot, _) = ui.allocate_exact_size(vec2(12.0, 12.0), Sense::hover());
        ui.painter().rect_filled(dot, 3.0, theme::style_colour(index));
        let words = if painting { text::PAINT_DONE } else { text::PAINT };
        if named(ui.small_button(words), format!("{words} {name}")).clicked() {
            let what = if painting { Paint::End } else { Paint::Begin(style.path.clone()) };
            view.act(Action::Paint(what));
        }
        if painting {
            for (words, what) in [(text::PAINT_CLEAR, Paint::Clear), (text::PAINT_INVERT, Paint::Invert)] {
                if named(ui.small_button(words), format!("{words} {name}")).clicked() {
                    view.act(Action::Paint(what));
                }
            }
        }
    });
    if let Some(painting) = view.state.session.painting.as_mut().filter(|_| painting) {
        brush(ui, painting, &name);
    }
    if !there {
        ui.label(RichText::new(text::PAINT_NOTHING).small().color(Palette::of(ui).quiet));
    }
}

fn brush(ui: &mut Ui, painting: &mut Painting, name: &str) {
    let brush = &mut painting.brush;
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 4.0;
        for (words, erase) in [(text::PAINT_BRUSH, false), (text::PAINT_ERASE, true)] {
            if named(choice(ui, brush.erase == erase, words), format!("{words} {name}")).clicked() {
                brush.erase = erase;
            }
        }
        ui.spacing_mut().slider_width = 40.0;
        for (words, value, range) in [
            (text::PAINT_SIZE, &mut brush.radius, 0.01..=0.5),
            (text::PAINT_SOFT, &mut brush.soft, 0.0..=1.0),
        ] {
            let slider = Slider::new(value, range).show_value(false);
            named(ui.add(slider), format!("{} {words} {name}", text::PAINT_BRUSH));
            theme::caption(ui, words);
        }
    });
}

/// The mask over the picture, while one is painted. True if so.
pub(super) fn paint(ui: &Ui, view: &mut View<'_>, rect: Rect) -> bool {
    let session = &mut view.state.session;
    let Some(painting) = &mut session.painting else { return false };
    let mut styles = view.state.settings.styles.iter().flatten();
    let Some(index) = styles.position(|style| style.path == painting.style) else {
        session.painting = None;
        return false;
    };
    let name = crate::state::stem(&painting.style);
    if veil::show(ui, rect, painting, (&name, theme::style_colour(index))) {
        view.act(Action::Paint(Paint::Keep));
    }
    true
}
