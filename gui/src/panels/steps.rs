//! A card's weight over the steps.

use eframe::egui::Ui;
use scumble::progress::Stage;

use super::View;
use crate::{
    logic::strength::span,
    state::{Knots, Style},
    text,
    widgets::{curve, named},
};

pub(super) fn draw(ui: &mut Ui, view: &View<'_>, style: &mut Style) {
    let name = style.name();
    let progress = view.state.session.progress.filter(|p| p.stage == Stage::Sample && p.total > 1);
    let now = progress.map(|p| 100.0 * p.done.saturating_sub(1) as f64 / (p.total - 1) as f64);
    one(ui, (&name, text::STEPS_CURVE), &mut style.steps, now);
    if style.text_weight.is_some() {
        one(ui, (&name, text::STEPS_CURVE_TEXT), &mut style.text_steps, now);
    }
}

/// The presets, and the curve if there is one.
fn one(ui: &mut Ui, (name, what): (&str, &str), steps: &mut Option<Knots>, now: Option<f64>) {
    let label = format!("{name} {what}");
    let presets: [(&str, Option<Knots>); 5] = [
        (text::STEPS_CONSTANT, None),
        (text::STEPS_IN, Some(vec![(0.0, 0.0), (100.0, 1.0)])),
        (text::STEPS_OUT, Some(vec![(0.0, 1.0), (100.0, 0.0)])),
        (text::STEPS_FIRST, Some(span(0.0, 50.0))),
        (text::STEPS_SECOND, Some(span(50.0, 100.0))),
    ];
    let caption = if what == text::STEPS_CURVE { text::STEPS_OF_HINT } else { text::STEPS_TEXT_HINT };
    ui.push_id(what, |ui| {
        super::styles::choices(ui, caption, |ui| {
            for (preset, knots) in presets {
                let button = super::styles::choice(ui, *steps == knots, preset);
                if named(button, format!("{label}: {preset}")).clicked() {
                    *steps = knots;
                }
            }
        });
        if let Some(knots) = steps {
            curve::show(ui, &mut curve::Curve { label, knots, now });
        }
    });
}
