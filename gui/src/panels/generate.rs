//! What to draw and how.

use eframe::egui::{self, DragValue, RichText, ScrollArea, Ui};
use scumble::diffusion::{Sampler, SigmaSchedule};

use super::{View, start};
use crate::{
    logic::Action,
    state::{Session, Settings},
    text,
    theme::{self, Palette},
    widgets::{field, named},
};

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    let height = ui.available_height() - 44.0;
    ScrollArea::vertical().max_height(height).auto_shrink([false, false]).show(ui, |ui| {
        let before = view.state.settings.clone();
        prompts(ui, view);
        ui.add_space(4.0);
        let (settings, session) = (&mut view.state.settings, &view.state.session);
        names(ui, settings);
        numbers(ui, settings, session);
        seed(ui, view);
        start::draw(ui, view);
        start::hires(ui, view);
        let settings = &view.state.settings;
        let mut counted = before.clone();
        // These change nothing of the picture itself.
        (counted.keep_seed, counted.count, counted.live) =
            (settings.keep_seed, settings.count, settings.live);
        if *settings != counted {
            view.act(Action::Changed);
        }
    });
    buttons(ui, view);
}

fn prompts(ui: &mut Ui, view: &mut View<'_>) {
    let (settings, session) = (&mut view.state.settings, &view.state.session);
    for (text, name, hint, rows) in [
        (&mut settings.prompt, text::PROMPT, text::PROMPT_HINT, 4),
        (&mut settings.negative, text::NEGATIVE, text::NEGATIVE_HINT, 2),
    ] {
        let counted = session.model.as_ref().map(|model| model.tokens.count(text));
        ui.horizontal(|ui| {
            theme::caption(ui, name);
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                if let Some(Ok((tokens, room))) = &counted {
                    theme::caption(ui, &format!("{tokens}/{room} tokens"));
                }
            });
        });
        let edit =
            egui::TextEdit::multiline(text).hint_text(hint).desired_rows(rows).desired_width(f32::INFINITY);
        // The window's own shortcut is Ctrl+Enter; Enter is a line.
        named(ui.add(edit), name);
        if let Some(Err(e)) = counted {
            ui.label(RichText::new(e.to_string()).small().color(Palette::of(ui).bad));
        }
    }
}

fn names(ui: &mut Ui, settings: &mut Settings) {
    ui.columns(2, |columns| {
        let samplers = Sampler::ALL.map(|s| (s.name(), s.display_name()));
        choice(&mut columns[0], text::SAMPLER, &mut settings.sampler, &samplers);
        let schedules = SigmaSchedule::ALL.map(|s| (s.name(), s.display_name()));
        choice(&mut columns[1], text::SCHEDULE, &mut settings.schedule, &schedules);
    });
}

fn choice(ui: &mut Ui, name: &str, value: &mut String, all: &[(&str, &str)]) {
    field(ui, name, |ui| {
        let now = all.iter().find(|(short, _)| short == value).map_or("", |(_, shown)| shown);
        let combo = egui::ComboBox::from_id_salt(name).selected_text(now).width(ui.available_width());
        let response = combo.show_ui(ui, |ui| {
            for (short, shown) in all {
                ui.selectable_value(value, (*short).to_owned(), *shown);
            }
        });
        named(response.response, name);
    });
}

fn numbers(ui: &mut Ui, settings: &mut Settings, session: &Session) {
    let model = session.model.as_deref();
    let (native, step) = model.map_or((512, 64), |m| (m.native_px, m.step_px));
    let own_cfg = model.map_or(7.0, |m| m.cfg_scale);
    ui.columns(2, |columns| {
        number(&mut columns[0], text::STEPS, |ui| ui.add(DragValue::new(&mut settings.steps).range(1..=150)));
        let mut cfg = settings.cfg.unwrap_or(own_cfg);
        let drag = DragValue::new(&mut cfg).range(0.0..=30.0).speed(0.1).max_decimals(1);
        if number(&mut columns[1], text::GUIDANCE, |ui| ui.add(drag)).changed() {
            settings.cfg = Some(cfg);
        }
    });
    let (mut width, mut height) = settings.size.unwrap_or((native, native));
    ui.columns(2, |columns| {
        let side = |value| DragValue::new(value).range(step..=2048).speed(step as f64 / 8.0).suffix(" px");
        let changed = [
            number(&mut columns[0], text::WIDTH, |ui| ui.add(side(&mut width))).changed(),
            number(&mut columns[1], text::HEIGHT, |ui| ui.add(side(&mut height))).changed(),
        ];
        if changed.contains(&true) {
            let whole = |side: usize| ((side + step / 2) / step * step).max(step);
            settings.size = Some((whole(width), whole(height)));
        }
    });
}

/// A number with its name above it, as wide as its place.
pub(super) fn number(ui: &mut Ui, name: &str, add: impl FnOnce(&mut Ui) -> egui::Response) -> egui::Response {
    field(ui, name, |ui| {
        ui.with_layout(egui::Layout::top_down_justified(egui::Align::Min), |ui| named(add(ui), name)).inner
    })
}

fn seed(ui: &mut Ui, view: &mut View<'_>) {
    field(ui, text::SEED, |ui| {
        ui.horizontal(|ui| {
            let settings = &mut view.state.settings;
            let drag = DragValue::new(&mut settings.seed)
                .range(0..=u64::from(u32::MAX))
                .clamp_existing_to_range(false);
            named(ui.add_sized([118.0, 26.0], drag), text::SEED);
            if ui.button(text::DICE).on_hover_text(text::DICE_HINT).clicked() {
                view.act(Action::NewSeed);
            }
            let keep = ui.checkbox(&mut view.state.settings.keep_seed, text::LOCK_SEED);
            keep.on_hover_text(text::LOCK_SEED_HINT);
        });
    });
    let settings = &mut view.state.settings;
    ui.horizontal(|ui| {
        let response = ui.add(DragValue::new(&mut settings.count).range(1..=64));
        named(response, text::COUNT);
        ui.label(text::COUNT);
        if ui.button(text::GRID).on_hover_text(text::GRID_HINT).clicked() {
            view.actions.push(Action::OpenGrid);
        }
    });
    ui.checkbox(&mut settings.live, text::LIVE);
}

fn buttons(ui: &mut Ui, view: &mut View<'_>) {
    ui.add_space(6.0);
    let drawing = view.state.session.is_drawing();
    ui.horizontal(|ui| {
        let width = ui.available_width();
        let generate = theme::primary(ui, text::GENERATE).min_size(egui::vec2(width - 96.0, 34.0));
        let ready = !view.state.session.is_training();
        if ui.add_enabled(ready, generate).on_disabled_hover_text(text::TRAIN_WAITS).clicked() {
            view.act(Action::Generate);
        }
        let cancel = egui::Button::new(text::CANCEL).min_size(egui::vec2(88.0, 34.0));
        if ui.add_enabled(drawing, cancel).clicked() {
            view.act(Action::Cancel);
        }
    });
}
