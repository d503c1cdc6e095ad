//! Grids, the queue, a picture to start from, the second pass; by the labels a screen reader reads.

use crate::support::{Window, sample, settings};
use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::Action,
    state::{Purpose, Settings, Varies},
    text,
};

#[test]
fn a_grid_is_chosen_drawn_as_one_picture_and_brought_back() {
    let mut window = Window::open(settings(&[("blueprint", 0.8), ("riso", 0.4)]));
    window.settle();
    window.click(text::GRID);
    window.harness.get_by_label(text::GRID_TITLE);
    window.harness.get_by_label_contains("25 pictures, about");
    let varies = window.state().session.grid.sides.clone().map(|side| side.varies);
    assert_eq!(varies, [Varies::Weight(0), Varies::Weight(1)], "the first two styles");
    // Values are typed; what is no value is said and cannot be drawn.
    let values = |window: &mut Window, side: usize, typed: &str| {
        let field = window.harness.get_by_label(text::GRID_VALUES[side]);
        field.focus();
        window.frame();
        window.harness.key_press_modifiers(eframe::egui::Modifiers::COMMAND, eframe::egui::Key::A);
        window.frame();
        window.harness.get_by_label(text::GRID_VALUES[side]).type_text(typed);
        window.frame();
    };
    values(&mut window, 0, "0, much");
    window.harness.get_by_label_contains("`much`");
    values(&mut window, 0, "0, 0.8");
    values(&mut window, 1, "0, 1");
    window.harness.get_by_label_contains("4 pictures, about");
    window.click(text::GRID_GO);
    assert!(window.state().session.has(|p| *p == Purpose::Grid));
    window.settle();
    let shot = window.state().session.canvas.shot.clone().expect("the grid");
    assert!(shot.recipe.is_grid() && shot.image.width() > 2 * 192, "{:?}", window.state().session.problems);
    assert_eq!(window.state().session.history.len(), 2);

    // Something else is drawn; the grid comes back with its settings.
    window.act(Action::AddWords("red".into()));
    window.settle();
    assert_ne!(window.state().settings.prompt, shot.recipe.prompt);
    window.harness.get_by_label_contains(text::GRID_OF).click();
    window.frame();
    assert_eq!(window.state().settings.prompt, shot.recipe.prompt);
    assert_eq!(window.state().session.canvas.shot.as_ref().map(|s| s.id), Some(shot.id));
}

#[test]
fn jobs_queue_visibly_and_are_cancelled_one_by_one() {
    let mut window = Window::open(Settings { live: false, steps: 150, ..settings(&[("riso", 0.4)]) });
    window.settle();
    window.click(text::GENERATE);
    window.click(text::GENERATE);
    window.click(text::GENERATE);
    let drawing = |window: &Window| {
        window.state().session.jobs.values().filter(|job| job.purpose == Purpose::Draw).count()
    };
    assert_eq!(drawing(&window), 3, "pictures that were asked for wait for one another");
    window.until("the first runs", |state| state.session.running.is_some());
    window.harness.get_by_label_contains(text::QUEUE).click();
    window.frame();
    let cancels = window.harness.get_all_by_label_contains("Cancel picture: house").count();
    assert_eq!(cancels, 3);
    // The last one: it never runs.
    window.harness.get_all_by_label_contains("Cancel picture: house").last().expect("a job").click();
    window.until("one less", |state| state.session.jobs.len() == 2);
    let running = window.state().session.running.expect("one runs");
    window.act(Action::CancelJob(running));
    window.until("the next runs", |state| state.session.running.is_some_and(|job| job != running));
    window.click(text::CANCEL);
    window.settle();
    assert_eq!(window.state().session.history.len(), 0);
    assert!(window.harness.query_by_label_contains(text::QUEUE).is_none());
}

#[test]
fn a_dropped_picture_is_drawn_over_and_the_history_keeps_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut window = Window::open(Settings { strength: 0.5, ..settings(&[("riso", 0.4)]) });
    window.settle();
    let noise = window.picture();
    window.drop_file(sample("riso/fox.jpg"));
    window.until("the start", |state| state.session.start.is_some());
    window.settle();
    let over = window.picture();
    assert_ne!(over, noise);
    window.harness.get_by_label("Start from fox.jpg");
    // Nothing is drawn anew at 0: the picture that was dropped, at the size that was asked for.
    window.harness.get_by_label(text::STRENGTH).set_value_accesskit(0.0);
    window.frame();
    window.settle();
    window.click(text::GENERATE);
    window.settle();
    let kept = window.state().session.canvas.shot.clone().expect("a picture");
    assert_eq!(kept.recipe.denoising_strength, Some(0.0));
    let read = image::open(sample("riso/fox.jpg")).expect("the sample").to_rgb8();
    let small = image::imageops::thumbnail(&read, 64, 64);
    let far: u64 =
        small.as_raw().iter().zip(kept.image.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(far / (64 * 64 * 3) < 30, "{} of 255 off on average", far / (64 * 64 * 3));

    // The file of the result names what it started from, so that it can be repeated in another session.
    let file = folder.path().join("over.png");
    window.act(Action::SaveTo(file.clone()));
    window.until("the file", |_| file.is_file());
    window.click(text::START_REMOVE);
    window.settle();
    assert_eq!(window.picture(), noise);
    let restored =
        window.state().session.history.iter().find(|shot| shot.start.is_some()).map(|shot| shot.id);
    window.act(Action::RestoreShot(restored.expect("a picture with a start")));
    assert!(window.state().session.start.is_some());

    let mut other = Window::open(Settings { live: false, ..settings(&[("riso", 0.4)]) });
    other.settle();
    other.drop_file(file);
    other.until("drawn again", |state| state.session.canvas.shot.is_some() && state.session.jobs.is_empty());
    assert_eq!(other.picture(), kept.image.as_raw().clone());
    // It can itself be started from, in one click; and so can what is in the middle.
    other.click("Start from over.png");
    other.until("the start", |s| s.session.start.as_ref().is_some_and(|start| start.name == "over.png"));
    other.click(text::START_THIS);
    assert!(other.state().session.start.as_ref().is_some_and(|start| start.source.is_none()));
}

#[test]
fn a_second_pass_is_folded_out_drawn_and_restored() {
    let mut window = Window::open(Settings { live: false, ..settings(&[("riso", 0.4)]) });
    window.settle();
    window.click(text::GENERATE);
    window.settle();
    window.click(text::HIRES);
    window.frame();
    window.click(text::HIRES_ON);
    window.harness.get_by_label_contains("64×64, then 96×96");
    window.click(text::GENERATE);
    window.settle();
    let shot = window.state().session.canvas.shot.clone().expect("a picture");
    assert_eq!(shot.image.dimensions(), (96, 96), "{:?}", window.state().session.problems);
    assert_eq!(shot.recipe.other("Hires upscale"), Some("1.5"));
    window.click(text::HIRES_ON);
    assert!(!window.state().settings.hires.on);
    window.act(Action::RestoreShot(shot.id));
    assert!(window.state().settings.hires.on);
    window.click(text::GENERATE);
    window.settle();
    assert_eq!(window.picture(), shot.image.as_raw().clone(), "the same again");
}
