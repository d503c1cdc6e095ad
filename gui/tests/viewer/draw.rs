//! Drawing and blending through the widgets, by the labels a screen reader reads.

use crate::support::{Window, sample, settings};
use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::Action,
    state::{Purpose, Settings},
    text,
};

const WEIGHT: &str = "blueprint weight";

#[test]
fn a_slider_changes_the_picture_and_the_history_brings_it_back() {
    let mut window = Window::open(settings(&[("blueprint", 0.8), ("riso", 0.0)]));
    window.settle();
    let first = window.picture();
    assert_eq!(window.state().session.history.len(), 1);
    window.harness.get_by_label_contains("mini (built in)");
    window.harness.get_by_label(text::METER_FINE);
    assert!(window.state().session.model.as_ref().is_some_and(|m| m.native_px == 128));

    // Weights follow the slider; the picture follows the weights, from the same noise.
    window.harness.get_by_label(WEIGHT).set_value_accesskit(0.0);
    window.frame();
    window.settle();
    let style = |window: &Window| window.state().settings.styles.as_ref().expect("styles")[0].clone();
    assert_eq!(style(&window).weight, 0.0);
    let base = window.picture();
    assert_ne!(base, first);
    assert_eq!(window.state().session.history.len(), 1, "a drag leaves one picture");

    // Pictures that were asked for stay.
    window.click(text::GENERATE);
    window.settle();
    assert_eq!(window.picture(), base, "the seed is kept");
    window.harness.get_by_label("Solo riso").click();
    window.frame();
    window.settle();
    window.harness.get_by_label("riso weight").set_value_accesskit(1.5);
    window.frame();
    window.settle();
    assert_ne!(window.picture(), base);
    assert!(window.state().session.history.len() >= 2);
    let oldest = window.state().session.history[0].id;
    window.act(Action::RestoreShot(oldest));
    window.settle();
    assert_eq!(window.picture(), base);
    let styles = window.state().settings.styles.clone().expect("styles");
    assert!(styles.iter().all(|style| !style.solo && !style.on), "the base has no styles: {styles:?}");
}

#[test]
fn a_saved_picture_restores_everything_when_it_is_dropped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut window = Window::open(settings(&[("blueprint", 0.7)]));
    window.settle();
    let first = window.picture();
    let file = folder.path().join("fox.png");
    window.act(Action::SaveTo(file.clone()));
    window.until("the file", |_| file.is_file());

    let mut fresh = Window::open(Settings { prompt: "car".into(), live: false, ..settings(&[]) });
    fresh.drop_file(sample("adapters/blueprint.safetensors"));
    fresh.settle();
    fresh.drop_file(file);
    fresh.settle();
    assert_eq!(fresh.state().settings.prompt, "house, blueprint style");
    assert_eq!(fresh.state().settings.styles.as_ref().map(|s| s[0].weight), Some(0.7));
    assert_eq!(fresh.picture(), first);

    // What cannot be used is said, with a hint, and goes away.
    fresh.drop_file(sample("riso/cat.txt"));
    let broken = folder.path().join("broken.png");
    std::fs::write(&broken, b"not a picture").expect("a file");
    fresh.drop_file(broken);
    fresh.until("both are said", |state| state.session.problems.len() == 2);
    fresh.harness.get_all_by_label(text::WENT_WRONG).next().expect("a message");
    assert!(fresh.state().session.problems.iter().all(|p| p.is_error));
    assert!(fresh.state().session.problems[0].hint.is_some());
    fresh.act(Action::Dismiss(0));
    fresh.act(Action::Dismiss(0));
    assert!(fresh.harness.query_by_label(text::WENT_WRONG).is_none());
}

#[test]
fn cancelling_comparing_exporting_and_errors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut window = Window::open(settings(&[("blueprint", 0.8), ("riso", 0.4)]));
    window.settle();
    window.click(text::COMPARE);
    window.until("the base", |state| state.session.canvas.base.is_some());
    window.harness.get_by_label(text::DIVIDER);
    window.settle();

    let out = folder.path().join("blend.safetensors");
    window.harness.get_by_label(text::EXPORT).click();
    window.frame();
    window.harness.get_by_label(text::EXPORT_TITLE);
    window.act(Action::ExportTo(out.clone()));
    window.settle();
    assert!(out.is_file());
    assert!(window.state().session.problems.iter().any(|p| p.message.contains("exact") && !p.is_error));

    // Many steps, stopped at once: no picture, and the window goes on.
    let before = window.state().session.history.len();
    let mut slow = window.state().settings.clone();
    slow.steps = 150;
    let mut window = Window::open(Settings { live: false, ..slow });
    window.settle();
    window.click(text::GENERATE);
    window.until("a preview", |state| state.session.canvas.preview.is_some());
    window.click(text::CANCEL);
    window.settle();
    assert_eq!(window.state().session.history.len(), 0, "{before} before");
    assert!(window.state().session.canvas.shot.is_none());

    window.act(Action::OpenModel("nowhere/at all".into()));
    window.settle();
    let problems = &window.state().session.problems;
    assert!(problems.iter().any(|p| p.is_error && p.hint.is_some()), "{problems:?}");
    window.harness.get_by_label(text::COPY_MESSAGE);
    window.harness.key_press(eframe::egui::Key::F1);
    window.frame();
    window.harness.get_by_label_contains("draw, or start the training");
    assert!(!window.state().session.has(|p| *p == Purpose::Draw));
}
