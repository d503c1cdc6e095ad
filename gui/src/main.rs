//! The Scumble viewer's window.

// No console window beside it on Windows.
#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

use std::{io::Write as _, process::ExitCode};

use scumble_gui::{
    App,
    arguments::{self, Asked},
};

#[global_allocator]
static HEAP: scumble::heap::Heap = scumble::heap::Heap;

fn main() -> ExitCode {
    let paths = match arguments::read(std::env::args_os().skip(1)) {
        Ok(Asked::Window(paths)) => paths,
        Ok(Asked::Print(text)) => {
            // A pipe that is closed has read enough.
            std::io::stdout().write_all(text.as_bytes()).ok();
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            writeln!(std::io::stderr(), "error: {wrong}\nhint: `scumble-gui --help` says what it takes").ok();
            return ExitCode::from(2);
        }
    };
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
    let opened = |cc: &eframe::CreationContext<'_>| -> Result<Box<dyn eframe::App>, _> {
        let mut app = App::new(cc)?;
        app.dropped(&paths);
        Ok(Box::new(app))
    };
    match eframe::run_native(scumble_gui::TITLE, options, Box::new(opened)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            writeln!(std::io::stderr(), "error: the window cannot be opened: {e}\nhint: it needs a display; `scumble generate` and `scumble train` do without").ok();
            ExitCode::FAILURE
        }
    }
}
