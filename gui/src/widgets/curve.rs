//! A number over the steps of a picture: points to drag, straight lines between them.

use std::ops::RangeInclusive;

use eframe::egui::{
    self, Align2, CursorIcon, DragValue, FontId, Id, Key, Pos2, Rect, Response, Sense, Stroke, Ui, pos2, vec2,
};

use super::{
    named,
    nudge::{self, Number},
};
use crate::{state::Knots, text, theme::Palette};

/// What a point may be.
const VALUES: RangeInclusive<f64> = -1.0..=2.0;
/// Nearer than this, the pointer means the point.
const REACH: f32 = 8.0;

/// A curve to be edited.
#[derive(Debug)]
pub struct Curve<'a> {
    /// Whose it is.
    pub label: String,
    /// Its points, two at least.
    pub knots: &'a mut Knots,
    /// How many percent of the steps are done, while a picture is drawn.
    pub now: Option<f64>,
}

/// From percent and value to the screen and back.
#[derive(Debug, Clone, Copy)]
struct Frame {
    rect: Rect,
    low: f64,
    high: f64,
}

impl Frame {
    fn around(rect: Rect, knots: &Knots) -> Self {
        let values = || knots.iter().map(|(_, value)| *value);
        let (low, high) = (values().fold(0.0, f64::min), values().fold(1.0, f64::max));
        // The values stand on the right.
        let mut rect = rect.shrink2(vec2(8.0, 10.0));
        rect.max.x -= 12.0;
        Self { rect, low, high }
    }

    fn place(&self, (percent, value): (f64, f64)) -> Pos2 {
        let (x, y) = (percent / 100.0, (value - self.low) / (self.high - self.low));
        pos2(
            self.rect.left() + self.rect.width() * x as f32,
            self.rect.bottom() - self.rect.height() * y as f32,
        )
    }

    /// In whole percents and steps of the value.
    fn knot(&self, at: Pos2) -> (f64, f64) {
        let x = f64::from((at.x - self.rect.left()) / self.rect.width()).clamp(0.0, 1.0);
        let y = f64::from((self.rect.bottom() - at.y) / self.rect.height()).clamp(0.0, 1.0);
        let value = self.low + (self.high - self.low) * y;
        ((x * 100.0).round(), (value * 20.0).round() / 20.0)
    }
}

/// Shows the curve. True if it was changed.
pub fn show(ui: &mut Ui, curve: &mut Curve<'_>) -> bool {
    let id = ui.scope_id().with(("curve", &curve.label));
    let (outer, ground) = ui.allocate_exact_size(vec2(ui.available_width(), 96.0), Sense::click());
    let ground = ground.on_hover_cursor(CursorIcon::Crosshair);
    ground.widget_info(|| egui::WidgetInfo::labeled(egui::accesskit::Role::Group, true, &curve.label));
    let frame = Frame::around(outer, curve.knots);
    paint(ui, outer, &frame, curve);
    let before = curve.knots.clone();
    let mut chosen = ui.data(|data| data.get_temp::<usize>(id)).unwrap_or(0);
    let (mut removed, mut split) = (None, None);
    for index in 0..curve.knots.len() {
        let response = point(ui, id, &frame, (curve, index));
        if response.has_focus() {
            chosen = index;
        }
        let deleted = response.has_focus() && ui.input(|i| i.key_pressed(Key::Delete));
        if response.secondary_clicked() || deleted {
            removed = Some(index);
        }
        if response.has_focus() && index + 1 < curve.knots.len() && ui.input(|i| i.key_pressed(Key::Insert)) {
            split = Some(index);
        }
    }
    if let Some(index) = removed.filter(|_| curve.knots.len() > 2) {
        curve.knots.remove(index);
    } else if let Some(index) = split {
        let (here, next) = (curve.knots[index], curve.knots[index + 1]);
        let middle = ((here.0 + next.0) / 2.0, (here.1 + next.1) / 2.0);
        chosen = add(curve.knots, middle);
    } else if ground.double_clicked()
        && let Some(at) = ground.interact_pointer_pos()
    {
        chosen = add(curve.knots, frame.knot(at));
        // Arrows and Delete go to it.
        ui.memory_mut(|memory| memory.request_focus(id.with(chosen)));
    }
    chosen = chosen.min(curve.knots.len().saturating_sub(1));
    ui.data_mut(|data| data.insert_temp(id, chosen));
    numbers(ui, curve, chosen);
    crate::theme::caption(ui, text::STEPS_HINT);
    *curve.knots != before
}

/// Puts a point where it belongs; answers its number.
fn add(knots: &mut Knots, knot: (f64, f64)) -> usize {
    let index = knots.partition_point(|(percent, _)| *percent <= knot.0);
    knots.insert(index, knot);
    index
}

/// Moves a point, between those beside it.
fn moved(knots: &mut Knots, index: usize, (percent, value): (f64, f64)) {
    let low = index.checked_sub(1).and_then(|i| knots.get(i)).map_or(0.0, |k| k.0);
    let high = knots.get(index + 1).map_or(100.0, |k| k.0);
    if let Some(knot) = knots.get_mut(index) {
        // Without the sign of a zero, which would be printed.
        *knot = (percent.clamp(low, high) + 0.0, value.clamp(*VALUES.start(), *VALUES.end()) + 0.0);
    }
}

fn point(ui: &Ui, id: Id, frame: &Frame, (curve, index): (&mut Curve<'_>, usize)) -> Response {
    let (percent, value) = curve.knots[index];
    let place = frame.place((percent, value));
    let around = Rect::from_center_size(place, vec2(2.0 * REACH, 2.0 * REACH));
    let response = ui.interact(around, id.with(index), Sense::click_and_drag());
    let label = format!(
        "{}, {} {}, {percent:.0} {}",
        curve.label,
        text::STEPS_POINT,
        index + 1,
        text::STEPS_OF_THE_STEPS
    );
    let number = Number { label, value, range: VALUES, step: 0.05 };
    if response.is_pointer_button_down_on() {
        response.request_focus();
    }
    let along = if response.has_focus() { nudge::presses(ui, Key::ArrowLeft, Key::ArrowRight) } else { 0.0 };
    if let Some(pointer) = response.interact_pointer_pos().filter(|_| response.dragged()) {
        moved(curve.knots, index, frame.knot(pointer));
    } else if let Some(value) = nudge::wanted(ui, &response, &number) {
        moved(curve.knots, index, (percent, value));
    } else if along != 0.0 {
        moved(curve.knots, index, (percent + along, value));
    }
    let (percent, value) = curve.knots[index];
    nudge::describe(ui, &response, &Number { value, ..number });
    let palette = Palette::of(ui);
    let radius = if response.hovered() || response.has_focus() { 5.5 } else { 4.5 };
    let centre = frame.place((percent, value));
    ui.painter().circle(centre, radius, palette.accent, Stroke::new(1.5, palette.card));
    response.on_hover_text(format!("{percent:.0} %: {value:.2} {}", text::STEPS_TIMES))
}

/// The chosen point's numbers, to be typed.
fn numbers(ui: &mut Ui, curve: &mut Curve<'_>, chosen: usize) {
    let Some((percent, value)) = curve.knots.get(chosen).copied() else { return };
    let (mut at, mut to) = (percent, value);
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 4.0;
        let field = DragValue::new(&mut at).range(0.0..=100.0).speed(0.5).max_decimals(1).suffix(" %");
        named(ui.add(field), format!("{}: {}", curve.label, text::STEPS_OF_THE_STEPS));
        let field = DragValue::new(&mut to).range(VALUES).speed(0.01).max_decimals(3);
        named(ui.add(field), format!("{}: {}", curve.label, text::STEPS_TIMES));
        crate::theme::caption(ui, text::STEPS_TIMES);
    });
    if (at, to) != (percent, value) {
        moved(curve.knots, chosen, (at, to));
    }
}

fn paint(ui: &Ui, outer: Rect, frame: &Frame, curve: &Curve<'_>) {
    let (palette, painter) = (Palette::of(ui), ui.painter_at(outer));
    painter.rect(outer, 6.0, palette.ground, Stroke::new(1.0, palette.line), egui::StrokeKind::Inside);
    let font = FontId::proportional(10.0);
    for value in [0.0, 1.0] {
        let y = frame.place((0.0, value)).y;
        painter.hline(frame.rect.x_range(), y, Stroke::new(1.0, palette.line));
        let at = pos2(outer.right() - 3.0, y);
        painter.text(at, Align2::RIGHT_CENTER, format!("{value:.0}"), font.clone(), palette.quiet);
    }
    if let Some(now) = curve.now {
        let x = frame.place((now, 0.0)).x;
        painter.vline(x, frame.rect.y_range(), Stroke::new(1.5, palette.good));
    }
    let (Some(first), Some(last)) = (curve.knots.first(), curve.knots.last()) else { return };
    let ends = [(0.0, first.1), (100.0, last.1)];
    let line: Vec<Pos2> = std::iter::once(&ends[0])
        .chain(curve.knots.iter())
        .chain(std::iter::once(&ends[1]))
        .map(|knot| frame.place(*knot))
        .collect();
    painter.line(line, Stroke::new(2.0, palette.accent));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stay_in_order() {
        let mut knots = vec![(0.0, 0.0), (100.0, 1.0)];
        assert_eq!(add(&mut knots, (40.0, 0.5)), 1);
        moved(&mut knots, 1, (120.0, 9.0));
        assert_eq!(knots, [(0.0, 0.0), (100.0, 2.0), (100.0, 1.0)]);
        moved(&mut knots, 0, (-5.0, -0.0));
        assert!(knots[0].0.is_sign_positive() && knots[0].1.is_sign_positive());
        let frame = Frame::around(Rect::from_min_size(pos2(0.0, 0.0), vec2(228.0, 120.0)), &knots);
        assert_eq!(frame.knot(frame.place((37.0, 1.5))), (37.0, 1.5));
    }
}
