//! The embedded model draws what diffusers draws with it, plain and with an adapter that scumble trained.
//! `tests/golden/mini/make_golden.py` drew the expectations.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use image::RgbImage;
use scumble::{
    Error, Result,
    adapter::{Blend, LoadOptions, Strength},
    diffusion::{Sampler, SigmaSchedule},
    pipeline::{GenerateRequest, Pipeline},
    progress::CancelToken,
    weights::{Checkpoint, reader::SafetensorsFile},
};
use sha2::{Digest as _, Sha256};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mini").join(name)
}

fn picture(name: &str) -> RgbImage {
    image::open(golden(name)).expect("a committed picture").to_rgb8()
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
    let text =
        std::fs::read_to_string(golden("request.json")).map_err(|e| Error::io(golden("request.json"), e))?;
    let stated: serde_json::Value = serde_json::from_str(&text).expect("the request that was drawn");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/mini");
    for (component, hash) in stated["weights"].as_object().expect("a hash for each file") {
        let file = std::fs::read_dir(folder.join(component)).expect("the model").flatten();
        let file = file.map(|f| f.path()).find(|p| p.extension().is_some_and(|e| e == "safetensors"));
        let file = SafetensorsFile::read(file.expect("the weights"))?;
        let found = format!("{:x}", Sha256::digest(file.file_bytes()));
        assert_eq!(Some(found.as_str()), hash.as_str(), "{component} has changed: run make_golden.py again");
    }

    let mut pipeline = Pipeline::load(&Checkpoint::open_folder(folder, None)?, &Device::Cpu, DType::F32)?;
    let noise = SafetensorsFile::read(golden("noise.safetensors"))?.tensor("noise")?;
    let text = |key: &str| stated[key].as_str().unwrap_or_default().to_string();
    let request = GenerateRequest {
        negative: text("negative"),
        steps: stated["steps"].as_u64().expect("a number") as usize,
        cfg_scale: stated["cfg_scale"].as_f64(),
        sampler: Sampler::Ddim,
        schedule: SigmaSchedule::Normal,
        noise: Some(noise.permute((0, 2, 3, 1))?.contiguous()?),
        ..GenerateRequest::new(text("prompt"))
    };
    let base = pipeline.generate(&request, &mut (), &CancelToken::default())?.remove(0).image;
    let adapter = pipeline.load_adapter(golden("adapter.safetensors"), &LoadOptions::default())?;
    pipeline.set_blend(Blend::new().with("adapter", adapter, Strength::default()))?;
    let adapted = pipeline.generate(&request, &mut (), &CancelToken::default())?.remove(0).image;

    let (plain, styled) = (psnr(&base, &picture("base.png")), psnr(&adapted, &picture("adapted.png")));
    assert!(plain >= 45.0, "plain: {plain:.1} dB");
    assert!(styled >= 40.0, "with the adapter: {styled:.1} dB");
    assert!(psnr(&base, &adapted) < 30.0, "the adapter must matter");
    Ok(())
}
