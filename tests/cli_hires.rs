//! The second pass through the binary.

use std::path::Path;

use assert_cmd::Command;
use predicates::str::contains;
use tempfile::TempDir;

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

#[test]
fn a_second_pass_enlarges_and_is_repeated_from_its_recipe() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let draw = ["generate", "cat, flat icon", "--size", "64x64", "--steps", "3", "--seed", "7"];
    let twice = scumble(root).args(draw).args(["--hires", "1.5", "--hires-steps", "4", "--json"]).assert();
    // All of its steps are done, as the web UI has it.
    twice.success().stdout(contains(r#""stage":"sample","done":7,"total":7"#));
    let open = |name: &str| image::open(root.join(name)).unwrap().into_rgb8();
    let first = open("out/00001-7.png");
    assert_eq!(first.dimensions(), (96, 96));
    let bytes = std::fs::read(root.join("out/00001-7.png")).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("Hires upscale: 1.5, Hires steps: 4"));
    let from = ["generate", "--from", "out/00001-7.png", "--out"];
    scumble(root).args(from).arg("again").assert().success();
    assert_eq!(open("again/00001-7.png"), first);
    scumble(root).args(from).args(["other", "--hires-strength", "0.9"]).assert().success();
    let other = open("other/00001-7.png");
    assert!(other.dimensions() == (96, 96) && other != first);
    let lonely = scumble(root).args(draw).args(["--hires-strength", "0.5"]).assert().code(1);
    lonely.stderr(contains("--hires 1.5"));
    scumble(root).args(draw).args(["--hires", "0.5"]).assert().code(1);
}
