//! The whole path through the binary: train a style, draw with it, repeat a picture, stop and go on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt as _, str::contains};
use tempfile::TempDir;

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

/// Three pictures of a sample style.
fn pictures(root: &Path) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/blueprint");
    let to = root.join("pictures");
    fs::create_dir(&to).unwrap();
    for name in ["fox", "house", "star"] {
        for ending in ["jpg", "txt"] {
            let file = format!("{name}.{ending}");
            fs::copy(from.join(&file), to.join(&file)).unwrap();
        }
    }
    to
}

fn pixels(path: PathBuf) -> Vec<u8> {
    image::open(path).unwrap().into_rgb8().into_raw()
}

#[test]
fn train_draw_and_repeat() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    pictures(root);
    let train =
        ["train", "pictures", "--out", "my-style.safetensors", "--steps", "2", "--rank", "4", "--lr", "1e-2"];
    scumble(root).args(train).assert().success().stdout("my-style.safetensors\n");

    let draw = ["generate", "cat, blueprint style", "--lora", "my-style.safetensors:0.8", "--steps", "3"];
    let draw =
        [&draw[..], &["--seed", "7", "--count", "2", "--sampler", "euler_a", "--negative", "red"]].concat();
    let first = root.join("out/00001-7.png");
    scumble(root).args(draw).assert().success().stdout(contains("00001-7.png\n").count(1));
    assert!(root.join("out/00002-8.png").is_file());

    // By the recipe alone, and by the option that changes one thing.
    let repeat = ["generate", "--from", "out/00002-8.png", "--out", "again"];
    scumble(root).args(repeat).assert().success();
    assert_eq!(pixels(root.join("again/00001-8.png")), pixels(root.join("out/00002-8.png")));
    let other =
        ["generate", "--from", "out/00001-7.png", "--out", "again", "--lora", "my-style.safetensors:0"];
    scumble(root).args(other).assert().success();
    assert_ne!(pixels(root.join("again/00002-7.png")), pixels(first));

    // An adapter named in the prompt is the same as one given as an option.
    let tagged = ["generate", "cat, blueprint style <lora:my-style:0.8>", "--steps", "3", "--seed", "8"];
    let tagged = [&tagged[..], &["--sampler", "euler_a", "--negative", "red", "--out", "tagged"]].concat();
    scumble(root).args(tagged).assert().success();
    assert_eq!(pixels(root.join("tagged/00001-8.png")), pixels(root.join("out/00002-8.png")));

    scumble(root)
        .args(["inspect", "my-style.safetensors"])
        .assert()
        .success()
        .stdout(contains("IN01        8  4          4"))
        .stdout(contains("blueprint style"));
}

#[test]
fn json_lines_and_quiet_output() {
    let dir = TempDir::new().unwrap();
    let draw = ["generate", "cat", "--steps", "2", "--seed", "1"];
    let run = scumble(dir.path()).args(draw).arg("--json").assert().success().stderr("");
    let text = String::from_utf8(run.get_output().stdout.clone()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |event: &str| lines.iter().filter(|l| l["event"] == event).count();
    assert_eq!(of("picture"), 1, "{text}");
    assert!(of("advanced") >= 2, "{text}");

    scumble(dir.path())
        .args(draw)
        .arg("--quiet")
        .assert()
        .success()
        .stderr("")
        .stdout(contains("00002-1.png"));
    scumble(dir.path())
        .args(["models"])
        .assert()
        .success()
        .stdout(contains("mini"))
        .stdout(contains("--model"));
}

/// Ctrl-C in the middle: within a step, with an adapter and a state to go on from.
#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_made() {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    pictures(root);
    let mut run = Command::new(assert_cmd::cargo::cargo_bin("scumble"))
        .current_dir(root)
        .args(["train", "pictures", "--steps", "100000", "--rank", "2", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.by_ref().filter(|l| l.contains("\"loss\"")).nth(1).is_some(), "no two steps were made");
    Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    let last = lines.last().unwrap_or_default();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(last.contains("\"cancelled\""), "{last}");
    let state = root.join("style.state.safetensors");
    assert!(root.join("style.safetensors").is_file() && state.is_file());

    let step = serde_json::from_str::<serde_json::Value>(&last).unwrap()["step"].as_u64().unwrap();
    let fewer = (step - 1).to_string();
    let resume = ["train", "pictures", "--rank", "2", "--resume", "--warmup-steps", "100", "--steps"];
    let refused = scumble(root).args(resume).arg(&fewer).assert().code(1);
    refused.stderr(contains(format!("is at step {step} already")));
    assert!(state.exists(), "the state is kept");
    let steps = (step + 1).to_string();
    scumble(root).args(resume).arg(&steps).assert().success();
    assert!(!state.exists(), "a finished run leaves no state");
}

#[test]
fn the_demo_runs_from_the_binary_alone() {
    let dir = TempDir::new().unwrap();
    scumble(dir.path())
        .args(["demo", "--steps", "2", "--draw-steps", "1", "--style", "riso"])
        .assert()
        .success()
        .stdout("scumble-demo/riso.png\n")
        .stderr(contains("scumble generate"));
    let sheet = image::open(dir.path().join("scumble-demo/riso.png")).unwrap();
    assert!(sheet.width() > 800 && sheet.height() > 1000);
    // A second one would lose what the first made, or a file of the user's.
    let again = ["demo", "--steps", "2", "--draw-steps", "1", "--style", "riso"];
    let refused = scumble(dir.path()).args(again).assert().code(1);
    refused.stderr(contains("riso.safetensors: a file of").and(contains("`--force` replaces it")));
    fs::remove_file(dir.path().join("scumble-demo/riso.safetensors")).unwrap();
    fs::write(dir.path().join("scumble-demo/riso/fox.txt"), "keep").unwrap();
    scumble(dir.path()).args(again).assert().code(1).stderr(contains("fox.txt"));
    assert_eq!(fs::read_to_string(dir.path().join("scumble-demo/riso/fox.txt")).unwrap(), "keep");
    scumble(dir.path()).args(again).arg("--force").assert().success();
}
