//! Draws a row of pictures that goes from one style to another by moving weights, without loading anything again:
//! `cargo run --release --example blend_two -- a.safetensors b.safetensors row.png`.

use candle_core::{DType, Device};
use image::{GenericImage as _, RgbImage};
use scumble::{
    Error, Result,
    adapter::{Blend, LoadOptions, Strength},
    pipeline::{GenerateRequest, Pipeline},
    progress::CancelToken,
    weights::source::{ModelSource, OpenOptions},
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (first, second, out) = match args.as_slice() {
        [a, b, out, ..] => (a.as_str(), b.as_str(), out.as_str()),
        _ => (
            "sample-data/adapters/blueprint.safetensors",
            "sample-data/adapters/riso.safetensors",
            "blend.png",
        ),
    };
    let steps = args.get(3).and_then(|n| n.parse().ok()).unwrap_or(20);

    let cancel = CancelToken::default();
    let checkpoint = ModelSource::parse("mini")?.open(&OpenOptions::default(), &mut (), &cancel)?;
    let mut pipeline = Pipeline::load(&checkpoint, &Device::Cpu, DType::F32)?;
    let first = pipeline.load_adapter(first, &LoadOptions::default())?;
    let second = pipeline.load_adapter(second, &LoadOptions::default())?;

    let request = GenerateRequest { steps, seed: 7, ..GenerateRequest::new("house") };
    let mut row: Option<RgbImage> = None;
    let columns = 5u32;
    for column in 0..columns {
        // The same adapters with other strengths: only one small vector per layer is rewritten.
        let t = f64::from(column) / f64::from(columns - 1);
        let blend = Blend::new().with("first", first.clone(), Strength::uniform(1.0 - t)).with(
            "second",
            second.clone(),
            Strength::uniform(t),
        );
        pipeline.set_blend(blend)?;
        for picture in pipeline.generate(&request, &mut (), &cancel)? {
            let (width, height) = picture.image.dimensions();
            let row = row.get_or_insert_with(|| RgbImage::new(width * columns, height));
            row.copy_from(&picture.image, column * width, 0).map_err(|e| Error::invalid(e.to_string()))?;
        }
    }
    match row {
        Some(row) => row.save(out).map_err(|e| Error::file(out, e.to_string())),
        None => Ok(()),
    }
}
