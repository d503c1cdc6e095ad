//! `--embedding`: files, folders, recipes and refusals, through the binary.

use std::{fs, path::Path};

use assert_cmd::Command;
use predicates::{boolean::PredicateBooleanExt, str::contains};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

/// `count` vectors of `width` in waves of a frequency.
fn write(path: &Path, (count, width): (usize, usize), frequency: f32) {
    let values = (0..count * width).flat_map(|i| (0.1 * (i as f32 * frequency).sin()).to_le_bytes());
    let bytes: Vec<u8> = values.collect();
    let view = TensorView::new(Dtype::F32, vec![count, width], &bytes).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, safetensors::serialize([("emb_params", view)], None).unwrap()).unwrap();
}

/// What `mini`'s text encoder reads.
const WIDTH: usize = 128;

fn draw<'a>(prompt: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", prompt, "--steps", "2", "--seed", "3", "--out", out][..], more].concat()
}

fn pixels(root: &Path, picture: &str) -> Vec<u8> {
    image::open(root.join(picture)).unwrap().into_rgb8().into_raw()
}

#[test]
fn words_from_files_and_folders() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    write(&root.join("words/styles/ink-wash.safetensors"), (2, WIDTH), 0.7);
    fs::write(root.join("words/old-word.pt"), b"\x80\x02}q\x00.").unwrap();
    write(&root.join("words/sdxl-word.safetensors"), (1, 2048), 0.3);
    fs::write(root.join("words/notes.safetensors"), "not one").unwrap();

    let plain = draw("cat, Ink-Wash", "plain", &[]);
    scumble(root).args(plain).assert().success();
    // The folder's other files are nobody's business, unless a prompt names them.
    let with = draw("cat, Ink-Wash", "with", &["--embedding", "words"]);
    scumble(root)
        .args(with)
        .assert()
        .success()
        .stderr(contains("embedding ink-wash: 2 vectors").and(contains("notes").not()));
    assert_ne!(pixels(root, "with/00001-3.png"), pixels(root, "plain/00001-3.png"));
    let named = draw("cat, sdxl-word", "named", &["--embedding", "words"]);
    scumble(root)
        .args(named)
        .assert()
        .success()
        .stderr(contains("`sdxl-word`: not used").and(contains("2048")));

    let pickled = draw("cat, old-word", "named", &["--embedding", "words"]);
    scumble(root)
        .args(pickled)
        .assert()
        .success()
        .stderr(contains("`old-word`: not used").and(contains("pickle")));

    // The recipe names it, with its hash, and finds it again.
    let picture = fs::read(root.join("with/00001-3.png")).unwrap();
    let text = String::from_utf8_lossy(&picture);
    assert!(text.contains("TI hashes: \"ink-wash: "), "no hash in the recipe");
    let again = ["generate", "--from", "with/00001-3.png", "--out", "again"];
    scumble(root)
        .args(again)
        .assert()
        .failure()
        .stderr(contains("the recipe uses the embedding `ink-wash`, which is not there"))
        .stderr(contains("hint: ").and(contains("--embedding")));
    scumble(root).args(again).args(["--embedding", "words"]).assert().success();
    assert_eq!(pixels(root, "again/00001-3.png"), pixels(root, "with/00001-3.png"));
    // Another prompt needs it no more; another file of that name is told.
    scumble(root).args(again).arg("dog").assert().success();
    write(&root.join("embeddings/ink-wash.safetensors"), (2, WIDTH), 0.9);
    scumble(root).args(again).assert().success().stderr(contains("another file than the recipe names"));
}

#[test]
fn files_given_by_hand_must_fit() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    write(&root.join("word.safetensors"), (1, WIDTH), 0.7);
    write(&root.join("other/Word.safetensors"), (1, WIDTH), 0.9);
    write(&root.join("wide.safetensors"), (1, 768), 0.7);
    for (files, expected) in [
        (
            &["wide.safetensors"][..],
            "made for SD 1.x (text encoder width 768), the model is mini (text encoder width 128)",
        ),
        (&["word.safetensors", "other/Word.safetensors"], "have the same name in prompts"),
        (&["missing.safetensors"], "missing.safetensors: "),
    ] {
        let given: Vec<&str> = files.iter().flat_map(|file| ["--embedding", file]).collect();
        let refused = draw("cat", "out", &given);
        scumble(root)
            .args(refused)
            .assert()
            .failure()
            .stderr(contains(expected).and(contains("panic").not()));
    }
    let unused = draw("cat", "out", &["--embedding", "word.safetensors"]);
    scumble(root).args(unused).assert().success().stderr(contains("no prompt names it"));
}
