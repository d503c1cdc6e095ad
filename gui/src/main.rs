//! The Scumble viewer's window.

// No console window beside it on Windows.
#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

use scumble_gui::App;

#[global_allocator]
static HEAP: scumble::heap::Heap = scumble::heap::Heap;

fn main() -> eframe::Result {
    scumble::device::prepare_process();
    let reports = scumble_gui::crash::folder();
    reports.into_iter().for_each(scumble_gui::crash::install);
    let viewport = eframe::egui::ViewportBuilder::default()
        .with_title(scumble_gui::TITLE)
        .with_app_id(scumble_gui::APP_ID)
        .with_inner_size([1280.0, 800.0])
        .with_min_inner_size([980.0, 620.0])
        .with_drag_and_drop(true);
    let options = eframe::NativeOptions { viewport, ..Default::default() };
    eframe::run_native(scumble_gui::TITLE, options, Box::new(|cc| Ok(Box::new(App::new(cc)?))))
}
