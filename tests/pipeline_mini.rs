//! The embedded model draws what diffusers draws with it: plain, with an adapter that scumble trained, and with every
//! file that scumble hands on. `tests/golden/mini/make_golden.py` and `tests/golden/handed_on/make_handed_on.py` drew
//! the expectations.

#![expect(clippy::print_stdout, reason = "how near the pictures are is worth showing")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use scumble::{
    Error, Result,
    adapter::{Adapter, Blend, LoadOptions, NameTable, Strength},
    diffusion::{Sampler, SigmaSchedule},
    pipeline::{GenerateRequest, Pipeline, layers},
    progress::CancelToken,
    weights::{Checkpoint, embedded, reader::SafetensorsFile},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(golden(name)).expect("a committed file");
    serde_json::from_str(&text).expect("JSON")
}

fn picture(name: &str) -> RgbImage {
    image::open(golden(name)).expect("a committed picture").to_rgb8()
}

/// From diffusers' (b, c, h, w).
fn noise(name: &str) -> Result<Tensor> {
    Ok(SafetensorsFile::read(golden(name))?.tensor("noise")?.permute((0, 2, 3, 1))?.contiguous()?)
}

fn stated_request(stated: &Value) -> Result<GenerateRequest> {
    let text = |key: &str| stated[key].as_str().unwrap_or_default().to_string();
    Ok(GenerateRequest {
        negative: text("negative"),
        steps: stated["steps"].as_u64().expect("a number") as usize,
        cfg_scale: stated["cfg_scale"].as_f64(),
        sampler: Sampler::Ddim,
        schedule: SigmaSchedule::Normal,
        noise: Some(noise("mini/noise.safetensors")?),
        ..GenerateRequest::new(text("prompt"))
    })
}

fn draw(pipeline: &mut Pipeline, request: &GenerateRequest) -> Result<RgbImage> {
    Ok(pipeline.generate(request, &mut (), &CancelToken::default())?.remove(0).image)
}

/// <https://en.wikipedia.org/wiki/Peak_signal-to-noise_ratio>, of 8-bit pictures.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.as_raw().len() as f64;
    20.0 * 255f64.log10() - 10.0 * mean.log10()
}

#[test]
fn the_embedded_model_draws_as_in_diffusers() -> Result<()> {
    let stated = json("mini/request.json");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/mini");
    for (component, hash) in stated["weights"].as_object().expect("a hash for each file") {
        let file = std::fs::read_dir(folder.join(component)).expect("the model").flatten();
        let file = file.map(|f| f.path()).find(|p| p.extension().is_some_and(|e| e == "safetensors"));
        let file = SafetensorsFile::read(file.expect("the weights"))?;
        let found = format!("{:x}", Sha256::digest(file.file_bytes()));
        assert_eq!(Some(found.as_str()), hash.as_str(), "{component} has changed: run make_golden.py again");
    }

    let mut pipeline = Pipeline::load(&Checkpoint::open_folder(folder, None)?, &Device::Cpu, DType::F32)?;
    let request = stated_request(&stated)?;
    let base = draw(&mut pipeline, &request)?;
    let adapter = pipeline.load_adapter(golden("mini/adapter.safetensors"), &LoadOptions::default())?;
    pipeline.set_blend(Blend::new().with("adapter", adapter, Strength::default()))?;
    let adapted = draw(&mut pipeline, &request)?;

    let (plain, styled) =
        (psnr(&base, &picture("mini/base.png")), psnr(&adapted, &picture("mini/adapted.png")));
    assert!(plain >= 45.0, "plain: {plain:.1} dB");
    assert!(styled >= 40.0, "with the adapter: {styled:.1} dB");
    assert!(psnr(&base, &adapted) < 30.0, "the adapter must matter");
    Ok(())
}

/// A file or folder that a subcommand wrote, and what `make_handed_on.py` knows of it.
#[derive(serde::Deserialize)]
struct Export {
    /// What it must draw; those without are steps on the way.
    picture: Option<String>,
    command: Vec<String>,
    out: String,
    /// Of names, shapes, numbers and PEFT's configs; only where they are the same on every processor.
    sha256: Option<String>,
}

impl Export {
    fn write(&self, folder: &Path) -> PathBuf {
        let arguments = self.command.iter().map(|a| a.replace("{repo}", env!("CARGO_MANIFEST_DIR")));
        let mut command = Command::cargo_bin("scumble").expect("the binary");
        command.current_dir(folder).env("HF_HUB_OFFLINE", "1").args(arguments).args(["-o", &self.out]);
        command.assert().success();
        folder.join(&self.out)
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.into()];
    }
    let inside = std::fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut all: Vec<PathBuf> = inside.flat_map(|inner| files(&inner)).collect();
    all.sort();
    all
}

fn content_hash(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files(path) {
        if path.extension().is_none_or(|e| e != "safetensors") {
            hash.update(std::fs::read(&path).map_err(|e| Error::io(&path, e))?);
            continue;
        }
        let file = SafetensorsFile::read(&path)?;
        hash.update(file.metadata().get("lora_adapter_metadata").map_or("", String::as_str));
        for (name, entry) in &file.header().tensors {
            let shape: Vec<String> = entry.shape.iter().map(ToString::to_string).collect();
            hash.update(format!("{name} {} {}\n", entry.dtype.name(), shape.join(",")));
            hash.update(file.tensor_bytes(name).unwrap_or_default());
        }
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// Two files of one adapter change every weight alike, whatever their spelling.
fn assert_same(a: &Adapter, b: &Adapter, table: &NameTable, what: &str) -> Result<()> {
    assert_eq!(a.layers.keys().collect::<Vec<_>>(), b.layers.keys().collect::<Vec<_>>(), "{what}");
    for (path, delta) in &a.layers {
        let shape = table.shape(path).expect("a layer of the model");
        let count = shape.iter().product::<usize>();
        let base = (Tensor::arange(1f32, count as f32 + 1.0, &Device::Cpu)?.reshape(shape)? / count as f64)?;
        let (one, other) = (delta.apply(&base, 1.0)?, b.layers[path].apply(&base, 1.0)?);
        let largest = |t: &Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
        let error = largest(&(&one - other)?)? / largest(&one)?;
        assert!(error < 1e-6, "{what}: {path} differs by {error:.1e}");
    }
    Ok(())
}

/// diffusers, peft and LyCORIS drew the expected pictures from just these files.
#[test]
fn what_is_handed_on_draws_the_same_elsewhere() -> Result<()> {
    let known = json("handed_on/exports.json");
    let request = json("mini/request.json");
    assert_eq!(known["weights"], request["weights"], "the model has changed: run make_handed_on.py again");
    let exports: Vec<Export> = serde_json::from_value(known["exports"].clone()).expect("a listing");
    let request = stated_request(&request)?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mini = embedded::open()?;
    let (mut pipeline, table) =
        (Pipeline::load(&mini, &Device::Cpu, DType::F32)?, layers::of_checkpoint(&mini)?);
    let mut firsts: BTreeMap<String, Arc<Adapter>> = BTreeMap::new();
    for export in &exports {
        let (path, out) = (export.write(folder.path()), &export.out);
        if let Some(expected) = &export.sha256 {
            assert_eq!(content_hash(&path)?, *expected, "{out} is not the file that was drawn elsewhere");
        }
        let Some(name) = export.picture.clone() else { continue };
        let drawn = if path.join("model_index.json").is_file() {
            let noise =
                (name == "baked-sdxl").then(|| noise("pipeline/sdxl/expected.safetensors")).transpose()?;
            let request = GenerateRequest { noise: noise.or(request.noise.clone()), ..request.clone() };
            draw(
                &mut Pipeline::load(&Checkpoint::open_folder(&path, None)?, &Device::Cpu, DType::F32)?,
                &request,
            )?
        } else if export.command[0] == "bake" {
            continue; // tests/adapter_bake.rs compares a single file's tensors with the folder's
        } else {
            let adapter = pipeline.load_adapter(&path, &LoadOptions::default())?;
            if let Some(first) = firsts.get(&name) {
                assert_same(first, &adapter, &table, out)?;
                continue;
            }
            firsts.insert(name.clone(), adapter.clone());
            pipeline.set_blend(Blend::new().with(&name, adapter, Strength::default()))?;
            draw(&mut pipeline, &request)?
        };
        let found = psnr(&drawn, &picture(&format!("handed_on/{name}.png")));
        println!("{out}: {found:.1} dB");
        assert!(found >= 40.0, "{out}: {found:.1} dB");
    }
    Ok(())
}
