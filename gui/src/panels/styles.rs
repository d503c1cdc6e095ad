//! The cards of the blend's styles.

use eframe::egui::{self, Align, Layout, RichText, Sense, Slider, Ui, vec2};
use scumble::adapter::library::Card;

use super::View;
use crate::{
    logic::Action,
    state::{Part, Place, Style},
    text,
    theme::{self, Palette},
    widgets::{named, sign, textures},
};

/// Weights a slider reaches; more can be typed.
const RANGE: std::ops::RangeInclusive<f64> = -1.0..=2.0;
/// The side of a card's picture.
const COVER: f32 = 36.0;

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
        // Three of them are to be seen in a window of the usual size.
        ui.spacing_mut().item_spacing.y = 4.0;
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
        ui.horizontal(|ui| {
            cover(ui, view, style);
            ui.vertical(|ui| {
                (ui.spacing_mut().item_spacing.y, ui.spacing_mut().interact_size.y) = (2.0, 18.0);
                if let Some(card) = view.state.session.cards.get(&style.path).cloned() {
                    facts(ui, view, &card, &name);
                }
                parts(ui, view, style);
            });
        });
        let label = if style.text_weight.is_some() { text::WEIGHT_UNET } else { text::WEIGHT };
        weight(ui, &mut style.weight, &name, label);
        if let Some(text_weight) = &mut style.text_weight {
            weight(ui, text_weight, &name, text::WEIGHT_TEXT);
        }
        unfolded(ui, view, (index, style));
    });
}

/// Buttons that unfold what the weight is beyond a number.
fn parts(ui: &mut Ui, view: &mut View<'_>, style: &Style) {
    let name = style.name();
    let parts = [
        (Part::Blocks, text::BLOCKS, text::BLOCKS_HINT, !style.blocks.is_empty()),
        (
            Part::Steps,
            text::STEPS_OF,
            text::STEPS_OF_HINT,
            style.steps.is_some() || style.text_steps.is_some(),
        ),
        (Part::Place, text::PLACE, text::PLACE_HINT, style.place != Place::Everywhere),
    ];
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 4.0;
        ui.spacing_mut().interact_size.y = 22.0;
        ui.spacing_mut().button_padding = vec2(6.0, 2.0);
        for (part, title, hint, in_use) in parts {
            let key = (style.path.clone(), part);
            let open = view.state.session.unfolded.contains(&key);
            let words = if in_use { format!("{title} •") } else { title.to_owned() };
            let button = choice(ui, open, &words).on_hover_text(hint);
            if named(button, format!("{title} {name}")).clicked() {
                if open {
                    view.state.session.unfolded.remove(&key);
                } else {
                    view.state.session.unfolded.insert(key);
                }
            }
        }
    });
}

/// Those parts.
fn unfolded(ui: &mut Ui, view: &mut View<'_>, (index, style): (usize, &mut Style)) {
    let open = |part| view.state.session.unfolded.contains(&(style.path.clone(), part));
    let (blocks, steps, place) = (open(Part::Blocks), open(Part::Steps), open(Part::Place));
    if blocks {
        super::blocks::draw(ui, view, style);
    }
    if steps {
        super::steps::draw(ui, view, style);
    }
    if place {
        super::place::draw(ui, view, (index, style));
    }
}

/// Small choices beside each other, under a caption, in as many rows as they need.
pub(super) fn choices(ui: &mut Ui, caption: &str, add: impl FnOnce(&mut Ui)) {
    theme::caption(ui, caption);
    ui.horizontal_wrapped(|ui| {
        let spacing = ui.spacing_mut();
        spacing.item_spacing = vec2(2.0, 2.0);
        spacing.button_padding = vec2(6.0, 2.0);
        spacing.interact_size.y = 20.0;
        add(ui);
    });
}

/// A small button that stays down.
pub(super) fn choice(ui: &mut Ui, on: bool, words: &str) -> egui::Response {
    ui.selectable_label(on, RichText::new(words).small())
}

/// What it looks like, if somebody has a picture of it.
fn cover(ui: &mut Ui, view: &mut View<'_>, style: &Style) {
    let covers = &view.state.session.covers;
    let Some((id, picture)) = covers.get(&style.path).and_then(Option::as_ref) else { return };
    let texture = view.textures.get(ui.ctx(), *id, picture);
    let (rect, response) = ui.allocate_exact_size(vec2(COVER, COVER), Sense::hover());
    let image = egui::epaint::RectShape::filled(rect, 4.0, egui::Color32::WHITE);
    ui.painter().add(image.with_texture(texture, textures::middle(picture)));
    let label = format!("{} {}", text::COVER, style.name());
    response.widget_info(|| egui::WidgetInfo::labeled(egui::accesskit::Role::Image, true, &label));
    response.on_hover_ui(|ui| {
        ui.add(egui::Image::new((texture, vec2(picture.width() as f32, picture.height() as f32))));
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
