//! What becomes of a mistake of the program's own. A program by itself: what panics here is nobody else's.

#[path = "../viewer/support.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use egui_kittest::kittest::Queryable as _;
use scumble_gui::{crash, state::Settings, text};
use support::{Window, settings};

#[test]
fn a_panic_on_any_thread_is_reported_without_anything_of_the_users_and_the_window_lives_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let reports = folder.path().join("crashes");
    crash::install(reports.clone());
    let mut window = Window::open(Settings { live: false, ..settings(&[("blueprint", 0.5)]) });
    window.settle();
    let home = std::env::home_dir().expect("a home");
    let picture = home.join("holidays 2019").join("fox.png");
    for number in 0..2 {
        let said = format!("cannot draw {} for `a secret prompt`, {number}", picture.display());
        let thread = std::thread::Builder::new().name("made-to-fail".into());
        let failed = thread.spawn(move || assert!(said.is_empty(), "{said}")).expect("a thread");
        failed.join().expect_err("a panic");
    }
    window.frame();
    window.harness.get_by_label(text::CRASHED);
    let left = crash::left(&reports);
    assert_eq!(left.len(), 2, "{left:?}");
    for report in &left {
        for needed in ["Scumble 0.", std::env::consts::OS, "with hub", "thread: made-to-fail", "main.rs:"] {
            assert!(report.text.contains(needed), "no {needed} in {}", report.text);
        }
        for secret in ["holidays", "fox", "secret"] {
            assert!(!report.text.contains(secret), "{}", report.text);
        }
        let home = home.to_string_lossy();
        assert!(home.len() < 2 || !report.text.contains(&*home), "{}", report.text);
    }

    // The window still draws; reports go one by one.
    window.click(text::GENERATE);
    window.settle();
    assert!(window.state().session.canvas.shot.is_some());
    window.click(text::CRASHED_REMOVE);
    window.until("one is gone", |_| crash::left(&reports).len() == 1);
    window.harness.get_by_label(text::CRASHED);
    window.click(text::CRASHED_LATER);
    assert!(window.harness.query_by_label(text::CRASHED).is_none());
    assert_eq!(crash::left(&reports).len(), 1, "it is there at the next start");
}
