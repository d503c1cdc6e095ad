//! A row of upright bars to drag, each a factor.

use std::ops::RangeInclusive;

use eframe::egui::{self, Align2, FontId, Rect, Sense, Stroke, Ui, pos2, vec2};

use super::nudge::{self, Number};
use crate::{text, theme::Palette};

/// What a bar may be.
const RANGE: RangeInclusive<f64> = 0.0..=2.0;
const STEP: f64 = 0.05;
/// Names are written below.
const FOOT: f32 = 24.0;

/// A bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Below it; what stands behind a point, in a second line.
    pub name: String,
    /// Its height.
    pub value: f64,
}

/// Shows the bars of a style. True if one was changed.
pub fn show(ui: &mut Ui, style: &str, bars: &mut [Bar]) -> bool {
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), 92.0), Sense::hover());
    let width = rect.width() / bars.len().max(1) as f32;
    let mut changed = false;
    for (index, bar) in bars.iter_mut().enumerate() {
        let left = rect.left() + width * index as f32;
        let place = Rect::from_min_size(pos2(left, rect.top()), vec2(width, rect.height()));
        changed |= one(ui, style, place.shrink2(vec2(1.0, 0.0)), bar);
    }
    let palette = Palette::of(ui);
    let unchanged = height(rect, 1.0);
    ui.painter().hline(rect.x_range(), unchanged, Stroke::new(1.0, palette.quiet.gamma_multiply(0.5)));
    changed
}

/// Where a value is.
fn height(rect: Rect, value: f64) -> f32 {
    let foot = rect.bottom() - FOOT;
    let share = value.clamp(*RANGE.start(), *RANGE.end()) / RANGE.end();
    foot - (foot - rect.top()) * share as f32
}

fn one(ui: &Ui, style: &str, place: Rect, bar: &mut Bar) -> bool {
    let id = ui.scope_id().with(("bar", &bar.name));
    let response = ui.interact(place, id, Sense::click_and_drag());
    let label = format!("{style} {} {}", text::BLOCK, bar.name);
    let number = Number { label, value: bar.value, range: RANGE, step: STEP };
    let pointed = response.interact_pointer_pos().map(|pointer| {
        let foot = place.bottom() - FOOT;
        let share = f64::from((foot - pointer.y) / (foot - place.top()));
        // In steps, so that 1 is met.
        let steps = (share.clamp(0.0, 1.0) * RANGE.end() / STEP).round();
        (steps * STEP * 100.0).round() / 100.0
    });
    let back = response.double_clicked().then_some(1.0);
    let value = back.or(pointed).or_else(|| nudge::wanted(ui, &response, &number)).unwrap_or(bar.value);
    if pointed.is_some() {
        response.request_focus();
    }
    let changed = value != bar.value;
    bar.value = value;
    nudge::describe(ui, &response, &Number { value, ..number });
    paint(ui, &response, place, bar);
    response.on_hover_text(format!("{}: {value:.2}\n{}", bar.name, text::BLOCKS_BACK));
    changed
}

fn paint(ui: &Ui, response: &egui::Response, place: Rect, bar: &Bar) {
    let (palette, painter) = (Palette::of(ui), ui.painter());
    let foot = place.bottom() - FOOT;
    let rail = Rect::from_min_max(place.min, pos2(place.right(), foot)).shrink2(vec2(2.0, 0.0));
    let line = if response.has_focus() || response.hovered() { palette.accent } else { palette.line };
    painter.rect(rail, 3.0, palette.ground, Stroke::new(1.0, line), egui::StrokeKind::Inside);
    let filled = Rect::from_min_max(pos2(rail.left(), height(place, bar.value)), rail.max).shrink(1.5);
    let colour = if bar.value == 1.0 { palette.accent.gamma_multiply(0.6) } else { palette.accent };
    if filled.height() > 0.0 {
        painter.rect_filled(filled, 2.0, colour);
    }
    let font = FontId::proportional(10.0);
    let (first, second) = bar.name.split_once('.').unwrap_or((&bar.name, ""));
    for (line, words) in [first, second].into_iter().enumerate() {
        let at = pos2(place.center().x, foot + 2.0 + 11.0 * line as f32);
        painter.text(at, Align2::CENTER_TOP, words, font.clone(), palette.quiet);
    }
}
