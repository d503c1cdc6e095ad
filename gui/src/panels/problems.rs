//! Messages, with what to do about them.

use eframe::egui::{self, Align2, RichText, Ui, vec2};

use super::View;
use crate::{
    logic::Action,
    state::Problem,
    text,
    theme::{self, Palette},
};

/// More are not shown at once.
const SHOWN: usize = 3;

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    let problems: Vec<(usize, Problem)> =
        view.state.session.problems.iter().cloned().enumerate().rev().take(SHOWN).collect();
    let report = view.state.session.crashes.first().map(|report| report.text.clone());
    if problems.is_empty() && report.is_none() {
        return;
    }
    let area = egui::Area::new(egui::Id::unique("problems"))
        .anchor(Align2::CENTER_TOP, vec2(0.0, 64.0))
        .order(egui::Order::Foreground);
    area.show(ui.ctx(), |ui| {
        ui.set_width(460.0);
        if let Some(report) = report {
            crash(ui, view, report);
            ui.add_space(6.0);
        }
        for (index, problem) in problems {
            card(ui, view, index, &problem);
            ui.add_space(6.0);
        }
    });
}

fn card(ui: &mut Ui, view: &mut View<'_>, index: usize, problem: &Problem) {
    let palette = Palette::of(ui);
    let (title, colour) = match problem.is_error {
        true => (text::WENT_WRONG, palette.bad),
        false => (text::NOTE, palette.warn),
    };
    framed(ui, title, colour, |ui| {
        ui.add(egui::Label::new(&problem.message).wrap());
        if let Some(hint) = &problem.hint {
            ui.add(egui::Label::new(RichText::new(hint).color(palette.quiet)).wrap());
        }
        ui.horizontal(|ui| {
            if ui.button(text::COPY_MESSAGE).clicked() {
                let hint = problem.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                ui.ctx().copy_text(format!("{}{hint}", problem.message));
            }
            if ui.button(text::DISMISS).clicked() {
                view.act(Action::Dismiss(index));
            }
        });
    });
}

/// A report of a mistake of this program: it stays until it is removed.
fn crash(ui: &mut Ui, view: &mut View<'_>, report: String) {
    let colour = Palette::of(ui).bad;
    framed(ui, text::CRASHED, colour, |ui| {
        ui.add(egui::Label::new(text::CRASHED_TEXT).wrap());
        ui.horizontal(|ui| {
            if ui.button(text::CRASHED_COPY).clicked() {
                ui.ctx().copy_text(report);
            }
            if ui.button(text::CRASHED_REMOVE).clicked() {
                view.act(Action::RemoveCrash);
            }
            if ui.button(text::CRASHED_LATER).clicked() {
                view.act(Action::HideCrashes);
            }
        });
    });
}

fn framed(ui: &mut Ui, title: &str, colour: egui::Color32, add: impl FnOnce(&mut Ui)) {
    let frame = theme::card(ui).stroke(egui::Stroke::new(1.0, colour)).shadow(ui.visuals().popup_shadow);
    frame.show(ui, |ui| {
        ui.set_width(ui.available_width());
        ui.label(RichText::new(title).strong().color(colour));
        add(ui);
    });
}
