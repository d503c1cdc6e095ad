//! Training through the widgets, and what becomes of it.

use crate::support::{Window, pictures, settings};
use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::Action,
    state::{Run, Settings, Tab, TrainForm},
    text,
};

#[test]
fn a_style_is_trained_paused_resumed_and_becomes_a_slider() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = pictures(folder.path());
    let train = TrainForm {
        name: "quick".into(),
        steps: 8,
        rank: 2,
        batch: 1,
        preview_every: 6,
        ..TrainForm::default()
    };
    let mut window = Window::open(Settings { tab: Tab::Train, train, live: false, ..settings(&[]) });
    window.harness.get_by_label(text::TRAIN_CHOOSE);
    window.act(Action::TrainFolder(images.clone()));
    window.settle();
    assert_eq!(window.state().session.training.pictures.len(), 4);
    window.harness.get_by_label(text::TRAIN_NOTHING_WRONG);

    // A caption is edited in place.
    let field = window.harness.get_by_label("Caption of car.jpg");
    field.focus();
    field.type_text("red ");
    window.frame();
    window.harness.get_by_label("Caption of cup.jpg").focus();
    window.frame();
    let read = || std::fs::read_to_string(images.join("car.txt")).unwrap_or_default();
    window.until("the caption's file", |_| read().contains("red"));

    window.click(text::TRAIN_START);
    window.until("two steps", |state| state.session.training.losses.len() >= 2);
    window.click(text::TRAIN_PAUSE);
    window.settle();
    assert_eq!(window.state().session.training.run, Run::Paused, "{:?}", window.state().session.problems);

    // Closing and opening again finds the run that was stopped.
    let settings = window.state().settings.clone();
    drop(window);
    let mut window = Window::open(settings);
    window.settle();
    assert_eq!(window.state().session.training.run, Run::Paused);
    window.click(text::TRAIN_RESUME);
    window.until("a step", |state| !state.session.training.losses.is_empty());
    window.act(Action::CloseRequested);
    if window.state().session.is_training() {
        window.harness.get_by_label(text::CLOSING_TITLE);
        window.click(text::CLOSING_STAY);
    }
    window.settle();
    assert_eq!(window.state().session.training.run, Run::Done, "{:?}", window.state().session.problems);
    assert!(!window.state().session.training.samples.is_empty(), "no preview");
    let styles = window.state().settings.styles.clone().unwrap_or_default();
    assert_eq!(styles.iter().map(|style| style.name()).collect::<Vec<_>>(), ["quick"]);
    window.click(text::TAB_DRAW);
    window.harness.get_by_label("quick weight");
}

#[test]
fn a_folder_without_pictures_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut window = Window::open(Settings { tab: Tab::Train, live: false, ..settings(&[]) });
    window.act(Action::TrainFolder(folder.path().to_path_buf()));
    window.settle();
    let problems = &window.state().session.problems;
    assert!(
        problems.iter().any(|p| p.is_error && p.message.contains("empty") && p.hint.is_some()),
        "{problems:?}"
    );
}
