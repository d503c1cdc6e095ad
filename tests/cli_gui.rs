//! `scumble gui` where the viewer is not installed.

use assert_cmd::Command;
use predicates::{boolean::PredicateBooleanExt as _, str::contains};

#[test]
fn a_missing_viewer_is_said_with_how_to_get_it() {
    // A copy with nothing beside it, and nothing on the path.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = folder.path().join(format!("scumble{}", std::env::consts::EXE_SUFFIX));
    std::fs::copy(assert_cmd::cargo::cargo_bin("scumble"), &alone).expect("a copy");
    Command::new(&alone)
        .arg("gui")
        .env("PATH", folder.path())
        .assert()
        .failure()
        .stderr(contains("no `scumble-gui`").and(contains("cargo install --path gui")));
}
