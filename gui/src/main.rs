//! The Scumble viewer's window.

// No console window beside it on Windows.
#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

use scumble_gui::App;

fn main() -> eframe::Result {
    scumble::device::prepare_process();
    let viewport = eframe::egui::ViewportBuilder::default()
        .with_title(scumble_gui::TITLE)
        .with_app_id("scumble")
        .with_inner_size([1100.0, 720.0])
        .with_min_inner_size([480.0, 320.0]);
    let options = eframe::NativeOptions { viewport, ..Default::default() };
    eframe::run_native(scumble_gui::TITLE, options, Box::new(|_| Ok(Box::new(App::default()))))
}
