//! The blend: styles, the pad to mix them on, and whether it is too much.

use eframe::egui::{self, Panel, RichText, ScrollArea, Sense, Stroke, Ui, vec2};
use scumble::adapter::guard::{BlendReport, LIMIT};

use super::{View, styles};
use crate::{
    logic::{Action, Dialog},
    state::Style,
    text,
    theme::{self, Palette},
    widgets::pad,
};

/// What the mixing pad takes of the panel's height, and what it is at least and at most.
const PAD_SHARE: f32 = 0.15;
const PAD: std::ops::RangeInclusive<f32> = 84.0..=132.0;

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    ui.horizontal(|ui| {
        theme::section(ui, text::STYLES);
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            if ui.button(text::ADD_STYLE).clicked() {
                view.act(Action::Ask(Dialog::Styles));
            }
            if ui.button(text::LIBRARY).clicked() {
                view.state.session.open.library = true;
            }
        });
    });
    ui.add_space(4.0);
    let pad = (ui.available_height() * PAD_SHARE).clamp(*PAD.start(), *PAD.end());
    let mut changed = false;
    // However many cards there are, what is below them is to be seen.
    let below = Panel::bottom("below the styles").resizable(false).show_separator_line(false);
    below.frame(egui::Frame::NONE).show(ui, |ui| {
        changed |= mixing(ui, pad, view.state.settings.styles.as_deref_mut().unwrap_or_default());
        changed |= overcooked(ui, view);
        export(ui, view);
    });
    ScrollArea::vertical().auto_shrink([false, false]).show(ui, |ui| changed |= styles::draw(ui, view));
    if changed {
        view.act(Action::Changed);
    }
}

/// Whether it is too much, and what may be done about it. True if that was changed.
fn overcooked(ui: &mut Ui, view: &mut View<'_>) -> bool {
    let mut changed = false;
    ui.horizontal(|ui| {
        theme::caption(ui, text::METER);
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let response = ui.checkbox(&mut view.state.settings.normalize, text::NORMALIZE);
            changed = response.on_hover_text(text::NORMALIZE_HINT).changed();
        });
    });
    if let Some(report) = &view.state.session.report {
        meter(ui, report);
    }
    changed
}

fn export(ui: &mut Ui, view: &mut View<'_>) {
    ui.add_space(4.0);
    let any = view.state.settings.styles.iter().flatten().any(|style| style.on);
    let pressed = ui.add_enabled_ui(any, |ui| {
        ui.add_sized([ui.available_width(), 28.0], egui::Button::new(text::EXPORT)).clicked()
    });
    if pressed.inner {
        view.state.session.open.export = true;
    }
}

/// The pad, if there are styles enough and not too many.
fn mixing(ui: &mut Ui, height: f32, styles: &mut [Style]) -> bool {
    let mixed: Vec<usize> = (0..styles.len()).filter(|i| styles[*i].on).collect();
    if !(2..=4).contains(&mixed.len()) {
        return false;
    }
    theme::caption(ui, text::PAD);
    let names: Vec<String> = mixed.iter().map(|i| styles[*i].name()).collect();
    let weights: Vec<f64> = mixed.iter().map(|i| styles[*i].weight).collect();
    let (_, moved) = pad::show(ui, height, (&names, &weights));
    let Some(shares) = moved else { return false };
    for (index, share) in mixed.into_iter().zip(shares) {
        // What is typed has two digits, too.
        let share = (share * 100.0).round() / 100.0;
        styles[index].weight = share;
        if let Some(text) = &mut styles[index].text_weight {
            *text = share;
        }
    }
    true
}

/// How much every block is changed, beside what its styles were made for.
fn meter(ui: &mut Ui, report: &BlendReport) {
    let palette = Palette::of(ui);
    let loads: Vec<(&str, f64)> = report
        .blocks
        .iter()
        .map(|b| (b.block.as_str(), if b.reach > 0.0 { b.total / (b.reach * LIMIT) } else { 0.0 }))
        .collect();
    let most = loads.iter().map(|(_, load)| *load).fold(0.0, f64::max);
    let (verdict, colour) = match most {
        0.0 => (text::METER_NONE, palette.quiet),
        load if load > 1.0 => (text::METER_MUCH, palette.warn),
        _ if !report.is_fine() => (text::METER_MUCH, palette.warn),
        _ => (text::METER_FINE, palette.good),
    };
    ui.add(egui::Label::new(RichText::new(verdict).color(colour)).wrap());
    bars(ui, &loads, palette);
    for warning in report.warnings.iter().take(2) {
        ui.add(egui::Label::new(RichText::new(warning.to_string()).small().color(palette.warn)).wrap());
    }
}

fn bars(ui: &mut Ui, loads: &[(&str, f64)], palette: Palette) {
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 36.0), Sense::hover());
    let painter = ui.painter_at(rect);
    let width = rect.width() / loads.len().max(1) as f32;
    // The limit is at two thirds of the height.
    let full = rect.height() - 12.0;
    let limit = rect.bottom() - 12.0 - full / 1.5;
    for (index, (name, load)) in loads.iter().enumerate() {
        let left = rect.left() + width * index as f32 + 2.0;
        let height = (full / 1.5 * *load as f32).clamp(1.0, full);
        let bar = egui::Rect::from_min_max(
            egui::pos2(left, rect.bottom() - 12.0 - height),
            egui::pos2(left + width - 4.0, rect.bottom() - 12.0),
        );
        painter.rect_filled(bar, 2.0, if *load > 1.0 { palette.warn } else { palette.good });
        let at = egui::pos2(bar.center().x, rect.bottom());
        let font = egui::FontId::proportional(9.0);
        painter.text(at, egui::Align2::CENTER_BOTTOM, name, font, palette.quiet);
    }
    painter.hline(rect.x_range(), limit, Stroke::new(1.0, palette.warn.gamma_multiply(0.7)));
    let lines: Vec<String> =
        loads.iter().map(|(name, load)| format!("{name}: {:.0} % of the limit", load * 100.0)).collect();
    response.on_hover_text(lines.join("\n"));
}
