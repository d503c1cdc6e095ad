//! The subcommands that hand adapters on, through the binary: merge, resize, convert, bake, extract, metadata.

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt as _, str::contains};
use scumble::weights::reader::SafetensorsFile;
use tempfile::TempDir;

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

fn style(name: &str) -> String {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("sample-data/adapters/{name}.safetensors"));
    path.display().to_string()
}

fn ranks(path: &Path) -> Vec<usize> {
    let file = SafetensorsFile::read(path).unwrap();
    let tensors = file.header().tensors.iter().filter(|(name, _)| name.ends_with("lora_down.weight"));
    tensors.map(|(_, entry)| entry.shape[0]).collect()
}

#[test]
fn merge_resize_and_convert() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let (a, b) = (style("blueprint"), style("riso"));
    let merge = ["merge", &format!("{a}:0.7"), &format!("{b}:-0.5"), "-o", "c.safetensors"];
    scumble(root)
        .args(merge)
        .assert()
        .success()
        .stdout("c.safetensors\n")
        .stderr(contains("exact: the change is the weighted sum"));
    let linear = ["merge", &a, &b, "--method", "linear", "-o", "linear.safetensors"];
    let said = contains("another than the weighted sum").and(contains("relative error").not());
    scumble(root).args(linear).assert().success().stderr(said);
    let (one, two) = (ranks(Path::new(&a)), ranks(&root.join("c.safetensors")));
    assert!(one.iter().zip(&two).all(|(one, two)| 2 * one == *two), "ranks add up");
    let file = SafetensorsFile::read(root.join("c.safetensors")).unwrap();
    assert!(file.metadata()["scumble_merge"].contains(r#""weight":"-0.5""#));

    let svd =
        ["merge", &format!("{a}:0.7"), &b, "--rank", "3", "--dtype", "f16", "-o", "d.safetensors", "--json"];
    scumble(root)
        .args(svd)
        .assert()
        .success()
        .stdout(contains(r#""event":"result""#).and(contains("relative_error")));
    assert!(ranks(&root.join("d.safetensors")).iter().all(|r| *r == 3));

    let resize =
        ["resize", "c.safetensors", "-o", "e.safetensors", "--sv-fro", "0.8", "--max-rank", "6", "--layers"];
    scumble(root)
        .args(resize)
        .assert()
        .success()
        .stderr(contains("relative error").and(contains("rank 32 → ")));
    assert!(ranks(&root.join("e.safetensors")).iter().all(|r| *r <= 6));

    scumble(root).args(["convert", &a, "--to", "diffusers", "-o", "f.safetensors"]).assert().success();
    scumble(root)
        .args(["convert", "f.safetensors", "--to", "kohya", "-o", "g.safetensors"])
        .assert()
        .success();
    let (before, after) =
        (SafetensorsFile::read(&a).unwrap(), SafetensorsFile::read(root.join("g.safetensors")).unwrap());
    assert_eq!(before.data(), after.data(), "there and back, byte for byte");
}

#[test]
fn bake_and_extract() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let bake = ["bake", "--model", "mini", "--lora", &format!("{}:0.8", style("blueprint")), "-o", "baked"];
    scumble(root).args(bake).assert().success().stdout("baked\n");
    assert!(
        root.join("baked/unet/config.json").is_file() && root.join("baked/tokenizer/vocab.json").is_file()
    );
    let extract = ["extract", "--from", "baked", "--base", "mini", "--rank", "4", "-o", "out.safetensors"];
    scumble(root)
        .args(extract)
        .assert()
        .success()
        .stdout("out.safetensors\n")
        .stderr(contains("relative error").and(contains("more layers differ and are left out")));
    let convolutions = ["--conv-rank", "4", "--force"];
    scumble(root).args(extract).args(convolutions).assert().success().stderr(contains("left out").not());
    assert!(ranks(&root.join("out.safetensors")).iter().all(|r| *r == 4));
    scumble(root)
        .args(["generate", "cat", "--model", "baked", "--steps", "1", "--size", "64x64"])
        .assert()
        .success();
}

#[test]
fn metadata_is_shown_and_edited_without_touching_the_weights() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    fs::copy(style("riso"), root.join("a.safetensors")).unwrap();
    let before = SafetensorsFile::read(root.join("a.safetensors")).unwrap();
    scumble(root)
        .args(["metadata", "a.safetensors"])
        .assert()
        .success()
        .stdout(contains("ss_network_module"));
    let set = ["metadata", "a.safetensors", "--set", "ss_sd_model_name=/home/ann/private/base.safetensors"];
    scumble(root).args(set).assert().success();
    let edit = ["metadata", "a.safetensors", "--trigger", "riso print", "--strip-private"];
    scumble(root).args(edit).assert().success().stderr(contains("ss_sd_model_name: base.safetensors"));
    let after = SafetensorsFile::read(root.join("a.safetensors")).unwrap();
    assert_eq!(after.metadata()["modelspec.trigger_phrase"], "riso print");
    assert_eq!(after.metadata()["ss_sd_model_name"], "base.safetensors");
    assert_eq!(before.data(), after.data());
    assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
    let gone = ["metadata", "a.safetensors", "--remove", "ss_network_modul"];
    scumble(root).args(gone).assert().failure().stderr(contains("did you mean `ss_network_module`"));
}

/// A telling place: the folder, the folder of pictures in it, and a picture whose caption is that folder's name.
#[test]
fn a_stripped_file_holds_nothing_of_where_it_was_trained() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let pictures = root.join("annas-wedding/3_hidden beach");
    fs::create_dir_all(&pictures).unwrap();
    let sample = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sample-data/blueprint");
    for file in ["fox.jpg", "fox.txt", "house.jpg"] {
        fs::copy(sample.join(file), pictures.join(file)).unwrap();
    }
    let folder = root.join("annas-wedding").display().to_string();
    let train =
        ["train", &folder, "--steps", "1", "--rank", "1", "--resolution", "64", "-o", "a.safetensors"];
    scumble(root).args(train).args(["--cache", "annas-cache"]).assert().success();
    let traces = |file: &str| -> Vec<String> {
        let bytes = fs::read(root.join(file)).unwrap();
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let place = root.file_name().unwrap().to_string_lossy().to_lowercase();
        let words = ["annas", "wedding", "hidden", "beach", &place].map(String::from);
        words.into_iter().filter(|word| text.contains(word.as_str())).collect()
    };
    assert_eq!(traces("a.safetensors"), ["annas", "wedding", "hidden", "beach"]);
    let strip = ["metadata", "a.safetensors", "--strip-private", "-o", "b.safetensors"];
    scumble(root).args(strip).assert().success().stderr(contains("the caption `hidden beach` was the name"));
    assert_eq!(traces("b.safetensors"), [""; 0]);
    let stripped = SafetensorsFile::read(root.join("b.safetensors")).unwrap();
    assert_eq!(stripped.metadata()["ss_tag_frequency"], r#"{"pictures":{"blueprint style":1,"fox":1}}"#);
    assert!(stripped.metadata()["scumble_config"].contains("rank = 1"));
}

#[test]
fn what_cannot_be_done_is_said_with_a_hint() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    fs::copy(style("riso"), root.join("a.safetensors")).unwrap();
    let a = || ["a.safetensors", "-o"];
    let refused = |arguments: &[&str], message: &str| {
        scumble(root).args(arguments).assert().failure().stderr(contains(message).and(contains("hint: ")));
    };
    refused(&[&["merge"], &a()[..], &["a.safetensors"]].concat(), "is what is read");
    refused(&[&["merge"], &a()[..], &["./a.safetensors"]].concat(), "is what is read");
    refused(&["resize", "a.safetensors", "-o", "b.safetensors"], "which rank?");
    refused(&["resize", "a.safetensors", "-o", "b.safetensors", "--sv-ratio", "0.5"], "must be above 1");
    refused(
        &["merge", "a.safetensors", "-o", "b.safetensors", "--method", "ties", "--rank", "4"],
        "takes no rank",
    );
    refused(&["merge", "a.safetensors", "-o", "b.safetensors", "--method", "tis"], "did you mean `ties`");
    refused(&["merge", "a.safetensors:0", "-o", "b.safetensors"], "all weights are 0");
    // A file has no steps and no places, and says whose weight has.
    for weight in ["0..1@0-50%", "0.8@left"] {
        let (a, message) =
            (format!("a.safetensors:{weight}"), format!("the weight of `a`, {weight}, changes"));
        refused(&["merge", &a, "-o", "b.safetensors"], &message);
        refused(&["bake", "--model", "mini", "-l", &a, "-o", "baked"], &message);
    }
    let blocks = vec!["1"; 20].join(",");
    let wrong = format!("a.safetensors:1,lbw={blocks}");
    refused(&["merge", &wrong, "-o", "b.safetensors"], "adapter `a`: `lbw` with 20 numbers does not fit");
    let nowhere = "a.safetensors:1,down.9=0.5";
    refused(&["merge", nowhere, "-o", "b.safetensors"], "adapter `a`: the model has no block `down.9`");
    refused(&["bake", "--model", "mini", "-l", nowhere, "-o", "baked"], "the model has no block `down.9`");
    refused(&["bake", "--model", "mini", "-l", "a.safetensors", "-o", "b.safetensors"], "sizes of their own");
    refused(&["convert", "a.safetensors", "--to", "kohia", "-o", "b.safetensors"], "did you mean `kohya`");
    let nowhere = ["extract", "--from", "mini", "--base", "nothing/here.safetensors", "-o", "b.safetensors"];
    scumble(root).args(nowhere).assert().failure().stderr(contains("no such file"));
    let same = ["extract", "--from", "mini", "--base", "mini", "-o", "b.safetensors"];
    scumble(root).args(same).assert().failure().stderr(contains("do not differ"));
    assert!(!root.join("b.safetensors").exists() && !root.join("baked").exists());
}
