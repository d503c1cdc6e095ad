//! Blending through the binary: the grammar of weights, blend files, recipes, the guard, the grid.

use std::{fs, path::Path};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt as _, str::contains};
use tempfile::TempDir;

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

/// A library with two styles, and a mask that is white on the left.
fn studio() -> TempDir {
    let dir = TempDir::new().unwrap();
    let adapters = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/adapters");
    fs::create_dir(dir.path().join("loras")).unwrap();
    for name in ["riso.safetensors", "blueprint.safetensors"] {
        fs::copy(adapters.join(name), dir.path().join("loras").join(name)).unwrap();
    }
    let mask = image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if x < 32 { 255 } else { 0 }]));
    mask.save(dir.path().join("left, half.png")).unwrap();
    dir
}

fn pixels(path: &Path) -> Vec<u8> {
    image::open(path).unwrap().into_rgb8().into_raw()
}

const QUICK: [&str; 6] = ["--size", "64x64", "--steps", "3", "--seed", "7"];

#[test]
fn a_recipe_holds_every_weight() {
    let dir = studio();
    let root = dir.path();
    fs::write(
        root.join("mix.toml"),
        "normalize = true\n[[adapter]]\nfile = \"loras/blueprint.safetensors\"\nweight = 0.9\nmask = \"left, half.png\"\n",
    )
    .unwrap();
    let prompt = "cat, flat icon <lora:riso:0.4:0..1@0-50%:mid=0.5>";
    let draw = [&["generate", prompt, "--blend", "mix.toml"], &QUICK[..]].concat();
    scumble(root).args(&draw).assert().success().stderr(contains("weight unet=0..1@0-50%,te=0.4,mid=0.5"));
    let first = root.join("out/00001-7.png");
    scumble(root).args(["generate", "--from", "out/00001-7.png", "--out", "again"]).assert().success();
    assert_eq!(pixels(&root.join("again/00001-7.png")), pixels(&first));
    let plain = [&["generate", "cat, flat icon", "--out", "plain"], &QUICK[..]].concat();
    scumble(root).args(&plain).assert().success();
    assert_ne!(pixels(&root.join("plain/00001-7.png")), pixels(&first));
    // A mask that is gone is named, not left out.
    fs::remove_file(root.join("left, half.png")).unwrap();
    let again = scumble(root).args(["generate", "--from", "out/00001-7.png"]).assert().code(1);
    again.stderr(contains("left, half.png"));
}

#[test]
fn a_recipe_means_what_a_file_holds_not_its_name() {
    let dir = studio();
    let root = dir.path();
    let draw = [&["generate", "cat, flat icon <lora:riso:0.9>"], &QUICK[..]].concat();
    scumble(root).args(&draw).assert().success();
    let first = pixels(&root.join("out/00001-7.png"));
    let again = |out: &str, more: &[&str]| {
        scumble(root).args(["generate", "--from", "out/00001-7.png", "--out", out]).args(more).assert()
    };
    let [riso, blueprint] = ["riso", "blueprint"].map(|name| root.join(format!("loras/{name}.safetensors")));
    // Of several of one name the right one, wherever it lies.
    fs::create_dir(root.join("a")).unwrap();
    fs::copy(&blueprint, root.join("a/riso.safetensors")).unwrap();
    again("b", &["--lora-dir", "a"]).success();
    assert_eq!(pixels(&root.join("b/00001-7.png")), first);
    // One that was renamed, although another has its name by now.
    fs::remove_dir_all(root.join("a")).unwrap();
    fs::rename(&riso, root.join("loras/print.safetensors")).unwrap();
    fs::copy(&blueprint, &riso).unwrap();
    again("c", &[]).success().stderr(contains("`riso` is ./loras/print.safetensors here"));
    assert_eq!(pixels(&root.join("c/00001-7.png")), first);
    // One that is gone is not replaced by a stranger.
    fs::remove_file(root.join("loras/print.safetensors")).unwrap();
    let refused = again("d", &[]).code(1).stderr(contains("riso.safetensors: is another file than"));
    refused.stderr(contains("hint: `--lora-dir`").and(contains("`--allow-other-adapters`")));
    assert!(!root.join("d").exists());
    again("e", &["--allow-other-adapters"]).success().stderr(contains("the picture will differ"));
    assert_ne!(pixels(&root.join("e/00001-7.png")), first);
}

#[test]
fn blocks_that_the_model_has_not_are_named() {
    let dir = studio();
    for (weight, block) in [("1,down.9=0.5", "down.9"), ("0.5,in11=0", "in11")] {
        let lora = format!("riso:{weight}");
        for command in ["generate", "check-blend"] {
            let run = scumble(dir.path()).args([command, "cat", "--lora", &lora]).assert().code(1);
            run.stderr(contains(format!("the weight of `riso`: the model has no block `{block}`"))).stderr(
                contains("hint: its blocks are down.0, down.1, down.2, mid, up.0, up.1, up.2; or in00 to"),
            );
        }
    }
}

#[test]
fn the_guard_names_culprits() {
    let dir = studio();
    let root = dir.path();
    let check = ["check-blend", "--lora", "riso:0.6", "--lora", "blueprint:0.6", "--heat-map", "heat.png"];
    scumble(root).args(check).assert().success().stdout(contains("riso and blueprint: cosine"));
    assert!(root.join("heat.png").is_file());
    let twice = ["check-blend", "--lora", "riso:1.5", "--lora", "loras/riso.safetensors:1"];
    let run = scumble(root).args(twice).assert().code(1);
    run.stderr(contains("riso and riso pull the same way")).stderr(contains("--normalize"));
    let run = scumble(root).args(twice).arg("--json").assert().code(1);
    let lines = String::from_utf8(run.get_output().stdout.clone()).unwrap();
    let line = lines.lines().find(|line| line.contains("\"event\":\"blend\"")).unwrap();
    let json: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(json["adapters"][0]["weight"], "1.5");
    assert!(json["blocks"][0]["sum"].as_f64() > json["blocks"][0]["limit"].as_f64());
    scumble(root).args(["check-blend"]).assert().code(1).stderr(contains("no adapter to check"));
}

#[test]
fn a_grid_shows_both_axes() {
    let dir = studio();
    let root = dir.path();
    let draw = ["generate", "cat", "--lora", "riso", "--lora", "blueprint:0.8", "--grid", "2"];
    scumble(root)
        .args([&draw[..], &QUICK[..]].concat())
        .assert()
        .success()
        .stdout(contains("00001-7-grid.png"));
    let grid = image::open(root.join("out/00001-7-grid.png")).unwrap();
    assert!(grid.width() > 2 * 192 && grid.height() > 2 * 192);
    scumble(root).args(["generate", "cat", "--grid", "3"]).assert().code(1).stderr(contains("there is none"));
    let sides = |x: &str, y: &str| {
        let draw = ["generate", "cat", "--lora", "riso:0.6", "--out", "sides", "--grid-x", x, "--grid-y", y];
        scumble(root).args([&draw[..], &QUICK[..]].concat()).assert()
    };
    sides("weight:riso=0,0.6", "steps=2,3").success();
    let bytes = fs::read(root.join("sides/00001-7-grid.png")).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("X Type: Weight of riso, X Values: \"0, 0.6\", Y Type: Steps"), "no recipe");
    // Its file draws all of it again, a square one's too.
    for (file, out) in [("sides/00001-7-grid.png", "sides2"), ("out/00001-7-grid.png", "out2")] {
        scumble(root).args(["generate", "--from", file, "--out", out]).assert().success();
        assert_eq!(pixels(&root.join(out).join("00001-7-grid.png")), pixels(&root.join(file)));
    }
    let several = ["generate", "--from", "sides/00001-7-grid.png", "--count", "2"];
    scumble(root).args(several).assert().code(1).stderr(contains("a grid is one picture"));
    // The corner is the picture of its own.
    let alone = ["generate", "cat", "--lora", "riso:0.6", "--lora-mode", "live", "--out", "alone"];
    scumble(root).args([&alone[..], &QUICK[..]].concat()).assert().success();
    let alone = image::open(root.join("alone/00001-7.png")).unwrap().into_rgb8();
    let alone = image::imageops::resize(&alone, 192, 192, image::imageops::FilterType::CatmullRom);
    let grid = image::open(root.join("sides/00001-7-grid.png")).unwrap().into_rgb8();
    let (w, h) = grid.dimensions();
    let corner = image::imageops::crop_imm(&grid, w - 12 - 192, h - 12 - 192, 192, 192).to_image();
    assert_eq!(corner, alone);
    sides("weight:oil=0,1", "steps=2").code(1).stderr(contains("riso"));
    sides("steps=2", "steps=3").code(1).stderr(contains("the same thing"));
    sides("much", "steps=3").code(1).stderr(contains("weight:my-style=0,0.5,1"));
}
