//! The picture.

use eframe::egui::{
    self, Color32, CornerRadius, Rect, RichText, Sense, Stroke, Ui, WidgetInfo, accesskit::Role, pos2, vec2,
};

use super::View;
use crate::{
    logic::{Action, Dialog},
    text,
    theme::{self, Palette},
    widgets::{compare, textures},
};

const WHOLE: Rect = Rect { min: pos2(0.0, 0.0), max: pos2(1.0, 1.0) };

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    tools(ui, view);
    let place = ui.available_rect_before_wrap();
    ui.allocate_rect(place, Sense::hover());
    let canvas = &view.state.session.canvas;
    let shown = match (&canvas.preview, &canvas.shot) {
        (Some((id, image)), _) => Some((*id, image.clone())),
        (None, Some(shot)) => Some((shot.id, shot.image.clone())),
        (None, None) => None,
    };
    let Some((id, image)) = shown else {
        let palette = Palette::of(ui);
        let middle = place.center();
        let font = egui::FontId::proportional(14.0);
        ui.painter().text(middle, egui::Align2::CENTER_CENTER, text::EMPTY_PICTURE, font, palette.quiet);
        return;
    };
    // Previews are small: they are shown at the size of the picture to come.
    let rect = textures::fit(place, &image);
    let texture = view.textures.get(ui.ctx(), id, &image);
    let compared = !base_is_hidden(view);
    if let Some((_, base)) = view.state.session.canvas.base.as_ref().filter(|_| compared) {
        let left = view.textures.get(ui.ctx(), base.id, &base.image);
        let mut at = view.state.session.canvas.divider.unwrap_or(0.5);
        compare::show(ui, rect, (left, texture), &mut at);
        view.state.session.canvas.divider = Some(at);
    } else {
        ui.painter().add(
            egui::epaint::RectShape::filled(rect, CornerRadius::same(theme::RADIUS), Color32::WHITE)
                .with_texture(texture, WHOLE),
        );
    }
    let line = Stroke::new(1.0, Palette::of(ui).line);
    ui.painter().rect_stroke(rect, CornerRadius::same(theme::RADIUS), line, egui::StrokeKind::Outside);
    if super::place::paint(ui, view, rect) {
        return;
    }
    let prompt = view.state.settings.prompt.clone();
    if base_is_hidden(view) {
        let response = ui.interact(rect, ui.scope_id().with("picture"), Sense::click());
        response
            .widget_info(|| WidgetInfo::labeled(Role::Image, true, format!("{}: {prompt}", text::PICTURE)));
    }
}

fn base_is_hidden(view: &View<'_>) -> bool {
    let canvas = &view.state.session.canvas;
    // A grid shows many blends.
    let grid = canvas.shot.as_ref().is_some_and(|shot| shot.recipe.is_grid());
    !canvas.compare || canvas.base.is_none() || grid
}

fn tools(ui: &mut Ui, view: &mut View<'_>) {
    ui.horizontal(|ui| {
        let there = view.state.session.canvas.shot.is_some();
        let mut compared = view.state.session.canvas.compare;
        if ui.toggle_value(&mut compared, text::COMPARE).clicked() {
            view.act(Action::ToggleCompare);
        }
        ui.add_enabled_ui(there, |ui| {
            if ui.button(text::COPY).clicked() {
                view.act(Action::Copy);
            }
            if ui.button(text::SAVE).clicked() {
                view.act(Action::Ask(Dialog::SavePicture));
            }
            if ui.button(text::START_THIS).on_hover_text(text::START_THIS_HINT).clicked() {
                view.act(Action::StartFromShot);
            }
        });
        if let Some(shot) = &view.state.session.canvas.shot {
            let (w, h) = shot.image.dimensions();
            let seed = shot.recipe.seed.unwrap_or_default();
            let facts = RichText::new(format!("{w}×{h}, seed {seed}")).small().color(Palette::of(ui).quiet);
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| ui.label(facts));
        }
    });
    ui.add_space(vec2(0.0, 4.0).y);
}
