//! Closing, starting again, and what goes wrong on the way.

use crate::support::{Stored, Window, pictures, sample, settings};
use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::Action,
    state::{Run, Settings, Style, Tab, ThemeChoice, TrainForm},
    text,
};

#[test]
fn everything_is_as_it_was_after_a_restart() {
    let mut window = Window::open(Settings {
        theme: ThemeChoice::Dark,
        prompt: "owl, stained-glass style".into(),
        negative: "frame".into(),
        sampler: "euler_a".into(),
        cfg: Some(5.5),
        seed: 11,
        ..settings(&[("blueprint", 0.8), ("riso", 0.4)])
    });
    window.settle();
    window.harness.get_by_label("riso weight").set_value_accesskit(1.25);
    window.frame();
    window.harness.get_by_label(&format!("{} blueprint", text::SPLIT)).click();
    window.frame();
    window.harness.get_by_label(text::NORMALIZE).click();
    window.frame();
    window.settle();
    let (kept, picture) = (window.state().settings.clone(), window.picture());
    assert_eq!(kept.styles.as_ref().map(|s| (s[0].text_weight, s[1].weight)), Some((Some(0.8), 1.25)));
    let mut stored = Stored::default();
    window.save(&mut stored);
    drop(window);

    let settings: Settings = eframe::get_value(&stored, "settings").expect("what was stored");
    assert_eq!(settings, kept);
    let mut window = Window::open(settings);
    window.settle();
    assert_eq!(window.picture(), picture);

    // What an older or newer version has written is read as far as it goes.
    stored.0.insert("settings".into(), "(steps:9,of_tomorrow:true)".into());
    let settings: Settings = eframe::get_value(&stored, "settings").expect("settings");
    assert_eq!(settings, Settings { steps: 9, ..Settings::default() });
}

#[test]
fn files_that_are_gone_or_broken_are_said_and_the_window_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let broken = folder.path().join("broken.safetensors");
    std::fs::write(&broken, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").expect("a file");
    let gone = folder.path().join("gone.safetensors");
    let mut styles = settings(&[("blueprint", 0.8)]);
    styles.styles.get_or_insert_default().push(Style::new(gone, 0.5));
    let mut window = Window::open(styles);
    window.settle();
    let said = |window: &Window, word: &str| {
        let problems = &window.state().session.problems;
        assert!(problems.iter().any(|p| p.is_error && p.message.contains(word)), "{word}: {problems:?}");
    };
    said(&window, "gone.safetensors");
    assert!(window.state().session.canvas.shot.is_none());
    window.click(&format!("{} gone", text::REMOVE));
    window.settle();
    let picture = window.picture();

    window.drop_file(broken.clone());
    window.settle();
    said(&window, "broken.safetensors");
    window.click(&format!("{} broken", text::REMOVE));
    window.settle();
    assert_eq!(window.picture(), picture, "the blend is what it was");

    window.act(Action::ExportTo(folder.path().join("nowhere\0/blend.safetensors")));
    window.act(Action::ScanLibrary(folder.path().join("no-such-folder")));
    window.act(Action::SaveTo(folder.path().to_path_buf()));
    window.settle();
    said(&window, "no-such-folder");
    window.until("the picture's file", |state| {
        state.session.problems.iter().any(|p| p.message.contains("folder,"))
    });
    window.act(Action::OpenModel(folder.path().display().to_string()));
    window.settle();
    let model = window.state().session.problems.last().cloned().expect("a message");
    assert!(model.is_error, "{model:?}");

    // The model that works is still the one, and draws.
    assert_eq!(window.state().settings.model, "mini");
    assert_eq!(window.state().session.model_name, folder.path().display().to_string());
    window.act(Action::Generate);
    window.settle();
    assert!(window.state().session.canvas.shot.is_some());
    let tally = window.state().session.tally;
    assert_eq!(tally.submitted, tally.finished + tally.cancelled + tally.failed, "{tally:?}");
    assert_eq!(tally.strays, 0);
}

#[test]
fn closing_while_a_style_is_trained_asks_and_keeps_what_was_learned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let train = TrainForm { name: "kept".into(), steps: 40, rank: 2, batch: 1, ..TrainForm::default() };
    let mut window = Window::open(Settings { tab: Tab::Train, train, live: false, ..settings(&[]) });
    window.act(Action::TrainFolder(pictures(folder.path())));
    window.settle();
    window.click(text::TRAIN_START);
    window.until("two steps", |state| state.session.training.losses.len() >= 2);
    window.act(Action::CloseRequested);
    window.harness.get_by_label(text::CLOSING_TITLE);
    window.click(text::CLOSING_STOP);
    window.settle();
    assert_eq!(window.state().session.training.run, Run::Paused);
    let settings = window.state().settings.clone();
    drop(window);

    let out = folder.path().join("kept.safetensors");
    assert!(out.is_file(), "the adapter as it was");
    let before = std::fs::read(&out).expect("the adapter");
    let mut window = Window::open(settings);
    window.settle();
    window.click(text::TRAIN_RESUME);
    window.settle();
    assert_eq!(window.state().session.training.run, Run::Done, "{:?}", window.state().session.problems);
    assert_ne!(std::fs::read(&out).expect("the adapter"), before);

    // Then it is blended with another, drawn, saved, exported and restored, all by the names of the controls.
    window.click(text::TAB_DRAW);
    window.act(Action::AddStyles(vec![sample("adapters/riso.safetensors")]));
    window.settle();
    for (style, weight) in [("kept weight", 1.0), ("riso weight", 0.5)] {
        window.harness.get_by_label(style).set_value_accesskit(weight);
        window.frame();
    }
    window.click(text::GENERATE);
    window.settle();
    let picture = window.picture();
    let (file, blend) = (folder.path().join("both.png"), folder.path().join("both.safetensors"));
    window.act(Action::SaveTo(file.clone()));
    window.act(Action::ExportTo(blend.clone()));
    window.settle();
    window.until("the picture's file", |_| file.is_file());
    assert!(blend.is_file());
    window.harness.get_by_label("riso weight").set_value_accesskit(-0.5);
    window.frame();
    window.click(text::GENERATE);
    window.settle();
    assert_ne!(window.picture(), picture);
    window.drop_file(file);
    window.settle();
    assert_eq!(window.picture(), picture);
}
