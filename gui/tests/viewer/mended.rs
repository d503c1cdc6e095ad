//! What strangers stumbled over.

use std::process::Command;

use crate::support::{Window, pictures, sample_styles, settings};
use eframe::egui::{Event, Key, Modifiers, PointerButton, Pos2, accesskit::Role, vec2};
use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::Action,
    state::{Purpose, Settings, Tab},
    text,
};

/// Types a path into its field and presses Enter.
fn type_path(window: &mut Window, path: &str) {
    window.until("the field", |state| state.session.typing.is_some());
    window.harness.get_by_label(text::PATH).focus();
    window.frame();
    window.harness.key_press_modifiers(Modifiers::COMMAND, Key::A);
    window.frame();
    window.harness.get_by_label(text::PATH).type_text(path);
    window.frame();
    window.press(Key::Enter);
    assert!(window.state().session.typing.is_none(), "it stays open");
}

#[test]
fn without_dialogs_paths_are_typed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = pictures(folder.path());
    let mut window = Window::open(settings(&[("blueprint", 0.8)]));
    window.harness.state_mut().as_mut().expect("started").without_dialogs();
    window.settle();
    window.click(text::SAVE);
    let file = folder.path().join("a picture");
    type_path(&mut window, &format!(" \"{}\" ", file.display()));
    window.until("the file", |_| file.with_extension("png").is_file());
    let styles = |window: &Window| window.state().settings.styles.as_ref().map(Vec::len);
    let before = styles(&window);
    window.click(text::ADD_STYLE);
    type_path(&mut window, &file.with_extension("png").to_string_lossy());
    let refused = |p: &scumble_gui::state::Problem| p.message.ends_with("is no adapter");
    assert!(window.state().session.problems.iter().any(refused));
    assert_eq!(styles(&window), before, "a picture is no style");
    window.click(text::DISMISS);
    window.click(text::ADD_STYLE);
    type_path(&mut window, "nowhere.safetensors");
    window.settle();
    window.click("Remove nowhere");
    window.click(text::DISMISS);
    window.click(text::START_CHOOSE);
    type_path(&mut window, &images.join("owl.jpg").display().to_string());
    window.until("the start", |state| state.session.start.is_some());
    // Esc closes the field, and that is all.
    window.click(text::SAVE);
    window.until("the field", |state| state.session.typing.is_some());
    window.harness.get_by_label(text::PATH_SAVE);
    window.press(Key::Escape);
    assert!(window.state().session.typing.is_none());
    window.click(text::TAB_TRAIN);
    window.click(text::TRAIN_CHOOSE);
    type_path(&mut window, &images.display().to_string());
    window.settle();
    assert_eq!(window.state().session.training.pictures.len(), 4);
}

#[test]
fn help_and_version_are_printed_and_what_is_unknown_is_refused() {
    let run = |argument: &str| {
        let mut viewer = Command::new(env!("CARGO_BIN_EXE_scumble-gui"));
        let out = viewer.arg(argument).env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").output();
        let out = out.expect("the viewer starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    for help in ["--help", "-h"] {
        let (code, out, _) = run(help);
        assert!(code == Some(0) && out.contains("Usage: scumble-gui"), "{code:?} {out}");
    }
    let (code, out, _) = run("--version");
    assert_eq!((code, out.trim()), (Some(0), concat!("scumble-gui ", env!("CARGO_PKG_VERSION"))));
    for wrong in ["--hepl", "no-such-file.png"] {
        let (code, _, said) = run(wrong);
        assert!(code == Some(2) && said.contains(wrong) && said.contains("--help"), "{code:?} {said}");
    }
}

fn points(window: &Window) -> Vec<(f64, f64)> {
    let styles = window.state().settings.styles.as_ref().expect("styles");
    styles[0].steps.clone().expect("a curve")
}

fn double_click(window: &mut Window, pos: Pos2) {
    window.harness.hover_at(pos);
    window.frame();
    for pressed in [true, false, true, false] {
        let (button, modifiers) = (PointerButton::Primary, Modifiers::NONE);
        window.harness.input_mut().events.push(Event::PointerButton { pos, button, pressed, modifiers });
    }
    window.frame();
}

#[test]
fn a_double_click_adds_one_point_to_a_curve_and_the_hint_says_so() {
    let mut window = Window::open(Settings { live: false, ..settings(&[("blueprint", 0.8)]) });
    window.settle();
    window.click("Steps blueprint");
    window.click("blueprint curve: Fade in");
    window.harness.get_by_label(text::STEPS_HINT);
    let ground = window.harness.get_by_label("blueprint curve").rect();
    double_click(&mut window, ground.lerp_inside(vec2(0.4, 0.3)));
    let three = points(&window);
    assert_eq!(three.len(), 3, "{three:?}");
    assert!(three[1].0 > 20.0 && three[1].0 < 60.0 && three[1].1 > 0.5, "{three:?}");
    // A single click adds nothing.
    let place = ground.lerp_inside(vec2(0.6, 0.8));
    window.harness.drag_at(place);
    window.frame();
    window.harness.drop_at(place);
    window.frame();
    assert_eq!(points(&window), three);
    // Keys: one between this and the next, and away with it.
    window.harness.get_by_label("blueprint curve, point 1, 0 % of the steps").focus();
    window.frame();
    window.press(Key::Insert);
    assert_eq!(points(&window).len(), 4);
    window.harness.get_by_label_contains("blueprint curve, point 2").focus();
    window.frame();
    window.press(Key::Delete);
    assert_eq!(points(&window), three);
    window.harness.get_by_label_contains("blueprint curve, point 2").click_secondary();
    window.frame();
    assert_eq!(points(&window), [(0.0, 0.0), (100.0, 1.0)]);
    // The last two stay.
    window.harness.get_by_label_contains("blueprint curve, point 2").click_secondary();
    window.frame();
    assert_eq!(points(&window).len(), 2);
}

#[test]
fn esc_closes_the_queue_and_a_dropped_picture_gives_its_seed_back() {
    let quiet = Settings { live: false, steps: 150, keep_seed: false, seed: 7, ..settings(&[("riso", 0.4)]) };
    let mut window = Window::open(quiet);
    window.settle();
    let seed = |window: &Window| window.state().settings.seed;
    window.click(text::GENERATE);
    assert_eq!(seed(&window), 7);
    window.click(text::GENERATE);
    let second = seed(&window);
    window.click(text::GENERATE);
    let third = seed(&window);
    assert!(second != 7 && third != second);
    window.until("one runs", |state| state.session.running.is_some());
    window.harness.get_by_label_contains(text::QUEUE).click();
    window.frame();
    assert_eq!(window.harness.get_all_by_label_contains("Cancel picture: house").count(), 3);
    window.press(Key::Escape);
    assert_eq!(window.state().session.jobs.len(), 3, "Esc closes the list alone");
    assert_eq!(window.harness.query_all_by_label_contains("Cancel picture: house").count(), 0);

    // The second is dropped before the third.
    window.harness.get_by_label_contains(text::QUEUE).click();
    window.frame();
    let title = |seed: u64| format!("{} picture: house, blueprint style, seed {seed}", text::CANCEL);
    window.harness.get_by_label(&title(second)).click();
    window.until("two are left", |state| state.session.jobs.len() == 2);
    assert_eq!(seed(&window), third);
    window.harness.get_by_label_contains(text::QUEUE).click();
    window.frame();
    window.harness.get_by_label(&title(third)).click();
    window.until("one is left", |state| state.session.jobs.len() == 1);
    assert_eq!(seed(&window), 7);
    window.press(Key::Escape);
    window.press(Key::Escape);
    window.settle();
    assert!(!window.state().session.has(|p| *p == Purpose::Draw));
    window.click(text::GENERATE);
    assert_eq!(seed(&window), 7, "it was never drawn");
    window.click(text::CANCEL);
    window.settle();
}

#[test]
fn everything_on_the_right_is_to_be_seen_and_the_theme_says_what_it_is() {
    let styles = Some(sample_styles());
    let mut window = Window::open(Settings { styles, ..settings(&[]) });
    window.settle();
    let rect = |label: &str| window.harness.get_by_label(label).rect();
    let cards = rect("Remove riso").bottom().max(rect("riso weight").bottom());
    let (pad, meter, export) = (
        window.harness.get_by_role_and_label(Role::Group, text::PAD).rect(),
        rect(text::METER),
        rect(text::EXPORT),
    );
    assert!(cards < pad.top(), "cards to {cards}, pad from {}", pad.top());
    assert!(pad.height() > 80.0 && pad.bottom() <= meter.top() && meter.bottom() < export.top());
    assert!(export.bottom() < 800.0);
    let theme: Vec<_> = window.harness.get_all_by_label(text::THEME).collect();
    assert_eq!(theme.len(), 2, "the list, and what stands beside it");
    // Training says what its sizes are.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = pictures(folder.path());
    let mut window = Window::open(Settings { tab: Tab::Train, live: false, ..settings(&[]) });
    window.act(Action::TrainFolder(images));
    window.settle();
    window.harness.get_by_label_contains("4 pictures, trained at 128x128");
}
