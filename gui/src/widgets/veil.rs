//! A mask over the picture, painted with the pointer.

use eframe::egui::{
    Color32, ColorImage, CursorIcon, Rect, Sense, Stroke, TextureHandle, TextureOptions, Ui, WidgetInfo,
    accesskit::Role, pos2,
};

use crate::{state::Painting, text};

const WHOLE: Rect = Rect { min: pos2(0.0, 0.0), max: pos2(1.0, 1.0) };
/// How much of the picture a full mask hides.
const OPACITY: f32 = 0.55;

/// Shows the mask in a colour, and paints. True when a stroke ends.
pub fn show(ui: &Ui, rect: Rect, painting: &mut Painting, (name, colour): (&str, Color32)) -> bool {
    let id = ui.scope_id().with("veil");
    let response = ui.interact(rect, id, Sense::click_and_drag());
    let label = format!("{} {name}: {:.0} %", text::MASK_OF, painting.share() * 100.0);
    response.widget_info(|| WidgetInfo::labeled(Role::Canvas, true, &label));
    let down = response.is_pointer_button_down_on() && ui.input(|i| i.pointer.primary_down());
    let pointer = response.interact_pointer_pos().filter(|_| painting.ready);
    let mut ended = false;
    if let Some(at) = pointer.filter(|_| down || response.clicked()) {
        let at = (at - rect.min) / rect.size();
        painting.stroke((at.x, at.y));
    }
    if !down {
        ended = painting.at.take().is_some();
    }
    let known: Option<(u64, TextureHandle)> = ui.data(|data| data.get_temp(id));
    let texture = match known.filter(|(version, _)| *version == painting.version) {
        Some((_, texture)) => texture,
        None => {
            let texture = ui.ctx().load_texture("mask", veil(painting, colour), TextureOptions::LINEAR);
            ui.data_mut(|data| data.insert_temp(id, (painting.version, texture.clone())));
            texture
        }
    };
    let painter = ui.painter_at(rect);
    painter.image(texture.id(), rect, WHOLE, Color32::WHITE);
    if let Some(at) = response.hover_pos() {
        let radius = painting.brush.radius * rect.width().max(rect.height());
        painter.circle_stroke(at, radius, Stroke::new(2.0, Color32::from_black_alpha(140)));
        painter.circle_stroke(at, radius, Stroke::new(1.0, Color32::WHITE));
    }
    response.on_hover_cursor(CursorIcon::Crosshair);
    ended
}

fn veil(painting: &Painting, colour: Color32) -> ColorImage {
    let size = [painting.mask.width() as usize, painting.mask.height() as usize];
    let pixels = painting.mask.pixels().map(|p| colour.gamma_multiply(f32::from(p.0[0]) / 255.0 * OPACITY));
    ColorImage::new(size, pixels.collect())
}
