//! What adapters' files hold, whether they fit a model, and a folder of thousands of them: by the binary.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use predicates::{prelude::PredicateBooleanExt as _, str::contains};
use safetensors::{Dtype, tensor::TensorView};
use scumble::{
    models::{ClipTextModel, UNet2DConditionModel, family},
    weights::{Component, Family, export::ldm_keys},
};
use serde_json::Value;
use tempfile::TempDir;

/// kohya's and diffusers' files of the same tiny SD 1 adapter differ in their names only.
const GOLDEN: &str = "tests/golden/adapter";
const KEY: &str = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";

fn repository(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn sample(name: &str) -> String {
    repository("sample-data/adapters").join(format!("{name}.safetensors")).display().to_string()
}

fn scumble(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("scumble").unwrap();
    command.current_dir(folder).env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.env("SCUMBLE_CACHE", folder.join("cache"));
    command
}

/// The JSON lines of a run, whatever its exit code.
fn json(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = scumble(folder).args(arguments).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| !matches!(line["event"].as_str(), Some("started" | "advanced" | "finished")))
        .collect()
}

/// Writes f16 tensors of ones.
fn put(path: &Path, keys: &[(&str, &[usize])], metadata: &[(&str, &str)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes: Vec<Vec<u8>> =
        keys.iter().map(|(_, shape)| [0x00, 0x3c].repeat(shape.iter().product())).collect();
    let views = keys
        .iter()
        .zip(&bytes)
        .map(|((key, shape), bytes)| (*key, TensorView::new(Dtype::F16, shape.to_vec(), bytes).unwrap()));
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// A layer of full-size SD 1 (768), SD 2 (1024) or SDXL (2048): down, up, alpha.
fn layer(path: &Path, width: usize, rank: usize, metadata: &[(&str, &str)]) {
    let (down, up, alpha) =
        (format!("{KEY}.lora_down.weight"), format!("{KEY}.lora_up.weight"), format!("{KEY}.alpha"));
    put(path, &[(&down, &[rank, width]), (&up, &[640, rank]), (&alpha, &[])], metadata);
}

/// Makes a file look old enough to be remembered.
fn age(path: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

fn names(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["name"].as_str().unwrap_or_default()).collect()
}

#[test]
fn inspect_tells_what_a_file_holds() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let found = &json(root, &["inspect", &sample("blueprint"), "--hash"])[0];
    assert_eq!((found["family"].as_str(), found["dialects"][0].as_str()), (Some("mini"), Some("kohya")));
    assert_eq!(found["algorithms"]["LoRA"], 129);
    assert_eq!(found["trigger_words"][0], "blueprint style");
    assert_eq!(found["trigger_words_stated"], false);
    assert_eq!((&found["recipe"]["steps"], &found["base_model"]), (&"400".into(), &"mini".into()));
    assert_eq!(found["blocks"][0]["ranks"], serde_json::json!([16]));
    assert_eq!(found["blocks"][0]["alphas"], serde_json::json!([16.0]));
    // The hash its writer computed.
    let data_hash = found["metadata"]["sshs_model_hash"].as_str().unwrap();
    assert_eq!(found["auto_v3"], data_hash[..12]);

    // Remembered; of another there is what its writer noted, and nothing of it is read.
    let text = scumble(root).args(["inspect", &sample("blueprint")]).assert().success();
    text.stdout(
        contains("trigger      blueprint style (in every caption)").and(contains("(AutoV2, the file)")),
    );
    let other = &json(root, &["inspect", &sample("riso")])[0];
    let noted = other["metadata"]["sshs_model_hash"].as_str().unwrap();
    assert_eq!((&other["auto_v3"], other["auto_v3_stated"].as_str()), (&Value::Null, Some(&noted[..12])));
    let stale = [("sshs_model_hash", "0123456789abcdef")];
    put(&root.join("stale.safetensors"), &[("lora_unet_a.lora_down.weight", &[1, 2])], &stale);
    let warned = scumble(root).args(["inspect", "stale.safetensors", "--hash"]).assert().success();
    warned.stdout(contains("`sshs_model_hash` (0123456789ab…) is of other weights"));

    fs::write(root.join("page.safetensors"), "<!DOCTYPE html>").unwrap();
    let two = scumble(root).args(["inspect", "page.safetensors", &sample("riso")]).assert();
    two.code(1)
        .stdout(contains("riso print style"))
        .stderr(contains("a web page").and(contains("1 of 2 files failed")));
}

#[test]
fn inspect_reads_folders_of_pefts() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let module = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k";
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    put(&root.join("style/adapter_model.safetensors"), &[(&a, &[4, 1024]), (&b, &[640, 4])], &[]);
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["to_k"]}"#;
    fs::write(root.join("style/adapter_config.json"), config).unwrap();
    let found = &json(root, &["inspect", "style", "--full"])[0];
    assert_eq!((found["family"].as_str(), found["modules"][0]["alpha"].as_f64()), (Some("sd2"), Some(2.0)));
    fs::create_dir(root.join("style/unet")).unwrap();
    fs::copy(root.join("style/adapter_model.safetensors"), root.join("style/unet/adapter_model.safetensors"))
        .unwrap();
    let listed = json(root, &["library", "."]);
    assert_eq!((names(&listed), listed[0]["family"].as_str()), (vec!["style", "style/unet"], Some("sd2")));
    assert_eq!(names(&json(root, &["library", ".", "--similar", "style"])), ["style", "style/unet"]);
}

/// What a layer's change is must follow from the files alone.
#[test]
fn check_measures_every_layer() {
    let dir = TempDir::new().unwrap();
    let found = &json(dir.path(), &["check", &sample("riso"), "--model", "mini"])[0];
    assert_eq!((&found["passed"], &found["coverage"]), (&true.into(), &1.0.into()));
    let changes = found["changes"].as_array().unwrap();
    assert_eq!(changes.len(), found["layers"].as_u64().unwrap() as usize);
    let relative: Vec<f64> = changes.iter().map(|c| c["relative"].as_f64().unwrap()).collect();
    assert!(relative.is_sorted_by(|a, b| a >= b) && relative[0] > 0.0, "{relative:?}");

    let adapter = candle_core::safetensors::load(sample("riso"), &Device::Cpu).unwrap();
    let base = repository("sample-data/mini/unet/diffusion_pytorch_model.safetensors");
    let base = candle_core::safetensors::load(base, &Device::Cpu).unwrap();
    let worst = changes[0]["layer"].as_str().unwrap().strip_prefix("unet.").unwrap();
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let matrix = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_from(1).unwrap();
    let part = |end: &str| matrix(&adapter[&format!("lora_unet_{}.{end}.weight", worst.replace('.', "_"))]);
    let change = norm(&part("lora_up").matmul(&part("lora_down")).unwrap());
    let expected = change / norm(&matrix(&base[&format!("{worst}.weight")]));
    assert!((relative[0] / f64::from(expected) - 1.0).abs() < 1e-4, "{} is not {expected}", relative[0]);
}

/// The embedded model is a family of its own, not a kind of SD 1.
#[test]
fn mini_goes_by_its_name() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let riso = sample("riso");
    let check = |more: &[&str]| scumble(root).args([&["check", &riso], more].concat()).assert();
    check(&["--family", "mini"]).success().stdout(contains("(100.0 %)"));
    check(&["--family", "sd1"]).code(1).stdout(contains("was trained for mini"));
    check(&[]).success().stderr(contains("for mini"));
    let inspect = scumble(root).args(["inspect", &riso]).assert().success();
    inspect.stdout(contains("family       mini (").and(contains("warning").not()));
    layer(&root.join("xl.safetensors"), 2048, 4, &[]);
    let other = scumble(root).args(["generate", "cat", "--lora", "xl.safetensors"]).assert().code(1);
    other.stderr(contains("trained for SDXL").and(contains("the model is mini")));

    let pictures = repository("sample-data/riso").display().to_string();
    let train =
        ["train", &pictures, "--steps", "1", "--rank", "1", "--resolution", "64", "--out", "a.safetensors"];
    scumble(root).args(train).assert().success();
    let found = &json(root, &["inspect", "a.safetensors"])[0];
    assert_eq!(found["metadata"]["ss_base_model_version"], "scumble_mini");
    assert_eq!(found["metadata"]["modelspec.architecture"], "scumble-mini/lora");
    assert_eq!((&found["family"], &found["warnings"]), (&"mini".into(), &serde_json::json!([])));
}

#[test]
fn check_names_what_does_not_fit() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    layer(&root.join("good.safetensors"), 768, 4, &[]);
    layer(&root.join("xl.safetensors"), 2048, 4, &[]);
    let typed = KEY.replace("attn2_to_k", "attn2_tok");
    let (down, up) = (format!("{KEY}.lora_down.weight"), format!("{KEY}.lora_up.weight"));
    let (odd_down, odd_up) = (format!("{typed}.lora_down.weight"), format!("{typed}.lora_up.weight"));
    let keys: [(&str, &[usize]); 5] =
        [(&down, &[4, 768]), (&up, &[640, 4]), (&odd_down, &[4, 768]), (&odd_up, &[640, 4]), ("x.odd", &[1])];
    put(&root.join("typo.safetensors"), &keys, &[]);

    let check = |file: &str| scumble(root).args(["check", file, "--family", "sd1"]).assert();
    check("good.safetensors").success().stdout(contains("kohya, 3 of 3 keys applied (100.0 %)"));
    let nearest = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k";
    check("typo.safetensors")
        .code(1)
        .stdout(contains("2 of 5 keys applied (40.0 %)"))
        .stdout(contains(format!("`{odd_down}`: the model has no such layer; the nearest is `{nearest}`")))
        .stdout(contains("`x.odd`: the key ends in no known parameter name"))
        .stderr(contains("error: typo.safetensors does not fit"));
    check("xl.safetensors")
        .code(1)
        .stdout(contains("was trained for SDXL").and(contains("the model is SD 1.x")));

    let refused = &json(root, &["check", "xl.safetensors", "--family", "sd1"])[0];
    assert_eq!((&refused["applied"], &refused["coverage"]), (&0.into(), &0.0.into()));

    let lines = json(root, &["check", "good.safetensors", "typo.safetensors", "--family", "sd1"]);
    assert_eq!((&lines[0]["passed"], &lines[1]["passed"]), (&true.into(), &false.into()));
    assert_eq!(lines[1]["unmatched"].as_array().unwrap().len(), 3);
    // Without being told, the family that fits.
    scumble(root).args(["check", "good.safetensors"]).assert().success();
    let factors = [".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"].map(|end| format!("{KEY}{end}"));
    let shapes = [[640, 4], [4, 1024], [640, 4], [4, 1024]];
    let keys: Vec<(&str, &[usize])> =
        factors.iter().zip(&shapes).map(|(key, shape)| (key.as_str(), shape.as_slice())).collect();
    put(&root.join("loha.safetensors"), &keys, &[]);
    let loha = scumble(root).args(["check", "loha.safetensors"]).assert().success();
    loha.stderr(contains("for Stable Diffusion 2.x"));
}

/// A single file of the real SD 1's size, all zeros on the disk's side, but for ones in the weight that `KEY` changes.
fn full_size_checkpoint(path: &Path) {
    let configs = family::text_encoder_configs(Family::Sd1);
    let unet = UNet2DConditionModel::parameter_shapes(&family::unet_config(Family::Sd1)).unwrap();
    let text = ClipTextModel::parameter_shapes(&configs[0]).unwrap();
    let (mut header, mut at, mut ones) = (serde_json::Map::new(), 0, 0..0);
    for (component, shapes) in [(Component::Unet, unet), (Component::TextEncoder, text)] {
        let names: Vec<String> = shapes.keys().cloned().collect();
        for key in ldm_keys(Family::Sd1, component, &names).unwrap() {
            let shape = &shapes[&key.names[0]];
            let end = at + 2 * shape.elem_count();
            if key.names[0] == "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight" {
                ones = at..end;
            }
            let entry =
                serde_json::json!({ "dtype": "F16", "shape": shape.dims(), "data_offsets": [at, end] });
            header.insert(key.key, entry);
            at = end;
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
    file.seek(SeekFrom::Start((8 + header.len() + ones.start) as u64)).unwrap();
    file.write_all(&[0x00, 0x3c].repeat(ones.len() / 2)).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy_folder(&entry, &to);
        } else {
            fs::copy(&entry, &to).unwrap();
        }
    }
}

#[test]
fn check_takes_every_kind_of_model() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let tiny = repository("tests/golden/pipeline/sd1");
    let adapter = tiny.join("adapter.safetensors").display().to_string();
    let cached = root.join("hf/hub/models--owner--tiny");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    copy_folder(&tiny, &cached.join("snapshots").join(commit));
    fs::create_dir_all(cached.join("refs")).unwrap();
    fs::write(cached.join("refs/main"), commit).unwrap();
    let check = |file: &str, model: &str| json(root, &["check", file, "--model", model]).remove(0);
    let (folder, hub) = (check(&adapter, &tiny.display().to_string()), check(&adapter, "owner/tiny"));
    assert_eq!((&folder["passed"], &folder["coverage"]), (&true.into(), &1.0.into()));
    assert!(folder["changes"].as_array().unwrap().len() > 30);
    assert_eq!(folder, hub);

    full_size_checkpoint(&root.join("sd1.safetensors"));
    layer(&root.join("style.safetensors"), 768, 4, &[]);
    let single = check("style.safetensors", "sd1.safetensors");
    // alpha is 1, the rank 4, all numbers are 1: each of ΔW's is 4 / 4, as those of W.
    let relative = single["changes"][0]["relative"].as_f64().unwrap();
    assert!(single["passed"] == true && (relative - 1.0).abs() < 1e-6, "{single}");
    layer(&root.join("xl.safetensors"), 2048, 4, &[]);
    assert_eq!(check("xl.safetensors", "sd1.safetensors")["passed"], false);
}

/// The header is all that is read: a file of 20 GB takes as long as a small one.
#[test]
fn a_huge_file_is_listed_at_once() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let rank = 1 << 23;
    let (down, up) = (rank * 768 * 2, 640 * rank * 2);
    let header = serde_json::json!({
        format!("{KEY}.lora_down.weight"): { "dtype": "F16", "shape": [rank, 768], "data_offsets": [0, down] },
        format!("{KEY}.lora_up.weight"): { "dtype": "F16", "shape": [640, rank], "data_offsets": [down, down + up] },
    });
    let header = header.to_string();
    let path = root.join("huge.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    File::options().write(true).open(&path).unwrap().set_len((8 + header.len() + down + up) as u64).unwrap();
    let start = Instant::now();
    let listed = json(root, &["library", "."]);
    let inspected = json(root, &["inspect", "huge.safetensors"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!((names(&listed), listed[0]["family"].as_str()), (vec!["huge"], Some("sd1")));
    assert_eq!(inspected[0]["bytes"].as_u64(), Some((8 + header.len() + down + up) as u64));
}

#[test]
fn a_library_is_searched_filtered_and_sorted() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let library = root.join("loras");
    layer(&library.join("sd1/Fox Style.safetensors"), 768, 8, &[("modelspec.trigger_phrase", "sks fox")]);
    layer(
        &library.join("sdxl/snow.safetensors"),
        2048,
        4,
        &[("ss_tag_frequency", r#"{"a":{"Fox":3,"ice":2}}"#)],
    );
    layer(&library.join("old.safetensors"), 1024, 2, &[("ss_output_name", "winter_v2")]);
    fs::write(library.join("login.safetensors"), "<html>").unwrap();
    fs::write(library.join("notes.txt"), "not listed").unwrap();
    layer(&library.join(".trash/gone.safetensors"), 768, 4, &[]);

    let list = |more: &[&str]| json(root, &[&["library", "loras"], more].concat());
    let all = list(&[]);
    assert_eq!(all.len(), 4);
    let broken: Vec<&Value> = all.iter().filter(|line| line["event"] == "broken").collect();
    assert!(broken[0]["reason"].as_str().unwrap().starts_with("is a web page"), "{broken:?}");
    for (search, expected) in [
        ("fox", vec!["Fox Style", "snow"]),
        ("SKS", vec!["Fox Style"]),
        ("ice fox", vec!["snow"]),
        ("winter", vec!["old"]),
        ("nothing like it", vec![]),
    ] {
        assert_eq!(names(&list(&["--search", search])), expected, "{search}");
    }
    assert_eq!(names(&list(&["--family", "sdxl"])), ["snow"]);
    assert_eq!(names(&list(&["--sort", "rank", "--top", "3"])), ["Fox Style", "snow", "old"]);
    assert_eq!(names(&list(&["--sort", "family", "--top", "3"])), ["Fox Style", "old", "snow"]);
    let text = scumble(root).args(["library", "loras"]).assert().success();
    text.stdout(contains("sks fox").and(contains("login").not()))
        .stderr(contains("warning: login.safetensors: is a web page"));
    scumble(root)
        .args(["library", "nowhere"])
        .assert()
        .code(1)
        .stderr(contains("there is no such file or folder"));
}

#[test]
fn an_index_is_good_until_a_file_changes() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let (a, b) = (root.join("loras/a.safetensors"), root.join("loras/b.safetensors"));
    layer(&a, 768, 4, &[]);
    layer(&b, 768, 4, &[]);
    age(&a, 1000);
    age(&b, 1000);
    let family = |name: &str| {
        let lines = json(root, &["library", "loras"]);
        let line = lines.iter().find(|line| line["name"] == name).unwrap();
        line["family"].as_str().unwrap_or_default().to_string()
    };
    let remembered = |n: usize| {
        let run = scumble(root).args(["library", "loras"]).assert().success();
        run.stderr(contains(format!("of 2 files shown, {n} remembered")));
    };
    remembered(0);
    remembered(2);
    // The same length and time: not read again. Then another time.
    let before = fs::metadata(&a).unwrap().modified().unwrap();
    layer(&a, 1024, 3, &[]);
    let length = fs::metadata(&b).unwrap().len();
    File::options().write(true).open(&a).unwrap().set_len(length).unwrap();
    File::options().write(true).open(&a).unwrap().set_modified(before).unwrap();
    assert_eq!(family("a"), "sd1");
    layer(&a, 1024, 4, &[]);
    age(&a, 500);
    assert_eq!((family("a"), family("b")), ("sd2".into(), "sd1".into()));
    remembered(2);

    // A damaged index costs time only, and so does one that cannot be written.
    let index = fs::read_dir(root.join("cache/libraries")).unwrap().next().unwrap().unwrap().path();
    for damaged in ["", "{", r#"{"version":1,"files":{"a.safetensors":7}}"#] {
        fs::write(&index, damaged).unwrap();
        remembered(0);
        remembered(2);
    }
    fs::remove_dir_all(root.join("cache")).unwrap();
    fs::write(root.join("cache"), "in the way").unwrap();
    remembered(0);
}

#[test]
fn the_most_similar_is_what_was_made_of_it() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let library = root.join("loras");
    fs::create_dir(&library).unwrap();
    for name in ["blueprint", "riso", "stained-glass"] {
        fs::copy(sample(name), library.join(format!("{name}.safetensors"))).unwrap();
    }
    // A copy with noise of a tenth of each tensor's size, at a third of the strength.
    let tensors = candle_core::safetensors::load(sample("riso"), &Device::Cpu).unwrap();
    let noised: HashMap<String, Tensor> = tensors
        .into_iter()
        .map(|(key, tensor)| {
            let tensor = tensor.to_dtype(DType::F32).unwrap();
            if key.ends_with(".alpha") {
                return (key, (tensor / 3.0).unwrap());
            }
            let n = tensor.elem_count();
            let wave: Vec<f32> = (0..n).map(|i| (i as f32 * 7.31 + key.len() as f32).sin()).collect();
            let wave = Tensor::from_vec(wave, tensor.shape(), &Device::Cpu).unwrap();
            let size = (tensor.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
            (key, (tensor + (wave * (0.1 * f64::from(size))).unwrap()).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&noised, library.join("copy.safetensors")).unwrap();
    layer(&library.join("other.safetensors"), 768, 4, &[]);
    let resize = ["resize", &sample("riso"), "--rank", "8", "--out", "loras/small.safetensors"];
    scumble(root).args(resize).assert().success();

    let found = json(root, &["library", "loras", "--similar", &sample("riso")]);
    assert_eq!(found.len(), 5, "only those of the same family");
    let of = |i: usize, key: &str| found[i][key].as_f64().unwrap();
    assert_eq!(names(&found)[0], "riso");
    assert!((of(0, "similarity") - 1.0).abs() < 1e-4 && (of(0, "cosine") - 1.0).abs() < 1e-4);
    let mut made_of_it = names(&found)[1..3].to_vec();
    made_of_it.sort_unstable();
    assert_eq!(made_of_it, ["copy", "small"], "{found:?}");
    assert!(of(2, "similarity") > 0.85 && of(2, "cosine") > 0.85, "{found:?}");
    assert!(of(3, "similarity") < 0.7 && of(3, "cosine") < 0.5, "{found:?}");
}

#[test]
fn the_two_spellings_of_one_adapter_are_the_same() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let file = |name: &str| repository(GOLDEN).join(name).display().to_string();
    let found: Vec<Value> = ["sd1_kohya.safetensors", "sd1_diffusers.safetensors"]
        .iter()
        .flat_map(|name| json(root, &["inspect", &file(name)]))
        .collect();
    assert_eq!(found[0]["blocks"], found[1]["blocks"]);
    assert_eq!(found[0]["trained"], found[1]["trained"]);
}

#[test]
fn a_file_for_another_kind_of_model_is_called_so() {
    let dir = TempDir::new().unwrap();
    let flux = repository("tests/hostile/adapter/foreign_flux.safetensors").display().to_string();
    let refused = scumble(dir.path()).args(["check", &flux]).assert().code(1);
    refused.stderr(contains("foreign_flux.safetensors: belongs to Flux"));
}
