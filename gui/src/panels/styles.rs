//! The cards of the blend's styles.

use eframe::egui::{self, Align, Layout, RichText, Slider, Ui};
use scumble::adapter::library::Card;

use super::View;
use crate::{
    logic::Action,
    state::Style,
    text,
    theme::{self, Palette},
    widgets::{named, sign},
};

/// Weights a slider reaches; more can be typed.
const RANGE: std::ops::RangeInclusive<f64> = -1.0..=2.0;

/// All cards. True if one was changed.
pub fn draw(ui: &mut Ui, view: &mut View<'_>) -> bool {
    let mut styles = view.state.settings.styles.clone().unwrap_or_default();
    for (index, style) in styles.iter_mut().enumerate() {
        ui.push_id(index, |ui| card(ui, view, index, style));
        ui.add_space(2.0);
    }
    if styles.is_empty() {
        ui.label(RichText::new(text::NO_STYLES).color(Palette::of(ui).quiet));
    }
    let changed = view.state.settings.styles.as_deref().unwrap_or_default() != styles;
    if changed {
        view.state.settings.styles = Some(styles);
    }
    changed
}

fn card(ui: &mut Ui, view: &mut View<'_>, index: usize, style: &mut Style) {
    let name = style.name();
    theme::card(ui).show(ui, |ui| {
        ui.set_width(ui.available_width());
        ui.horizontal(|ui| {
            let on = ui.checkbox(&mut style.on, "");
            named(on, format!("{name} {}", text::ON));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if sign(ui, "×", format!("{} {name}", text::REMOVE)).clicked() {
                    view.act(Action::RemoveStyle(index));
                }
                let split = ui.selectable_label(style.text_weight.is_some(), text::SPLIT);
                let split = named(split.on_hover_text(text::SPLIT_HINT), format!("{} {name}", text::SPLIT));
                if split.clicked() {
                    style.text_weight = style.text_weight.is_none().then_some(style.weight);
                }
                let solo = ui.selectable_label(style.solo, text::SOLO);
                if named(solo, format!("{} {name}", text::SOLO)).clicked() {
                    style.solo ^= true;
                }
                ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                    ui.add(egui::Label::new(RichText::new(&name).strong()).truncate());
                });
            });
        });
        if let Some(card) = view.state.session.cards.get(&style.path).cloned() {
            facts(ui, view, &card, &name);
        }
        let label = if style.text_weight.is_some() { text::WEIGHT_UNET } else { text::WEIGHT };
        weight(ui, &mut style.weight, &name, label);
        if let Some(text_weight) = &mut style.text_weight {
            weight(ui, text_weight, &name, text::WEIGHT_TEXT);
        }
    });
}

/// What calls the style: a click writes it into the prompt.
fn facts(ui: &mut Ui, view: &mut View<'_>, card: &Card, name: &str) {
    let quiet = Palette::of(ui).quiet;
    ui.horizontal_wrapped(|ui| {
        for trigger in card.triggers.iter().take(2) {
            let text = RichText::new(trigger).small();
            let button = ui.add(egui::Button::new(text).small().truncate());
            let hint = format!("{}: {trigger}", text::ADD_TRIGGER);
            if named(button.on_hover_text(&hint), hint.clone()).clicked() {
                view.act(Action::AddWords(trigger.clone()));
            }
        }
        if let Some(rank) = card.ranks.last() {
            ui.label(RichText::new(format!("rank {rank}")).small().color(quiet))
                .on_hover_text(format!("{name}: {} layers", card.layers));
        }
    });
}

fn weight(ui: &mut Ui, value: &mut f64, name: &str, label: &str) {
    ui.horizontal(|ui| {
        // The number's field stands beside the rail.
        ui.spacing_mut().slider_width = ui.available_width() - 118.0;
        let slider =
            Slider::new(value, RANGE).clamping(egui::SliderClamping::Never).step_by(0.01).fixed_decimals(2);
        named(ui.add(slider), format!("{name} {label}"));
        theme::caption(ui, label);
    });
}
