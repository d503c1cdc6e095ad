//! Draws one picture with the embedded model: `cargo run --release --example generate -- out.png "cat, flat icon"`.

use candle_core::{DType, Device};
use scumble::{
    Result,
    pipeline::{GenerateRequest, Pipeline},
    progress::CancelToken,
    weights::source::{ModelSource, OpenOptions},
};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let out = args.next().unwrap_or_else(|| "generate.png".into());
    let prompt = args.next().unwrap_or_else(|| "cat, flat icon, blue background".into());
    let steps = args.next().and_then(|n| n.parse().ok()).unwrap_or(25);

    let cancel = CancelToken::default();
    let checkpoint = ModelSource::parse("mini")?.open(&OpenOptions::default(), &mut (), &cancel)?;
    let mut pipeline = Pipeline::load(&checkpoint, &Device::Cpu, DType::F32)?;

    let request = GenerateRequest { steps, seed: 7, ..GenerateRequest::new(prompt) };
    for picture in pipeline.generate(&request, &mut (), &cancel)? {
        picture.image.save(&out).map_err(|e| scumble::Error::file(&out, e.to_string()))?;
    }
    Ok(())
}
