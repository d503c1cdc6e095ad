//! The bar above and the line below.

use eframe::egui::{
    self, Align, Layout, PopupCloseBehavior, RichText, Ui,
    containers::menu::{MenuButton, MenuConfig},
};
use scumble::progress::Stage;

use super::View;
use crate::{
    logic::{Action, Dialog},
    state::{Tab, ThemeChoice},
    text,
    theme::{Palette, caption},
    widgets::named,
};

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    ui.horizontal(|ui| {
        ui.label(RichText::new(text::TITLE).heading().color(Palette::of(ui).accent));
        ui.add_space(12.0);
        let tab = &mut view.state.settings.tab;
        ui.selectable_value(tab, Tab::Draw, text::TAB_DRAW);
        ui.selectable_value(tab, Tab::Train, text::TAB_TRAIN);
        ui.add_space(12.0);
        model(ui, view);
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if ui.button(text::HELP).clicked() {
                view.state.session.open.help ^= true;
            }
            theme(ui, &mut view.state.settings.theme);
        });
    });
}

fn theme(ui: &mut Ui, choice: &mut ThemeChoice) {
    let all = [
        (ThemeChoice::System, text::THEME_SYSTEM),
        (ThemeChoice::Light, text::THEME_LIGHT),
        (ThemeChoice::Dark, text::THEME_DARK),
    ];
    let now = all.iter().find(|(c, _)| c == choice).map_or("", |(_, name)| name);
    let combo = egui::ComboBox::from_id_salt("theme").selected_text(now).width(120.0);
    let response = combo.show_ui(ui, |ui| {
        for (value, name) in all {
            ui.selectable_value(choice, value, name);
        }
    });
    named(response.response, text::THEME);
    caption(ui, text::THEME);
}

fn model(ui: &mut Ui, view: &mut View<'_>) {
    let current = match view.state.settings.model.as_str() {
        "mini" => text::MODEL_BUILT_IN.to_owned(),
        other => super::short(std::path::Path::new(other)),
    };
    let title = format!("{}: {current}", text::MODEL);
    // A click into the field for the name must not close it.
    let stays = MenuConfig::new().close_behavior(PopupCloseBehavior::CloseOnClickOutside);
    MenuButton::new(title).config(stays).ui(ui, |ui| {
        ui.set_min_width(280.0);
        let recent = view.state.settings.recent_models.clone();
        let built_in = (text::MODEL_BUILT_IN.to_owned(), "mini".to_owned());
        for (label, name) in std::iter::once(built_in).chain(recent.into_iter().map(|n| (n.clone(), n))) {
            if ui.button(label).clicked() {
                view.act(Action::OpenModel(name));
                ui.close();
            }
        }
        ui.separator();
        ui.horizontal(|ui| {
            let edit = egui::TextEdit::singleline(&mut view.state.session.model_name)
                .hint_text(text::MODEL_NAME_HINT)
                .desired_width(190.0);
            let response = named(ui.add(edit), text::MODEL_NAME);
            let entered = response.lost_focus() && ui.input(|i| i.key_pressed(egui::Key::Enter));
            if ui.button(text::MODEL_OPEN).clicked() || entered {
                view.act(Action::OpenModel(view.state.session.model_name.clone()));
                ui.close();
            }
        });
        ui.horizontal(|ui| {
            if ui.button(text::MODEL_FOLDER).clicked() {
                view.act(Action::Ask(Dialog::ModelFolder));
                ui.close();
            }
            if ui.button(text::MODEL_FILE).clicked() {
                view.act(Action::Ask(Dialog::ModelFile));
                ui.close();
            }
        });
    });
}

/// What is being done, and what it costs.
pub fn status(ui: &mut Ui, view: &mut View<'_>) {
    ui.horizontal(|ui| {
        super::queue::draw(ui, view);
        let session = &view.state.session;
        ui.set_min_height(20.0);
        let colour = Palette::of(ui).quiet;
        let quiet = |text: String| RichText::new(text).small().color(colour);
        match &session.progress {
            Some(progress) => {
                let share = progress.done as f32 / progress.total.max(1) as f32;
                let (what, unit) = stage(progress.stage);
                let amount = match unit {
                    true => format!("{} of {}", progress.done, progress.total),
                    false => {
                        format!("{:.0} of {:.0} MB", progress.done as f64 / 1e6, progress.total as f64 / 1e6)
                    }
                };
                ui.add(
                    egui::ProgressBar::new(share).desired_width(160.0).desired_height(8.0).corner_radius(4.0),
                );
                ui.label(quiet(format!("{what}: {amount}")));
            }
            None if !session.jobs.is_empty() => drop(ui.label(quiet("…".into()))),
            None => {
                let last = session.last_secs.map(|secs| format!("last picture {secs:.2} s"));
                ui.label(quiet(last.unwrap_or_default()));
            }
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if let Some(bytes) = session.memory_bytes {
                ui.label(quiet(format!("{:.0} MB of memory", bytes as f64 / 1e6)));
            }
            if let Some(model) = &session.model {
                ui.label(quiet(format!("{}, {} px", model.family.title(), model.native_px)));
            }
        });
    });
}

/// What a stage is called, and whether it counts things or bytes.
fn stage(stage: Stage) -> (&'static str, bool) {
    match stage {
        Stage::Download => ("downloading", false),
        Stage::Load => ("opening the model", true),
        Stage::Scan => ("looking at pictures", true),
        Stage::Cache => ("encoding pictures", true),
        Stage::Train => ("training", true),
        Stage::Sample => ("drawing", true),
        Stage::Decode => ("decoding", true),
        Stage::Layers => ("layers", true),
        Stage::Adapters => ("reading adapters", true),
        Stage::Save => ("saving", true),
        _ => ("working", true),
    }
}
