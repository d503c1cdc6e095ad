//! The application: what is on the screen.

use eframe::egui;

/// The viewer. It does not draw pictures yet; it says how to.
#[derive(Debug, Default)]
pub struct App {}

impl App {
    /// Draws one frame.
    pub fn draw_ui(&mut self, ui: &mut egui::Ui) {
        egui::CentralPanel::default().show(ui, |ui| {
            ui.vertical_centered(|ui| {
                ui.add_space(ui.available_height() * 0.35);
                ui.heading(crate::TITLE);
                ui.label("Train a style from a folder, and draw with it.");
                ui.add_space(12.0);
                ui.label("The command line draws already:");
                ui.monospace("scumble generate \"a lighthouse at dusk\"");
            });
        });
    }
}

impl eframe::App for App {
    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.draw_ui(ui);
    }
}
