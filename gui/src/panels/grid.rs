//! The window that asks what a grid is to show.

use eframe::egui::{self, Id, Modal, RichText, Ui};

use super::View;
use crate::{
    logic::{self, Action},
    state::{GridSide, Settings, Varies},
    text,
    theme::{self, Palette},
    widgets::named,
};

pub fn draw(ui: &Ui, view: &mut View<'_>) {
    let modal = Modal::new(Id::unique("grid")).show(ui.ctx(), |ui| {
        ui.set_width(420.0);
        ui.heading(text::GRID_TITLE);
        ui.add_space(8.0);
        let (settings, session) = (&view.state.settings, &mut view.state.session);
        for (index, side) in session.grid.sides.iter_mut().enumerate() {
            edit(ui, side, settings, (text::GRID_SIDES[index], text::GRID_VALUES[index]));
            ui.add_space(6.0);
        }
        let grid = logic::grid(settings, &session.grid);
        let palette = Palette::of(ui);
        match &grid {
            Ok(grid) => {
                let secs = logic::estimate(settings, session, grid);
                ui.label(RichText::new(amount(grid.len(), secs)).color(palette.quiet));
            }
            Err(e) => {
                ui.label(RichText::new(e.to_string()).color(palette.bad));
            }
        }
        ui.add_space(8.0);
        ui.horizontal(|ui| {
            if ui.add_enabled(grid.is_ok(), theme::primary(ui, text::GRID_GO)).clicked() {
                view.act(Action::DrawGrid);
            }
            ui.button(text::CLOSE).clicked()
        })
        .inner
    });
    if modal.inner || modal.should_close() {
        view.state.session.open.grid = false;
    }
}

fn edit(ui: &mut Ui, side: &mut GridSide, settings: &Settings, (name, values): (&str, &str)) {
    theme::caption(ui, name);
    ui.horizontal(|ui| {
        let choices = logic::choices(settings);
        let now = choices.iter().find(|(varies, _)| *varies == side.varies);
        let combo =
            egui::ComboBox::from_id_salt(name).selected_text(now.map_or("", |(_, shown)| shown)).width(180.0);
        let before = side.varies;
        let response = combo.show_ui(ui, |ui| {
            for (varies, shown) in &choices {
                ui.selectable_value(&mut side.varies, *varies, shown);
            }
        });
        named(response.response, name);
        if side.varies != before {
            side.values = logic::typed(side.varies, settings);
        }
        let changes = side.varies != Varies::Nothing;
        let edit = egui::TextEdit::singleline(&mut side.values).desired_width(ui.available_width());
        named(ui.add_enabled(changes, edit), values);
    });
}

/// How many pictures, and how long they will take.
fn amount(pictures: usize, secs: Option<f64>) -> String {
    let count = text::counted(pictures, "picture");
    match secs {
        Some(secs) => format!("{count}, about {}", super::time(secs)),
        None => count,
    }
}
