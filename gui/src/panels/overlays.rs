//! Windows above the panels: keys, library, export, the question before closing.

use eframe::egui::{self, Align2, DragValue, Id, Key, Modal, RichText, ScrollArea, Ui, Window, vec2};
use scumble::adapter::library::{Entry, Library};

use super::View;
use crate::{
    logic::{self, Action, Dialog},
    text,
    theme::{self, Palette},
    widgets::named,
};

pub fn draw(ui: &Ui, view: &mut View<'_>) {
    let open = view.state.session.open;
    if open.help {
        help(ui, view);
    }
    if open.library {
        library(ui, view);
    }
    if open.export {
        export(ui, view);
    }
    if open.grid {
        super::grid::draw(ui, view);
    }
    if open.closing {
        closing(ui, view);
    }
}

fn help(ui: &Ui, view: &mut View<'_>) {
    let modal = Modal::new(Id::unique("help")).show(ui.ctx(), |ui| {
        ui.set_width(420.0);
        ui.heading(text::HELP);
        ui.add_space(8.0);
        egui::Grid::new("keys").num_columns(2).spacing(vec2(24.0, 6.0)).show(ui, |ui| {
            for (keys, what) in text::KEYS {
                ui.label(RichText::new(keys).monospace().color(Palette::of(ui).accent));
                ui.label(what);
                ui.end_row();
            }
        });
        ui.add_space(8.0);
        ui.button(text::CLOSE).clicked()
    });
    if modal.inner || modal.should_close() {
        view.state.session.open.help = false;
    }
}

fn library(ui: &Ui, view: &mut View<'_>) {
    let mut open = true;
    let size = ui.ctx().content_rect().size();
    Window::new(text::LIBRARY_TITLE)
        .open(&mut open)
        .collapsible(false)
        .resizable(true)
        .default_size(vec2(520.0, 440.0).min(size * 0.8))
        .pivot(Align2::CENTER_CENTER)
        .default_pos(ui.ctx().content_rect().center())
        .show(ui.ctx(), |ui| {
            ui.horizontal(|ui| {
                if ui.button(text::LIBRARY_FOLDER).clicked() {
                    view.act(Action::Ask(Dialog::Library));
                }
                let search = egui::TextEdit::singleline(&mut view.state.session.library.search)
                    .hint_text(text::LIBRARY_SEARCH)
                    .desired_width(ui.available_width());
                named(ui.add(search), text::LIBRARY_SEARCH);
            });
            ui.add_space(6.0);
            list(ui, view);
        });
    view.state.session.open.library &= open;
}

fn list(ui: &mut Ui, view: &mut View<'_>) {
    let palette = Palette::of(ui);
    if view.state.session.library.entries.is_empty() {
        ui.label(RichText::new(text::LIBRARY_EMPTY).color(palette.quiet));
        return;
    }
    let shelf = &view.state.session.library;
    let mut found = Library { entries: shelf.entries.clone(), read: 0 };
    found.search(&shelf.search);
    if found.entries.is_empty() {
        ui.label(RichText::new(text::LIBRARY_NOTHING).color(palette.quiet));
    }
    let folder = shelf.folder.clone();
    let height = 52.0;
    ScrollArea::vertical().auto_shrink([false, false]).show_rows(
        ui,
        height,
        found.entries.len(),
        |ui, rows| {
            for entry in &found.entries[rows] {
                ui.allocate_ui(vec2(ui.available_width(), height), |ui| row(ui, view, &folder, entry));
            }
        },
    );
}

fn row(ui: &mut Ui, view: &mut View<'_>, folder: &std::path::Path, entry: &Entry) {
    let palette = Palette::of(ui);
    ui.horizontal(|ui| {
        let add = egui::Button::new(text::ADD);
        let usable = entry.content.is_ok();
        if named(ui.add_enabled(usable, add), format!("{} {}", text::ADD, entry.name)).clicked() {
            view.act(Action::AddStyles(vec![folder.join(&entry.path)]));
        }
        ui.vertical(|ui| {
            ui.spacing_mut().item_spacing.y = 1.0;
            ui.add(egui::Label::new(RichText::new(&entry.name).strong()).truncate());
            let (facts, colour) = match &entry.content {
                Ok(card) => {
                    let family = card.family.map(|family| family.title().to_owned());
                    let rank = card.ranks.last().map(|rank| format!("rank {rank}"));
                    let words = (!card.triggers.is_empty()).then(|| card.triggers.join(", "));
                    let facts: Vec<String> = [family, rank, words].into_iter().flatten().collect();
                    (facts.join(" · "), palette.quiet)
                }
                Err(reason) => (reason.clone(), palette.bad),
            };
            ui.add(egui::Label::new(RichText::new(facts).small().color(colour)).truncate());
        });
    });
}

fn export(ui: &Ui, view: &mut View<'_>) {
    let modal = Modal::new(Id::unique("export")).show(ui.ctx(), |ui| {
        ui.set_width(360.0);
        ui.heading(text::EXPORT_TITLE);
        ui.add_space(8.0);
        let rank = &mut view.state.session.library.export_rank;
        if ui.radio(rank.is_none(), text::EXPORT_EXACT).clicked() {
            *rank = None;
        }
        if ui.radio(rank.is_some(), text::EXPORT_RANK).clicked() {
            *rank = Some(rank.unwrap_or(16));
        }
        if let Some(rank) = rank {
            ui.horizontal(|ui| {
                named(ui.add(DragValue::new(rank).range(1..=256)), text::RANK);
                ui.label(text::RANK);
            });
        }
        let refused = logic::not_a_file(&view.state.settings);
        if let Some(reason) = &refused {
            ui.add(egui::Label::new(RichText::new(reason).color(Palette::of(ui).warn)).wrap());
        }
        ui.add_space(8.0);
        ui.horizontal(|ui| {
            let go = theme::primary(ui, text::EXPORT_GO);
            if ui.add_enabled(refused.is_none(), go).clicked() {
                view.act(Action::Ask(Dialog::ExportBlend));
            }
            ui.button(text::CLOSE).clicked()
        })
        .inner
    });
    if modal.inner || modal.should_close() {
        view.state.session.open.export = false;
    }
}

fn closing(ui: &Ui, view: &mut View<'_>) {
    let modal = Modal::new(Id::unique("closing")).show(ui.ctx(), |ui| {
        ui.set_width(380.0);
        ui.heading(text::CLOSING_TITLE);
        ui.add_space(8.0);
        ui.add(egui::Label::new(text::CLOSING_TEXT).wrap());
        ui.add_space(8.0);
        ui.horizontal(|ui| {
            if ui.add(theme::primary(ui, text::CLOSING_STAY)).clicked() {
                view.act(Action::Stay);
            }
            if ui.button(text::CLOSING_STOP).clicked() {
                view.act(Action::StopAndClose);
            }
        });
        ui.input(|i| i.key_pressed(Key::Escape))
    });
    if modal.inner {
        view.act(Action::Stay);
    }
}
