//! What people get wrong, and what they are told: the message, the hint, the exit code, and no rubbish left behind.

use std::{fs, io::Cursor, path::Path};

use assert_cmd::Command;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use predicates::{
    prelude::PredicateBooleanExt as _,
    str::{contains, is_empty},
};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([(x % 256) as u8, (y % 256) as u8, 90]));
    let mut out = Cursor::new(Vec::new());
    DynamicImage::from(picture).write_to(&mut out, ImageFormat::Png).unwrap();
    out.into_inner()
}

fn put(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Runs in `folder` and expects failure with these words on standard error and nothing on standard output.
fn refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    let mut run = scumble(folder).args(arguments).assert().code(1).stdout(is_empty());
    run = run.stderr(contains("error: ").and(contains("panicked").not()));
    for word in words {
        run = run.stderr(contains(*word));
    }
}

#[test]
fn folders_without_usable_pictures() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("empty")).unwrap();
    refused(
        root,
        &["train", "empty"],
        &["empty: the folder is empty", "hint: put png, jpg", "10_cat/photo.jpg"],
    );
    put(root, "texts/readme.md", "hello");
    refused(root, &["train", "texts"], &["texts: no pictures found in the folder", "N_name"]);
    refused(root, &["train", "nowhere"], &["nowhere: ", "hint: the first argument is a folder of pictures"]);
    put(root, "dots/dot.png", png(1, 1));
    refused(root, &["train", "dots"], &["dot.png: 1x1 px is too small to train on (at least 16 px a side)"]);
    assert!(!root.join("style.safetensors").exists());
}

#[test]
fn doubtful_pictures_are_named_and_the_rest_is_used() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    put(root, "10_fox/good.png", png(512, 512));
    put(root, "10_fox/good.txt", "a fox");
    put(root, "10_fox/silent.png", png(600, 512));
    put(root, "10_fox/broken.jpg", [0xff, 0xd8, 0xff, 0xe0, 0x00, 0x10, b'J', b'F']);
    put(root, "10_fox/wide.png", png(20_000, 64));
    let report = scumble(root).args(["train", ".", "--check", "--resolution", "512"]).assert().success();
    report
        .stdout(contains("3 pictures, 30 seen in an epoch"))
        .stdout(contains("broken.jpg: broken picture"))
        .stdout(contains("2 pictures without a caption, `fox` is used"))
        .stdout(contains("1 picture enlarged to"));
    scumble(root)
        .args(["train", ".", "--check", "--json"])
        .assert()
        .success()
        .stdout(contains(r#""kind":"skipped""#));
}

#[test]
fn options_that_make_no_sense() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    refused(
        root,
        &["generate", "a cat", "--sampler", "dpmpp_2n"],
        &["unknown sampler `dpmpp_2n`", "did you mean `dpmpp_2m`?"],
    );
    refused(root, &["generate", "a cat", "--scheduler", "karas"], &["did you mean `karras`?"]);
    refused(root, &["generate", "a cat", "--size", "large"], &["expected a size such as 512x512"]);
    refused(
        root,
        &["generate", "a cat", "--size", "100x100"],
        &["cannot draw 100x100", "hint: the nearest is "],
    );
    refused(root, &["generate", "a cat", "--device", "gpu"], &["unknown device `gpu`"]);
    refused(
        root,
        &["generate", "a cat", "--model", "minni"],
        &["unknown model `minni`", "did you mean `mini`?"],
    );
    refused(root, &["generate", "a cat", "--strength", "0.5"], &["hint: name one with `--init`"]);
    refused(root, &["generate"], &["required"]);
    refused(root, &["demo", "--style", "reso"], &["unknown style `reso`", "did you mean `riso`?"]);
    for threads in ["0", "99999"] {
        let found = format!("on this machine, found {threads}");
        refused(root, &["models", "--threads", threads], &["`--threads` must be from 1 to", &found]);
    }
    put(root, "train.toml", "learning_rat = 1e-4\n");
    refused(
        root,
        &["train", "x", "--config", "train.toml"],
        &["train.toml", "did you mean `learning_rate`?"],
    );
}

#[test]
fn numbers_out_of_range() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    for (option, values, range) in [
        ("--eta", &["-1", "NaN", "inf", "-inf", "1.5"][..], "from 0 to 1"),
        ("--cfg", &["-2", "NaN", "inf", "101"], "from 0 to 100"),
        ("--cfg-rescale", &["-0.5", "2"], "from 0 to 1"),
        ("--strength", &["-0.5", "NaN", "1.01"], "from 0 to 1"),
        ("--steps", &["0", "-5", "1001", "NaN", "2.5"], "from 1 to 1000"),
        ("--size", &["-64x64", "0x64", "64xNaN", "64x9000"], "sides from 1 to 8192"),
        ("--count", &["0", "-1", "99999999999"], "from 1 to 10000"),
        ("--clip-skip", &["0", "99"], "from 1 to 24"),
        ("--grid", &["-1", "1", "33"], "from 2 to 32"),
        ("--lora", &["riso:1e30", "riso:nan", "riso:1,mid=-1001"], "a number from -1000 to 1000"),
        ("--seed", &["-2", "NaN", "1.5"], "or -1 for a random one"),
    ] {
        for value in values {
            let found = format!("found `{}`", value.rsplit([':', '=']).next().unwrap());
            refused(root, &["generate", "a cat", option, value], &[option, range, &found]);
        }
    }
    put(root, "pictures/a.png", png(128, 128));
    for (option, value, expected) in [
        ("--lr", "NaN", "`learning_rate` to be above 0, at most 1, found NaN"),
        ("--lr", "-1", "above 0, at most 1, found -1"),
        ("--alpha", "inf", "`alpha` to be above 0, found inf"),
        ("--caption-dropout", "2", "from 0 to 1, found 2"),
        ("--steps", "-5", "1 or more, found `-5`"),
        ("--rank", "0", "from 1 to 1024, found `0`"),
    ] {
        refused(root, &["train", "pictures", option, value], &[expected]);
    }
    refused(root, &["library", "pictures", "--top", "0"], &["--top", "1 or more, found `0`"]);
    assert!(!root.join("out").exists());
}

#[test]
fn minus_one_is_a_random_seed_that_is_said() {
    let dir = TempDir::new().unwrap();
    let draw = ["generate", "cat", "--seed", "-1", "--steps", "1", "--size", "64x64"];
    let run = scumble(dir.path()).args(draw).assert().success();
    let said = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    let seed = said.lines().find_map(|line| line.strip_prefix("seed ")).expect("the seed is said").to_owned();
    run.stdout(contains(format!("00001-{seed}.png")));
    put(dir.path(), "pictures/a.png", png(128, 128));
    let train = ["train", "pictures", "--seed", "-1", "--steps", "1", "--rank", "1", "--resolution", "64"];
    scumble(dir.path()).args(train).assert().success().stderr(contains("seed "));
}

/// A model that is not there is what a run finds out first when it opens one.
#[test]
fn what_makes_no_sense_is_said_before_a_model_is_opened() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let riso = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/adapters/riso.safetensors");
    put(root, "riso.safetensors", fs::read(riso).unwrap());
    put(root, "pictures/a.png", png(128, 128));
    let draw = |more: &[&str], words: &[&str]| {
        let all = ["generate", "a cat", "--model", "./none", "--lora", "riso", "--out", "o"];
        refused(root, &[&all[..], more].concat(), words);
    };
    for (sides, words) in [
        ("seed=-1,2", ["`--grid-x`", "from 0 to 18446744073709551615", "found `-1`"]),
        ("seed=18446744073709551616", ["`--grid-x`", "expected seeds", "found `18446744073709551616`"]),
        ("steps=0,5", ["`--grid-x`", "expected 1 to 1000 steps", "found 0"]),
        ("steps=5,,9", ["`--grid-x`", "value 2 of `5,,9` is empty", "hint: "]),
        ("weight:riso=0,1e30", ["`--grid-x`", "from -1000 to 1000", "found 1"]),
        ("weight:rizo=0,1", ["`--grid-x`", "unknown style `rizo`", "did you mean `riso`?"]),
    ] {
        draw(&["--grid-x", sides], &words);
    }
    let grid = ["--grid-x", "steps=2,3", "--count", "3"];
    draw(&grid, &["a grid is one picture, `--count` asks for 3", "--grid-y seed=7,8,9"]);
    draw(&["--lora", "gone"], &["gone: there is no such file"]);
    let train = |more: &[&str], words: &[&str]| {
        refused(root, &[&["train", "--model", "./none"], more].concat(), words);
    };
    train(&["nope"], &["nope: ", "hint: the first argument is a folder of pictures"]);
    train(&["pictures", "--clip-skip", "99"], &["from 1 to 24, found `99`"]);
    if cfg!(target_os = "linux") {
        let hint = "hint: nothing can be written there; choose another folder";
        refused(root, &["generate", "a cat", "--model", "./none", "--out", "/proc/x"], &["/proc/x: ", hint]);
        train(&["pictures", "--out", "/proc/x.safetensors"], &["/proc/x.safetensors: ", hint]);
    }
    // How many layers there are only the model says.
    refused(root, &["generate", "a cat", "--clip-skip", "24"], &["expected clip skip from 1 to", "found 24"]);
    assert!(!root.join("o").exists());
}

/// The advice must not be what is done already.
#[test]
fn a_weight_that_overflows_is_named() {
    let dir = TempDir::new().unwrap();
    let riso = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/adapters/riso.safetensors");
    let bytes = fs::read(riso).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let huge = 1e30f32.to_le_bytes().repeat(1 << 16);
    let louder = tensors.tensors().into_iter().map(|(name, view)| {
        let (shape, up) = (view.shape().to_vec(), name.ends_with(".lora_up.weight"));
        let bytes = &huge[..4 * shape.iter().product::<usize>()];
        (name, if up { TensorView::new(Dtype::F32, shape, bytes).unwrap() } else { view })
    });
    put(dir.path(), "loud.safetensors", safetensors::serialize(louder, None).unwrap());
    let draw = ["generate", "cat", "--lora", "loud.safetensors", "--steps", "2", "--size", "64x64"];
    let run = scumble(dir.path()).args(draw).assert().code(1);
    run.stderr(contains("hint: lower the adapters' weights").and(contains("dtype").not()));
}

#[test]
fn files_that_are_not_there() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let riso = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/adapters/riso.safetensors");
    put(root, "loras/riso.safetensors", fs::read(riso).unwrap());
    put(root, "loras/risso.safetensors", "<html>not an adapter");
    put(root, "loras/old.pt", b"\x80\x02}q\x00.");
    put(
        root,
        "loras/nothing.safetensors",
        safetensors::serialize::<&str, TensorView<'_>, _>([], None).unwrap(),
    );
    put(root, "pictures/fox.png", png(64, 64));
    put(root, "style.toml", "steps = 1\n");
    put(root, "model/model_index.json", "{}");

    let lora = |name: &'static str| ["generate", "a cat", "--lora", name];
    refused(
        root,
        &lora("loras/rizo.safetensors"),
        &["loras/rizo.safetensors: there is no such file", "did you mean `loras/riso"],
    );
    refused(
        root,
        &lora("rizo:0.5"),
        &["rizo: there is no such file", "did you mean `riso`? known: riso;", "--lora-dir"],
    );
    refused(root, &lora("nowhere/a.safetensors"), &["there is no folder `nowhere`"]);
    refused(root, &lora("old"), &["old.pt: not read: a pickle"]);
    refused(root, &lora("loras/nothing.safetensors"), &["holds no tensors of an adapter"]);
    refused(root, &["generate", "a cat <lora:rizo:1>"], &["did you mean `riso`? known: riso;"]);
    refused(root, &["inspect", "loras/rizo"], &["did you mean `loras/riso.safetensors`?"]);
    refused(root, &["inspect", "loras"], &["loras: holds no adapter", "`scumble library loras` lists"]);
    refused(root, &["metadata", "loras/rizo"], &["did you mean `loras/riso.safetensors`?"]);
    refused(root, &["check", "loras/rizo.safetensors"], &["did you mean `loras/riso.safetensors`?"]);
    refused(
        root,
        &["generate", "a cat", "--init", "pictures/fix.png"],
        &["did you mean `pictures/fox.png`?"],
    );
    refused(root, &["generate", "--from", "pictures/fix.png"], &["did you mean `pictures/fox.png`?"]);
    refused(root, &["train", "pictures", "--config", "stile.toml"], &["did you mean `style.toml`?"]);
    refused(
        root,
        &["generate", "a cat", "--embedding", "pictures/x.safetensors"],
        &["nothing like it is in `pictures`"],
    );
    refused(root, &["generate", "a cat", "--model", "./modell"], &["did you mean `model`?"]);
    // A folder of pictures is no model.
    let run = scumble(root).args(["generate", "a cat", "--model", "./picture"]).assert().code(1);
    run.stderr(contains("there is no such file or folder").and(contains("pictures").not()));

    let listed = scumble(root).args(["library", "loras"]).assert().success().stdout(contains("riso"));
    listed
        .stderr(contains("old.pt: not read: a pickle can run any code"))
        .stderr(contains("nothing.safetensors: is no adapter: it has no tensors"))
        .stderr(contains("1 of 4 files shown"));
    let empty = scumble(root).args(["library", "pictures"]).assert().success();
    empty.stderr(contains("there are no adapters in pictures"));
}

#[test]
fn adapters_that_do_not_fit() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    let bytes = vec![0u8; 4 * 768 * 4];
    let tensors = [
        (format!("{layer}.lora_down.weight"), vec![4, 768], 4 * 768 * 4),
        (format!("{layer}.lora_up.weight"), vec![320, 4], 320 * 4 * 4),
    ];
    let views = tensors.iter().map(|(name, shape, len)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[..*len]).unwrap())
    });
    put(root, "sd15.safetensors", safetensors::serialize(views, None).unwrap());
    let butterfly = [("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.oft_blocks", {
        TensorView::new(Dtype::F32, vec![2, 40, 2, 2], &bytes[..4 * 2 * 40 * 4]).unwrap()
    })];
    put(root, "boft.safetensors", safetensors::serialize(butterfly, None).unwrap());
    let family = "hint: choose a model of the adapter's family with `--model`";
    refused(root, &["generate", "a cat", "--lora", "boft.safetensors"], &["the butterfly blocks", family]);
    put(root, "page.safetensors", "<!DOCTYPE html><html>sign in</html>");
    put(root, "cut.safetensors", [8, 0, 0, 0, 0, 0, 0]);
    refused(root, &["generate", "a cat", "--lora", "sd15.safetensors:0.8"], &["sd15.safetensors", "SD 1.x"]);
    refused(root, &["generate", "a cat", "--lora", "page.safetensors"], &["page.safetensors"]);
    refused(root, &["generate", "a cat", "--lora", "cut.safetensors"], &["cut.safetensors"]);
    refused(root, &["generate", "a cat", "--lora", "gone.safetensors"], &["gone.safetensors"]);
    refused(root, &["generate", "a cat <lora:gone:1>"], &["unknown adapter `gone`", "--lora-dir"]);
    refused(root, &["generate", "a cat", "--lora", "sd15.safetensors:much"], &["weight must be a number"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    put(root, "pictures/a.png", png(128, 128));
    put(root, "file", "in the way");
    refused(
        root,
        &["train", "pictures", "--out", "file/style.safetensors"],
        &["hint: a part of the path is a file"],
    );
    refused(root, &["train", "pictures", "--out", "pictures"], &["is a folder, expected a file name"]);
    refused(root, &["generate", "a cat", "--out", "file/out"], &["hint: a part of the path is a file"]);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "in the way");
    // What fails before there is a picture leaves no folder, and temporary names are nobody's business.
    refused(root, &["generate", "a cat", "--lora", "gone.safetensors", "--out", "new/deep"], &["gone"]);
    assert!(!root.join("new").exists());
    if cfg!(target_os = "linux") {
        let run = scumble(root).args(["generate", "a cat", "--out", "/proc"]).assert().code(1);
        run.stderr(contains("error: /proc: ").and(contains(".scumble-").not()));
    }
}

#[test]
fn outputs_whose_names_mislead() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    put(root, "pictures/a.png", png(128, 128));
    put(root, "a.safetensors", "not looked at yet");
    let file = "expected a name that ends in `.safetensors`, found";
    for (arguments, words) in [
        (&["train", "pictures", "--out", "x.ckpt"][..], [file, "hint: write to x.safetensors"]),
        (&["merge", "a.safetensors", "-o", "c.ckpt"], [file, "`.ckpt`"]),
        (&["merge", "a.safetensors", "-o", "v1.5"], [file, "hint: write to v1.5.safetensors"]),
        (&["resize", "a.safetensors", "--rank", "1", "-o", "c"], [file, "no ending"]),
        (&["convert", "a.safetensors", "--to", "comfy", "-o", "c.pt"], [file, "`.pt`"]),
        (&["extract", "--from", "mini", "--base", "mini", "-o", "c.bin"], [file, "`.bin`"]),
        (
            &["convert", "a.safetensors", "--to", "peft", "-o", "c.safetensors"],
            ["expected the name of a folder, found `.safetensors`", "hint: write to c"],
        ),
        (
            &["bake", "--model", "mini", "-l", "a.safetensors", "-o", "c.ckpt"],
            [
                "expected the name of a folder, found `.ckpt`",
                "hint: NAME.safetensors is written as a single file",
            ],
        ),
    ] {
        refused(root, arguments, &words);
    }
    assert!(["x.ckpt", "c.ckpt", "c", "v1.5"].iter().all(|name| !root.join(name).exists()));
}

/// A file size limit stands in for a full disk: the write fails in the middle all the same.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_half_file() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    put(root, "pictures/a.png", png(128, 128));
    let binary = assert_cmd::cargo::cargo_bin("scumble");
    let script = r#"trap "" XFSZ; ulimit -f 16; exec "$@""#;
    let run = Command::new("sh")
        .current_dir(root)
        .args(["-c", script, "sh"])
        .arg(binary)
        .args(["train", "pictures", "--steps", "1", "--rank", "64", "--save-dtype", "f32"])
        .assert();
    run.code(1)
        .stderr(contains("style.safetensors").and(contains("hint: free some space")))
        .stderr(contains(".scumble-").not());
    let left: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["pictures"]);
}

#[test]
fn pictures_without_a_recipe_cannot_be_repeated() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "plain.png", png(128, 128));
    refused(
        dir.path(),
        &["generate", "--from", "plain.png"],
        &["plain.png: the picture has no recipe in it"],
    );
    refused(dir.path(), &["generate", "--from", "gone.png"], &["gone.png"]);
}

/// Nobody ever writes into these.
#[cfg(unix)]
#[test]
fn pipes_in_the_place_of_pictures() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    put(root, "mixed/good.png", png(64, 64));
    for pipe in ["mixed/pipe.png", "pipe.png"] {
        assert!(std::process::Command::new("mkfifo").arg(root.join(pipe)).status().unwrap().success());
    }
    let check = scumble(root).args(["train", "mixed", "--check"]).assert().success();
    let said = [check.get_output().stdout.clone(), check.get_output().stderr.clone()].concat();
    assert!(String::from_utf8_lossy(&said).contains("pipe.png: is not a regular file"));
    refused(root, &["generate", "a cat", "--init", "pipe.png"], &["pipe.png: is not a regular file"]);
    refused(root, &["generate", "--from", "pipe.png"], &["pipe.png: is not a regular file"]);
}

#[test]
fn errors_are_json_too_and_name_the_file() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "page.safetensors", "<!DOCTYPE html><html>sign in</html>");
    put(dir.path(), "mix.toml", "[[adapter]]\nfile = \"a\"\nweight = \"x\"");
    let error = |more: &[&str]| {
        let run = scumble(dir.path()).args(["generate", "cat", "--json"]).args(more).assert().code(1);
        let said = String::from_utf8(run.get_output().stdout.clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(line["event"], "error");
        line
    };
    let usage = error(&["--stesp", "2"]);
    assert!(usage["message"].as_str().is_some_and(|message| message.contains("--stesp")), "{usage}");
    assert!(usage["path"].is_null());
    for (option, file) in [
        ("--lora", "page.safetensors"),
        ("--lora", "gone.safetensors"),
        ("--blend", "mix.toml"),
        ("--from", "gone.png"),
        ("--init", "page.safetensors"),
    ] {
        assert_eq!(error(&[option, file])["path"], file, "{option}");
    }
    assert!(error(&["--size", "100x100"])["path"].is_null());
}
