//! What runs write: nothing is replaced by accident, two runs at once do not harm each other, and what is learned from is said.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt as _, str::contains};
use scumble::{files::OutputLock, weights::reader::SafetensorsFile};
use tempfile::TempDir;

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

/// Runs on beside the test, with its standard output piped.
fn start(folder: &Path, arguments: &[&str]) -> Child {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("scumble"));
    command.current_dir(folder).args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
    command.env("SCUMBLE_CACHE", folder.join("cache")).spawn().unwrap()
}

/// Reads a run's JSON lines up to one that holds all of these words.
fn wait_for(run: &mut Child, words: &[&str]) -> impl Iterator<Item = String> + use<> {
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| words.iter().all(|word| line.contains(word))), "{words:?} never came");
    lines
}

#[cfg(unix)]
fn interrupt(run: &Child) {
    std::process::Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
}

/// Pictures of a sample style, the captions as given; an empty one is a file that says nothing.
fn pictures(root: &Path, captions: &[(&str, Option<&str>)]) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/blueprint");
    let to = root.join("pictures");
    fs::create_dir(&to).unwrap();
    for (name, caption) in captions {
        fs::copy(from.join(format!("{name}.jpg")), to.join(format!("{name}.jpg"))).unwrap();
        if let Some(caption) = caption {
            fs::write(to.join(format!("{name}.txt")), caption).unwrap();
        }
    }
}

fn style(name: &str) -> String {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("sample-data/adapters/{name}.safetensors"));
    path.display().to_string()
}

#[test]
fn one_run_at_a_time_has_an_output() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    pictures(root, &[("fox", Some("a fox"))]);
    let mut first = start(root, &["train", "pictures", "--steps", "100000", "--rank", "1", "--json"]);
    let lines = wait_for(&mut first, &["\"loss\""]);
    let second = scumble(root).args(["train", "pictures", "--steps", "1", "--force"]).assert().code(1);
    second
        .stderr(contains("error: style.safetensors: another run of scumble").and(contains("is writing it")))
        .stderr(contains("hint: wait until that has ended, or choose another `--out`"));
    // However a run ends, its claim ends with it.
    first.kill().unwrap();
    first.wait().unwrap();
    drop(lines);
    scumble(root).args(["train", "pictures", "--steps", "1", "--rank", "1"]).assert().success();
    assert!(!root.join(".style.safetensors.lock").exists());

    let _held = [
        OutputLock::take(root.join("scumble-demo/riso.png")).unwrap(),
        OutputLock::take(root.join("c.safetensors")).unwrap(),
    ];
    let merge = ["merge", &style("riso"), "-o", "c.safetensors"];
    for arguments in [&["demo", "--style", "riso"][..], &merge] {
        scumble(root).args(arguments).assert().code(1).stderr(contains("another run of scumble"));
    }
    assert!(!root.join("c.safetensors").exists());
}

#[test]
fn batches_into_one_folder_keep_all_pictures() {
    let dir = TempDir::new().unwrap();
    let draw = ["generate", "cat", "--seed", "5", "--steps", "1", "--size", "64x64", "--cfg", "1"];
    // The same seeds, so the same endings: only the number tells the pictures apart.
    let runs = [0, 1].map(|_| start(dir.path(), &[&draw[..], &["--count", "2"]].concat()));
    let mut named = Vec::new();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success());
        named.extend(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned));
    }
    let found: BTreeSet<String> = named.iter().cloned().collect();
    assert_eq!((named.len(), found.len()), (4, 4), "{named:?}");
    assert!(named.iter().all(|path| image::open(dir.path().join(path)).is_ok()));
    assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 4);
}

#[test]
fn nothing_is_replaced_without_force() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let a = style("riso");
    fs::write(root.join("mine.safetensors"), "mine").unwrap();
    fs::create_dir(root.join("model")).unwrap();
    fs::write(root.join("model/notes.txt"), "mine").unwrap();
    let refused = |arguments: &[&str], what: &str, hint: &str| {
        let run = scumble(root).args(arguments).assert().code(1);
        run.stderr(contains(what).and(contains(format!("hint: {hint}"))));
    };
    for command in [
        &["merge", &a][..],
        &["resize", &a, "--rank", "1"],
        &["convert", &a, "--to", "comfy"],
        &["extract", "--from", "mini", "--base", "mini"],
        &["bake", "--model", "mini", "--lora", &a],
        &["metadata", &a, "--trigger", "riso"],
    ] {
        let arguments = [command, &["-o", "mine.safetensors"]].concat();
        refused(
            &arguments,
            "mine.safetensors: a file of 0.0 MB stands there already",
            "`--force` replaces it",
        );
    }
    let bake = ["bake", "--model", "mini", "--lora", &a, "-o", "model"];
    refused(&bake, "model: a folder with something in it stands there already", "`--force` replaces it");
    refused(
        &[&bake[..], &["--force"]].concat(),
        "a folder with notes.txt in it stands there",
        "choose another",
    );
    assert_eq!(fs::read(root.join("mine.safetensors")).unwrap(), b"mine");
    assert_eq!(fs::read(root.join("model/notes.txt")).unwrap(), b"mine");

    let convert = |to: &str, out: &str| {
        scumble(root)
            .args(["convert", &a, "--to", to, "-o", out, "--force"])
            .assert()
            .success()
            .stdout(format!("{out}\n"));
    };
    convert("comfy", "mine.safetensors");
    SafetensorsFile::read(root.join("mine.safetensors")).unwrap();
    // A folder is replaced as a whole: nothing of the old one is left to be taken for a part of the new.
    convert("peft", "peft");
    fs::create_dir_all(root.join("peft/text_encoder_2")).unwrap();
    convert("peft", "peft");
    assert!(root.join("peft/unet/adapter_model.safetensors").is_file());
    assert!(!root.join("peft/text_encoder_2").exists());
    let left = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with('.')).count(), 0);
}

#[test]
fn training_says_what_it_learns_from_and_what_to_do_next() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let long = "a house of many words ".repeat(30);
    pictures(root, &[("fox", None), ("house", Some(&long)), ("star", Some("  \n"))]);
    let train = ["train", "pictures", "--steps", "1", "--rank", "2", "--seed", "3", "--out"];
    let run = scumble(root).args(train).arg("my style.safetensors").assert().success();
    let run = run
        .stderr(contains(
            "warning: 2 pictures without a caption, `pictures` is used: pictures/fox.jpg, pictures/star.jpg",
        ))
        .stderr(
            contains("warning: 1 caption is longer than the 75 tokens").and(contains("nothing is cut off")),
        );
    if cfg!(unix) {
        run.stderr(contains("--model mini --lora 'my style.safetensors:0.8'"));
    }
    // What is learned follows from the seed, not from the name.
    scumble(root).args(train).arg("other.safetensors").assert().success();
    let read = |name: &str| SafetensorsFile::read(root.join(name)).unwrap();
    assert_eq!(read("my style.safetensors").data(), read("other.safetensors").data());

    let again = scumble(root).args(train).arg("other.safetensors").assert().code(1);
    again.stderr(contains("other.safetensors: a file of").and(contains("hint: `--force` replaces it")));
    scumble(root).args(train).args(["other.safetensors", "--force"]).assert().success();
}

#[test]
fn a_check_speaks_of_the_sizes_the_training_would_use() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    pictures(root, &[("fox", Some("a fox")), ("house", Some(&"a house ".repeat(50)))]);
    let check =
        |more: &[&str]| scumble(root).args(["train", "pictures", "--check"]).args(more).assert().success();
    check(&[])
        .stderr(contains("for `mini` at 128x128"))
        .stdout(contains("sizes: 128x128 (2)").and(contains("tokens, more than the 75 read at once")));
    check(&["--resolution", "64"]).stdout(contains("sizes: 64x64 (2)"));
    check(&["--model", "sdxl"])
        .stderr(contains("not on this machine yet").and(contains("1024 px")))
        .stdout(contains("sizes: 1024x1024 (2)").and(contains("2 pictures enlarged")));
}

/// A step on a picture this large takes long: Ctrl-C must not wait for it.
#[cfg(unix)]
#[test]
fn ctrl_c_reaches_inside_a_step() {
    let dir = TempDir::new().unwrap();
    let draw =
        ["generate", "cat", "--size", "1536x1536", "--steps", "2", "--seed", "1", "--json", "--out", "o"];
    let mut run = start(dir.path(), &draw);
    let mut lines = wait_for(&mut run, &["\"warning\"", "mini was trained at 128 px: at 1536x1536"]);
    assert!(lines.any(|line| line.contains("\"started\"") && line.contains("\"sample\"")));
    interrupt(&run);
    assert!(!lines.any(|line| line.contains("\"advanced\"")), "the step was finished first");
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(!dir.path().join("o").exists(), "an empty folder is left");
}

/// A demo that is stopped says what is there, and goes on from it.
#[cfg(unix)]
#[test]
fn an_interrupted_demo_goes_on() {
    let dir = TempDir::new().unwrap();
    let demo = ["demo", "--style", "riso", "--steps", "100000", "--json"];
    let mut run = start(dir.path(), &demo);
    let lines = wait_for(&mut run, &["\"loss\""]);
    interrupt(&run);
    let last = lines.last().unwrap_or_default();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(last.contains("\"cancelled\"") && last.contains("riso.safetensors"), "{last}");
    assert!(dir.path().join("scumble-demo/riso.state.safetensors").is_file());
}

/// A recipe that starts from a picture says when that is another one by now.
#[test]
fn a_changed_start_is_noticed() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    pictures(root, &[("fox", None), ("owl", None)]);
    let draw =
        ["generate", "star", "--init", "pictures/fox.jpg", "--steps", "2", "--seed", "1", "--size", "32x32"];
    let out = scumble(root).args(draw).args(["--out", "o"]).assert().success().get_output().stdout.clone();
    let picture = String::from_utf8(out).unwrap().trim().to_owned();
    let again = ["generate", "--from", &picture, "--out", "o"];
    scumble(root).args(again).assert().success().stderr(contains("is not the picture it was").not());
    fs::copy(root.join("pictures/owl.jpg"), root.join("pictures/fox.jpg")).unwrap();
    scumble(root).args(again).assert().success().stderr(contains("fox.jpg is not the picture it was"));
}
