//! The built viewer in a real window, under a display without a screen: what is drawn on it with mouse and keys must be
//! what the same code draws in memory with the same ones.

mod display;
#[path = "../viewer/support.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::{
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use display::Display;
use eframe::egui::{Pos2, Rect, Vec2, accesskit::Role, pos2, vec2};
use egui_kittest::kittest::Queryable as _;
use image::RgbImage;
use scumble_gui::{state::Settings, text};
use support::{MARGIN, Window, sample_styles};

/// Long enough for the slowest machine.
const PATIENCE: Duration = Duration::from_secs(240);
const WEIGHT: &str = "blueprint weight";
/// From the harness's places to the window's.
const OFF: Vec2 = vec2(-MARGIN, -MARGIN);

/// The window on the display.
struct Viewer {
    display: Display,
    program: Child,
}

impl Viewer {
    fn until(&mut self, what: &str, so: impl Fn(&RgbImage) -> bool) -> RgbImage {
        let begun = Instant::now();
        loop {
            let pixels = self.display.pixels();
            if so(&pixels) {
                return pixels;
            }
            assert!(self.program.try_wait().expect("its state").is_none(), "it ended before: {what}");
            if begun.elapsed() > PATIENCE {
                let kept = std::env::temp_dir().join("scumble-window.png");
                pixels.save(&kept).ok();
                panic!("never: {what}; the screen is in {}", kept.display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn keys(&self, keys: &str) {
        self.display.tool(&["key", keys]).expect("xdotool presses keys");
    }

    fn mouse(&self, at: Pos2, then: &[&str]) {
        let (x, y) = (at.x.round().to_string(), at.y.round().to_string());
        self.display.tool(&[&["mousemove", &x, &y], then].concat()).expect("xdotool moves the mouse");
        // A frame or two, so that a drag is seen to begin.
        std::thread::sleep(Duration::from_millis(200));
    }

    fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.program.try_wait().expect("its state") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.program.kill().ok();
        self.program.wait().ok();
    }
}

#[test]
fn a_window_draws_follows_the_mouse_and_the_keys_and_closes() {
    let Some(display) = Display::start(1280, 800) else { return };
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut program = display.command(env!("CARGO_BIN_EXE_scumble-gui"), home.path());
    let program = program.spawn().expect("the viewer starts");
    let mut viewer = Viewer { display, program };

    // The same in memory: what it must look like, and where things are, but for the harness's own margin.
    let mut twin = Window::open(Settings { styles: Some(sample_styles()), ..Settings::default() });
    twin.settle();
    let canvas = twin.harness.get_by_label_contains(&format!("{}: ", text::PICTURE)).rect().translate(OFF);
    let slider = twin.harness.get_by_role_and_label(Role::Slider, WEIGHT).rect();
    let steps = twin.harness.get_by_role_and_label(Role::SpinButton, text::STEPS).rect().center() + OFF;

    let first = twin.shot();
    viewer.until("the first picture", |pixels| shows(pixels, canvas, &first));
    let window = viewer.display.tool(&["search", "--onlyvisible", "--name", scumble_gui::TITLE]);
    let window = window.and_then(|ids| ids.lines().next().map(str::to_owned)).expect("a window");
    viewer.display.tool(&["windowfocus", &window]).expect("the keyboard goes to it");

    // A slider is dragged, and the picture follows.
    let at = |share: f32| pos2((slider.left() + slider.width() * share).round(), slider.center().y.round());
    let (from, to) = (at(0.3), at(0.1));
    twin.harness.drag_at(from);
    twin.frame();
    twin.harness.hover_at(to);
    twin.frame();
    twin.harness.drop_at(to);
    twin.frame();
    twin.settle();
    let second = twin.shot();
    let weight = twin.state().settings.styles.as_ref().expect("styles")[0].weight;
    assert!(weight < 0.5, "the drag has moved it to {weight}");
    viewer.mouse(from + OFF, &["mousedown", "1"]);
    viewer.mouse(to + OFF, &["mouseup", "1"]);
    let before = viewer.until("the picture of the new weight", |pixels| shows(pixels, canvas, &second));
    assert!(!shows(&before, canvas, &first), "it is the same picture");

    // F1 opens the keys, Esc closes them.
    viewer.keys("F1");
    viewer.until("the list of keys", |pixels| difference(pixels, &before, canvas) > 4.0);
    viewer.keys("Escape");
    viewer.until("the picture again", |pixels| shows(pixels, canvas, &second));

    // Esc stops what is drawn: the picture from before stays.
    viewer.mouse(steps, &["click", "1"]);
    viewer.display.tool(&["type", "--delay", "60", "150"]).expect("xdotool types");
    viewer.keys("Return");
    viewer.until("a preview", |pixels| !shows(pixels, canvas, &second));
    viewer.keys("Escape");
    viewer.until("the picture from before", |pixels| shows(pixels, canvas, &second));
    std::thread::sleep(Duration::from_secs(1));
    assert!(shows(&viewer.display.pixels(), canvas, &second), "it goes on");

    viewer.keys("ctrl+q");
    assert!(viewer.end().success());
    let kept = std::fs::read_to_string(home.path().join("data/scumble/app.ron")).expect("what is remembered");
    assert!(kept.contains("steps:150"), "{kept}");
}

/// True if a picture fills its place on the screen.
fn shows(pixels: &RgbImage, place: Rect, picture: &RgbImage) -> bool {
    deviation(pixels, place, picture) < 5.0
}

/// How far the screen is from a picture in its place: the mean over all colours, 0 to 255.
fn deviation(pixels: &RgbImage, place: Rect, picture: &RgbImage) -> f64 {
    // The middle of a pixel of the picture is that pixel's colour however much it is enlarged. Corners are round.
    let scale = place.width() / picture.width() as f32;
    let (width, height) = (picture.width() - 4, picture.height() - 4);
    let inner =
        picture.enumerate_pixels().filter(|(x, y, _)| (4..width).contains(x) && (4..height).contains(y));
    let (mut sum, mut count) = (0.0, 0.0);
    for (x, y, colour) in inner {
        let at = place.min + vec2(x as f32 + 0.5, y as f32 + 0.5) * scale;
        let shown = pixels.get_pixel(at.x as u32, at.y as u32);
        sum += shown.0.iter().zip(colour.0).map(|(a, b)| f64::from(a.abs_diff(b))).sum::<f64>();
        count += 3.0;
    }
    sum / count
}

/// How far two screens differ in a place.
fn difference(a: &RgbImage, b: &RgbImage, place: Rect) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for y in place.top() as u32..place.bottom() as u32 {
        for x in place.left() as u32..place.right() as u32 {
            let (a, b) = (a.get_pixel(x, y).0, b.get_pixel(x, y).0);
            sum += a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(b))).sum::<f64>();
            count += 3.0;
        }
    }
    sum / count
}
