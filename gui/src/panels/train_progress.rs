//! How a training goes: loss, pace, previews.

use eframe::egui::{RichText, ScrollArea, Ui, vec2};
use egui_plot::{Line, Plot, PlotPoints};

use super::{View, time};
use crate::{
    logic,
    state::{Run, Shot},
    text,
    theme::{self, Palette},
    widgets::thumbnail::Thumbnail,
};

/// The side of a preview.
const SIDE: f32 = 136.0;

pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    theme::section(ui, text::TRAIN_LOSS);
    pace(ui, view);
    if view.state.session.training.losses.is_empty() {
        ui.label(RichText::new(text::TRAIN_NO_LOSS).color(Palette::of(ui).quiet));
    } else {
        plot(ui, &view.state.session.training.losses);
    }
    ui.add_space(8.0);
    theme::section(ui, text::TRAIN_PREVIEWS);
    let samples = view.state.session.training.samples.clone();
    ScrollArea::vertical().auto_shrink([false, false]).show(ui, |ui| {
        // The newest first.
        let newest: Vec<&(u64, Shot)> = samples.iter().rev().collect();
        for pair in newest.chunks(2) {
            ui.horizontal(|ui| pair.iter().for_each(|(step, shot)| sample(ui, view, *step, shot)));
        }
    });
}

fn sample(ui: &mut Ui, view: &mut View<'_>, step: u64, shot: &Shot) {
    ui.allocate_ui(vec2(SIDE, SIDE + 20.0), |ui| {
        ui.vertical(|ui| {
            let name = format!("preview after step {step}");
            let small = Thumbnail { id: shot.id, image: &shot.image, name, side: SIDE, chosen: None };
            small.show(ui, view.textures);
            theme::caption(ui, &format!("step {step}"));
        });
    });
}

fn plot(ui: &mut Ui, losses: &[[f64; 2]]) {
    let accent = Palette::of(ui).accent;
    let plot = Plot::new("loss").height(200.0).show_x(false).include_y(0.0);
    plot.allow_zoom(false).allow_drag(false).allow_scroll(false).show(ui, |plot| {
        plot.line(Line::new(text::TRAIN_LOSS, PlotPoints::from(losses.to_vec())).color(accent));
    });
}

fn pace(ui: &mut Ui, view: &View<'_>) {
    let (settings, training) = (&view.state.settings.train, &view.state.session.training);
    let loss = training
        .losses
        .last()
        .map(|[step, loss]| format!("step {step:.0} of {}, loss {loss:.4}", settings.steps));
    let mut lines = vec![loss.unwrap_or_default()];
    if training.run == Run::Running {
        let left = logic::eta_secs(training, settings.steps).map(|secs| format!("{} left", time(secs)));
        let speed = logic::pictures_per_sec(training, settings.batch).map(|n| format!("{n:.1} pictures/s"));
        lines.push(speed.into_iter().chain(left).collect::<Vec<_>>().join(", "));
    }
    for line in lines.iter().filter(|line| !line.is_empty()) {
        ui.label(RichText::new(line).small().color(Palette::of(ui).quiet));
    }
}
