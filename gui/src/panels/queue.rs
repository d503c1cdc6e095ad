//! What runs and what waits, each with a way to stop it.

use eframe::egui::{self, RichText, Ui};

use super::View;
use crate::{logic::Action, text, theme::Palette, widgets::sign};

/// A button that says how many wait; a click lists them.
pub fn draw(ui: &mut Ui, view: &mut View<'_>) {
    let session = &view.state.session;
    if session.jobs.is_empty() {
        return;
    }
    let waiting = session.jobs.keys().filter(|id| session.running != Some(**id)).count();
    let title = match waiting {
        0 => text::QUEUE.to_owned(),
        n => format!("{}: {n} waiting", text::QUEUE),
    };
    // In the order they came, which is the order they are done in.
    let jobs: Vec<_> = session.jobs.iter().map(|(id, job)| (*id, job.title.clone())).collect();
    let running = session.running;
    ui.menu_button(RichText::new(title).small(), |ui| {
        ui.set_min_width(320.0);
        for (id, title) in jobs {
            ui.horizontal(|ui| {
                if sign(ui, "×", format!("{} {title}", text::CANCEL)).clicked() {
                    view.act(Action::CancelJob(id));
                }
                let state = if running == Some(id) { text::QUEUE_RUNS } else { text::QUEUE_WAITS };
                ui.label(RichText::new(state).small().color(Palette::of(ui).quiet));
                ui.add(egui::Label::new(title).truncate());
            });
        }
    });
}
