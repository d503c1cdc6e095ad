//! What was drawn.

use eframe::egui::{
    self, Color32, CornerRadius, RichText, ScrollArea, Sense, Stroke, Ui, WidgetInfo, accesskit::Role, pos2,
    vec2,
};

use super::View;
use crate::{
    logic::Action,
    state::Shot,
    text,
    theme::{self, Palette},
    widgets::textures,
};

/// The side of a thumbnail.
const SIDE: f32 = 72.0;

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    theme::caption(ui, text::HISTORY);
    if view.state.session.history.is_empty() {
        ui.label(RichText::new(text::HISTORY_EMPTY).color(Palette::of(ui).quiet));
        return;
    }
    let current = view.state.session.canvas.shot.as_ref().map(|shot| shot.id);
    ScrollArea::horizontal().auto_shrink([false, true]).show(ui, |ui| {
        ui.horizontal(|ui| {
            // The newest first.
            let shots: Vec<Shot> = view.state.session.history.iter().rev().cloned().collect();
            for shot in shots {
                if thumbnail(ui, view, &shot, current == Some(shot.id)) {
                    view.act(Action::RestoreShot(shot.id));
                }
            }
        });
    });
}

fn thumbnail(ui: &mut Ui, view: &mut View<'_>, shot: &Shot, current: bool) -> bool {
    let (place, response) = ui.allocate_exact_size(vec2(SIDE, SIDE), Sense::click());
    let name = format!("{}, seed {}", shot.recipe.prompt, shot.recipe.seed.unwrap_or_default());
    response.widget_info(|| WidgetInfo::selected(Role::Button, true, current, name.clone()));
    if ui.is_rect_visible(place) {
        let palette = Palette::of(ui);
        let texture = view.textures.get(ui.ctx(), shot.id, &shot.image);
        let rect = textures::fit(place, &shot.image);
        let whole = egui::Rect::from_min_max(pos2(0.0, 0.0), pos2(1.0, 1.0));
        let shape = egui::epaint::RectShape::filled(rect, CornerRadius::same(4), Color32::WHITE);
        ui.painter().add(shape.with_texture(texture, whole));
        let stroke = match (current, response.hovered() || response.has_focus()) {
            (true, _) => Stroke::new(2.0, palette.accent),
            (false, true) => Stroke::new(1.0, palette.accent),
            (false, false) => Stroke::new(1.0, palette.line),
        };
        ui.painter().rect_stroke(rect, CornerRadius::same(4), stroke, egui::StrokeKind::Inside);
    }
    response.on_hover_text(name).clicked()
}
