//! A picture in small, to be looked at or to be chosen.

use eframe::egui::{
    self, Color32, CornerRadius, Rect, Response, Sense, Stroke, Ui, WidgetInfo, accesskit::Role, pos2, vec2,
};
use image::RgbImage;

use super::textures::{self, Textures};
use crate::theme::Palette;

const WHOLE: Rect = Rect { min: pos2(0.0, 0.0), max: pos2(1.0, 1.0) };

/// A picture in small.
#[derive(Debug)]
pub struct Thumbnail<'a> {
    /// The picture's number, for its texture.
    pub id: u64,
    /// The picture.
    pub image: &'a RgbImage,
    /// What screen readers say.
    pub name: String,
    /// The longer side on the screen.
    pub side: f32,
    /// True if it is the chosen one; `None` if there is nothing to choose.
    pub chosen: Option<bool>,
}

impl Thumbnail<'_> {
    /// Draws it.
    pub fn show(self, ui: &mut Ui, textures: &mut Textures) -> Response {
        let sense = if self.chosen.is_some() { Sense::click() } else { Sense::hover() };
        let (place, response) = ui.allocate_exact_size(vec2(self.side, self.side), sense);
        let name = self.name.clone();
        response.widget_info(|| match self.chosen {
            Some(chosen) => WidgetInfo::selected(Role::Button, true, chosen, name.clone()),
            None => WidgetInfo::labeled(Role::Image, true, name.clone()),
        });
        if ui.is_rect_visible(place) {
            let palette = Palette::of(ui);
            let rect = textures::fit(place, self.image);
            let texture = textures.get(ui.ctx(), self.id, self.image);
            let shape = egui::epaint::RectShape::filled(rect, CornerRadius::same(4), Color32::WHITE);
            ui.painter().add(shape.with_texture(texture, WHOLE));
            let near = response.hovered() || response.has_focus();
            let stroke = match self.chosen {
                Some(true) => Stroke::new(2.0, palette.accent),
                Some(false) if near => Stroke::new(1.0, palette.accent),
                _ => Stroke::new(1.0, palette.line),
            };
            ui.painter().rect_stroke(rect, CornerRadius::same(4), stroke, egui::StrokeKind::Inside);
        }
        response.on_hover_text(self.name)
    }
}
