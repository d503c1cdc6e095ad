//! Two pictures in one place, with a divider to drag.

use eframe::egui::{self, Color32, Rect, Response, Sense, Stroke, TextureId, Ui, WidgetInfo, pos2};

use crate::text;

const WHOLE: Rect = Rect { min: pos2(0.0, 0.0), max: pos2(1.0, 1.0) };

/// Shows `left` left of the divider at `at` (0 to 1) and `right` right of it.
pub fn show(ui: &mut Ui, rect: Rect, (left, right): (TextureId, TextureId), at: &mut f32) -> Response {
    let mut response = ui.interact(rect, ui.scope_id().with("divider"), Sense::click_and_drag());
    if let Some(pointer) = response.interact_pointer_pos() {
        *at = ((pointer.x - rect.left()) / rect.width()).clamp(0.0, 1.0);
        response.mark_changed();
    }
    if response.has_focus() {
        let step = ui.input(|i| {
            i.num_presses(egui::Key::ArrowRight) as f32 - i.num_presses(egui::Key::ArrowLeft) as f32
        });
        *at = (*at + step * 0.02).clamp(0.0, 1.0);
    }
    let value = f64::from(*at);
    response.widget_info(|| WidgetInfo::slider(true, value, text::DIVIDER));
    let x = rect.left() + rect.width() * *at;
    let painter = ui.painter_at(rect);
    painter.image(right, rect, WHOLE, Color32::WHITE);
    let cut = Rect::from_min_max(rect.min, pos2(x, rect.bottom()));
    painter.image(left, cut, Rect::from_min_max(pos2(0.0, 0.0), pos2(*at, 1.0)), Color32::WHITE);
    painter.vline(x, rect.y_range(), Stroke::new(3.0, Color32::from_black_alpha(120)));
    painter.vline(x, rect.y_range(), Stroke::new(1.5, Color32::WHITE));
    painter.circle(
        pos2(x, rect.center().y),
        7.0,
        Color32::WHITE,
        Stroke::new(1.0, Color32::from_black_alpha(120)),
    );
    let corners =
        [(egui::Align2::LEFT_BOTTOM, text::COMPARE_BASE), (egui::Align2::RIGHT_BOTTOM, text::COMPARE_BLEND)];
    for (align, name) in corners {
        let place = align.pos_in_rect(&rect.shrink(8.0));
        let galley = painter.layout_no_wrap(name.into(), egui::FontId::proportional(12.0), Color32::WHITE);
        let text = align.anchor_size(place, galley.size());
        painter.rect_filled(text.expand2(egui::vec2(6.0, 3.0)), 4.0, Color32::from_black_alpha(150));
        painter.galley(text.min, galley, Color32::WHITE);
    }
    response.on_hover_cursor(egui::CursorIcon::ResizeHorizontal)
}
