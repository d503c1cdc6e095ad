//! What is there again after a restart: the history, the picture to start from, a training that was stopped.

use std::path::{Path, PathBuf};

use crate::support::{Window, pictures, sample, settings};
use eframe::egui::Key;
use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::Action,
    state::{Run, Settings, Tab, TrainForm},
    text,
};

/// The pictures of the history's folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("history")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn seeds(window: &Window) -> Vec<u64> {
    window.state().session.history.iter().map(|shot| shot.recipe.seed.expect("a seed")).collect()
}

#[test]
fn history_and_start_are_there_again_and_what_is_taken_out_is_gone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let quiet = Settings { live: false, keep_seed: false, seed: 5, ..settings(&[("riso", 0.4)]) };
    let mut window = Window::open_within(quiet, folder.path());
    window.settle();
    window.click(text::GENERATE);
    window.settle();
    let noise = window.picture();
    let dropped = folder.path().join("fox.jpg");
    std::fs::copy(sample("riso/fox.jpg"), &dropped).expect("a copy");
    window.drop_file(dropped.clone());
    window.until("the start", |state| state.session.start.is_some());
    window.set(text::STRENGTH, 0.5);
    window.click(text::GENERATE);
    window.settle();
    let over = window.picture();
    // Over that, another one.
    window.click(text::START_THIS);
    window.until("it is kept", |state| {
        state.session.start.as_ref().is_some_and(|start| start.name.starts_with(text::START_DRAWN))
    });
    window.click(text::GENERATE);
    window.settle();
    let twice = window.picture();
    let drawn = seeds(&window);
    assert_eq!((drawn.len(), drawn[0]), (3, 5));
    let remembered = window.close();
    assert_eq!(files(folder.path()).len(), 3);
    assert!(files(folder.path()).iter().all(|file| {
        scumble::pipeline::infotext::read_text(file)
            .expect("a picture")
            .is_some_and(|text| text.contains("house"))
    }));

    // Neither the file that was dropped nor every picture is there, or whole.
    std::fs::remove_file(&dropped).expect("to be removed");
    std::fs::write(folder.path().join("history/0000000000001-1-00000001.png"), b"cut").expect("a file");
    let mut window = Window::open_within(remembered.clone(), folder.path());
    window.until("the history", |state| state.session.history.len() == 3);
    window.until("the start", |state| state.session.start.is_some());
    window.until("what is broken is said", |state| {
        state
            .session
            .problems
            .iter()
            .any(|p| !p.is_error && p.message.starts_with("1 picture of the history"))
    });
    assert_eq!(seeds(&window), drawn);
    assert_eq!(window.state().settings.strength, 0.5);
    window.harness.get_by_label_contains(&format!("{} {}", text::START, text::START_DRAWN));
    window.settle();
    assert_eq!(window.state().session.history.len(), 3, "nothing is drawn at a start without live pictures");

    // Each comes back with what it started from, and draws the same again.
    for (index, picture) in [(0, noise), (1, over), (2, twice)] {
        let id = window.state().session.history[index].id;
        window.act(Action::RestoreShot(id));
        window.until("its start", |state| state.session.start.is_some() == (index > 0));
        assert_eq!(window.picture(), picture);
        window.harness.get_by_label(text::LOCK_SEED).click();
        window.frame();
        window.click(text::GENERATE);
        window.settle();
        assert_eq!(window.picture(), picture, "picture {index} again: {:?}", window.state().session.problems);
        window.harness.get_by_label(text::LOCK_SEED).click();
        window.frame();
    }

    // The oldest is taken out, with its file.
    let oldest = files(folder.path())[1].clone();
    let name = format!("house, blueprint style, seed {}", drawn[0]);
    window.harness.get_all_by_label(&name).last().expect("the oldest").click();
    window.until("it is in the middle", |state| {
        state.session.canvas.shot.as_ref().is_some_and(|shot| shot.file.as_ref() == Some(&oldest))
    });
    window.press(Key::Delete);
    window.until("its file is gone", |_| !oldest.exists());
    assert!(window.state().session.history.iter().all(|shot| shot.file.as_ref() != Some(&oldest)));
    window
        .harness
        .get_all_by_label_contains("house, blueprint style, seed")
        .next()
        .expect("one")
        .click_secondary();
    window.frame();
    let before = files(folder.path()).len();
    window.click(text::HISTORY_REMOVE);
    window.until("another one", |_| files(folder.path()).len() < before);
    assert!(
        window.state().session.problems.iter().all(|p| !p.is_error),
        "{:?}",
        window.state().session.problems
    );
}

#[test]
fn what_was_looked_at_stays_and_a_drag_leaves_one_picture() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut window = Window::open_within(settings(&[("blueprint", 0.8)]), folder.path());
    window.settle();
    let first = window.picture();
    // Somebody looks at it.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    for weight in [0.6, 0.4, 0.2] {
        window.set("blueprint weight", weight);
        window.settle();
    }
    let last = window.picture();
    let history = |window: &Window| -> Vec<Vec<u8>> {
        window.state().session.history.iter().map(|shot| shot.image.as_raw().clone()).collect()
    };
    assert_eq!(history(&window), [first.clone(), last.clone()]);
    // The same once more is the same; one that was asked for is not replaced.
    window.click(text::GENERATE);
    window.settle();
    assert_eq!(history(&window), [first.clone(), last.clone()]);
    window.set("blueprint weight", 1.0);
    window.settle();
    assert_eq!(history(&window).len(), 3);
    let all = history(&window);
    let settings = window.close();

    // The first picture of the next run is the last one of this: it is in the history once.
    let mut window = Window::open_within(settings, folder.path());
    window.settle();
    window.until("the history", |state| state.session.history.len() >= 3);
    window.settle();
    assert_eq!(history(&window), all);
}

#[test]
fn a_training_that_was_stopped_shows_how_it_went() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let train = TrainForm {
        name: "quick".into(),
        steps: 60,
        rank: 2,
        batch: 1,
        preview_every: 2,
        ..TrainForm::default()
    };
    let quiet = Settings { tab: Tab::Train, train, live: false, ..settings(&[]) };
    let kept = folder.path().join("kept");
    let mut window = Window::open_within(quiet, &kept);
    window.act(Action::TrainFolder(pictures(folder.path())));
    window.settle();
    window.click(text::TRAIN_START);
    window.until("two previews", |state| state.session.training.samples.len() >= 2);
    window.click(text::TRAIN_PAUSE);
    window.settle();
    let before = window.state().session.training.losses.clone();
    let shown = window.state().session.training.samples.len();
    let mut settings = window.close();

    // While the first picture is still drawn, the tab knows what there is, and it can go on.
    (settings.live, settings.steps) = (true, 100);
    let mut window = Window::open_within(settings, &kept);
    window.frame();
    assert_eq!(window.state().session.training.run, Run::Paused);
    assert!(window.harness.query_by_label(text::TRAIN_EMPTY).is_none());
    window.until("how it went", |state| !state.session.training.losses.is_empty());
    assert_eq!(window.state().session.training.losses, before);
    assert_eq!(window.state().session.training.samples.len(), shown);
    window.harness.get_by_label("preview after step 2");
    window.click(text::TRAIN_RESUME);
    assert_eq!(window.state().session.training.run, Run::Running);
    window.until("a step more", |state| state.session.training.losses.len() > before.len());
    let losses = window.state().session.training.losses.clone();
    assert_eq!(losses[..before.len()], before[..]);
    assert!(losses.windows(2).all(|pair| pair[0][0] < pair[1][0]), "{losses:?}");
    window.click(text::TRAIN_PAUSE);
    window.settle();
}
