//! What is drawn, a panel a file. Panels change settings in place and say what is to be done as actions.

mod blend;
mod blocks;
mod canvas;
mod generate;
mod grid;
mod history;
mod overlays;
mod path;
mod place;
mod problems;
mod queue;
mod start;
mod steps;
mod styles;
mod top;
mod train;
mod train_progress;

use std::path::PathBuf;

use eframe::egui::{self, Panel, Ui};

use crate::{
    logic::Action,
    state::{State, Tab},
    theme,
    widgets::textures::Textures,
};

/// What panels work with.
pub struct View<'a> {
    /// What is shown.
    pub state: &'a mut State,
    /// What was uploaded.
    pub textures: &'a mut Textures,
    /// What is to be done.
    pub actions: &'a mut Vec<Action>,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("actions", &self.actions).finish_non_exhaustive()
    }
}

impl View<'_> {
    /// To be done after this frame.
    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// The whole window.
pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    Panel::top("top").frame(theme::panel(ui)).resizable(false).show(ui, |ui| top::draw(ui, view));
    Panel::bottom("status")
        .frame(theme::panel(ui).inner_margin(egui::Margin::symmetric(12, 4)))
        .resizable(false)
        .show(ui, |ui| {
            top::status(ui, view);
        });
    match view.state.settings.tab {
        Tab::Draw => {
            Panel::left("generate").frame(theme::panel(ui)).resizable(false).exact_size(292.0).show(
                ui,
                |ui| {
                    generate::draw(ui, view);
                },
            );
            Panel::right("blend").frame(theme::panel(ui)).resizable(false).exact_size(316.0).show(ui, |ui| {
                blend::draw(ui, view);
            });
            Panel::bottom("history").frame(theme::ground(ui)).resizable(false).exact_size(122.0).show(
                ui,
                |ui| {
                    history::draw(ui, view);
                },
            );
            egui::CentralPanel::default().frame(theme::ground(ui)).show(ui, |ui| canvas::draw(ui, view));
        }
        Tab::Train => {
            Panel::left("training").frame(theme::panel(ui)).resizable(false).exact_size(292.0).show(
                ui,
                |ui| {
                    train::form(ui, view);
                },
            );
            Panel::right("progress").frame(theme::panel(ui)).resizable(false).exact_size(316.0).show(
                ui,
                |ui| {
                    train_progress::draw(ui, view);
                },
            );
            egui::CentralPanel::default().frame(theme::ground(ui)).show(ui, |ui| train::pictures(ui, view));
        }
    }
    problems::draw(ui, view);
    overlays::draw(ui, view);
    path::draw(ui, view);
}

/// A path short enough for a label: its last two parts.
fn short(path: &std::path::Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    match parts.as_slice() {
        [.., folder, name] if parts.len() > 2 => {
            PathBuf::from("…").join(&**folder).join(&**name).display().to_string()
        }
        _ => path.display().to_string(),
    }
}

/// A span of time in words.
fn time(secs: f64) -> String {
    let secs = secs.round() as u64;
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}
