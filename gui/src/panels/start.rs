//! A picture to start from, and the second pass.

use eframe::egui::{self, CollapsingHeader, DragValue, Label, RichText, Slider, Ui};

use super::{View, generate::number};
use crate::{
    logic::{Action, Dialog},
    text,
    theme::Palette,
    widgets::{named, sign, thumbnail::Thumbnail},
};

/// The side of the picture in small.
const SIDE: f32 = 64.0;

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    match view.state.session.start.clone() {
        None => {
            let button = egui::Button::new(text::START_CHOOSE);
            if ui.add_sized([ui.available_width(), 26.0], button).on_hover_text(text::START_HINT).clicked() {
                view.act(Action::Ask(Dialog::StartPicture));
            }
        }
        Some(start) => {
            ui.horizontal(|ui| {
                let name = format!("{} {}", text::START, start.name);
                let small = Thumbnail { id: start.id, image: &start.pixels, name, side: SIDE, chosen: None };
                small.show(ui, view.textures);
                ui.vertical(|ui| {
                    ui.horizontal(|ui| {
                        if sign(ui, "×", text::START_REMOVE).clicked() {
                            view.act(Action::DropStart);
                        }
                        ui.add(Label::new(RichText::new(&start.name).small()).truncate());
                    });
                    ui.spacing_mut().slider_width = 64.0;
                    let slider = Slider::new(&mut view.state.settings.strength, 0.0..=1.0)
                        .max_decimals(2)
                        .prefix(text::STRENGTH_BEFORE);
                    named(ui.add(slider), text::STRENGTH).on_hover_text(text::STRENGTH_HINT);
                });
            });
        }
    }
    if let Some(path) = view.state.session.offer.clone() {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if ui.link(format!("{} {name}", text::START)).on_hover_text(text::START_THIS_HINT).clicked() {
            view.act(Action::StartFrom(path));
        }
    }
}

/// The second pass.
pub fn hires(ui: &mut Ui, view: &mut View<'_>) {
    let (settings, session) = (&mut view.state.settings, &view.state.session);
    let header = CollapsingHeader::new(text::HIRES).default_open(settings.hires.on);
    header.show(ui, |ui| {
        let free = session.start.is_none();
        let form = &mut settings.hires;
        let check = egui::Checkbox::new(&mut form.on, text::HIRES_ON);
        ui.add_enabled(free, check).on_hover_text(text::HIRES_HINT).on_disabled_hover_text(text::HIRES_NOT);
        ui.add_enabled_ui(free && form.on, |ui| {
            ui.columns(2, |columns| {
                let scale = DragValue::new(&mut form.scale).range(1.0..=4.0).speed(0.05).max_decimals(2);
                number(&mut columns[0], text::HIRES_SCALE, |ui| ui.add(scale));
                let share = DragValue::new(&mut form.strength).range(0.0..=1.0).speed(0.01).max_decimals(2);
                let response = number(&mut columns[1], text::HIRES_STRENGTH, |ui| ui.add(share));
                response.on_hover_text(text::STRENGTH_HINT);
            });
            let steps =
                DragValue::new(&mut form.steps).range(0..=150).custom_formatter(|steps, _| match steps {
                    0.0 => text::HIRES_SAME.into(),
                    steps => steps.to_string(),
                });
            number(ui, text::HIRES_STEPS, |ui| ui.add(steps));
            let native = session.model.as_ref().map(|model| (model.native_px, model.step_px));
            if let Some((native, step)) = native {
                let (w, h) = settings.size.unwrap_or((native, native));
                let side = |side: usize| (side as f64 * form.scale / step as f64).round() as usize * step;
                let sizes = format!("{w}×{h}, then {}×{} px", side(w), side(h));
                ui.label(RichText::new(sizes).small().color(Palette::of(ui).quiet));
            }
        });
    });
}
