//! What the window shows, read as a screen reader would: no display needed.

use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use scumble_gui::App;

#[test]
fn an_empty_window_says_what_to_do() {
    let mut app = App::default();
    let mut harness = Harness::builder().with_size([800.0, 600.0]).build_ui(|ui| app.draw_ui(ui));
    harness.run();
    harness.get_by_label("Scumble");
    harness.get_by_label_contains("scumble generate");
}
