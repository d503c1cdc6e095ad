//! What was drawn.

use eframe::egui::{Key, RichText, ScrollArea, Ui};

use super::View;
use crate::{
    logic::Action,
    state::Shot,
    text,
    theme::{self, Palette},
    widgets::thumbnail::Thumbnail,
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
                let chosen = Some(current == Some(shot.id));
                let small =
                    Thumbnail { id: shot.id, image: &shot.image, name: name(&shot), side: SIDE, chosen };
                let response = small.show(ui, view.textures).on_hover_text(text::HISTORY_HINT);
                if response.clicked() {
                    // What was clicked is what Delete means.
                    response.request_focus();
                    view.act(Action::RestoreShot(shot.id));
                }
                let mut out = response.has_focus() && ui.input(|i| i.key_pressed(Key::Delete));
                response.context_menu(|ui| out |= ui.button(text::HISTORY_REMOVE).clicked());
                if out {
                    view.act(Action::ForgetShot(shot.id));
                }
            }
        });
    });
}

fn name(shot: &Shot) -> String {
    let what = if shot.recipe.is_grid() { text::GRID_OF } else { "" };
    format!("{what}{}, seed {}", shot.recipe.prompt, shot.recipe.seed.unwrap_or_default())
}
