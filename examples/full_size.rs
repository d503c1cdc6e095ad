//! Loads a model as every command does, then draws a picture in one step or trains one step, and prints seconds and
//! peak memory: `cargo run --release --example full_size -- MODEL generate|train [f32|f16|bf16] [pixels]`.
//! On the processor `f16` and `bf16` hold the weights as they are stored and widen them layer by layer.

use std::{fs, path::Path, time::Instant};

use candle_core::Device;
use scumble::{
    Error, Result,
    device::Precision,
    files,
    pipeline::{GenerateRequest, Pipeline},
    progress::{CancelToken, Event, Stage},
    training::{TrainConfig, Trainer},
    weights::{ModelSource, OpenOptions},
};
use sha2::{Digest as _, Sha256};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "mini".into());
    let train = args.next().is_some_and(|what| what == "train");
    let dtype = args.next().unwrap_or_else(|| "f32".into());
    let side_px = args.next().and_then(|n| n.parse().ok()).unwrap_or(256);
    if train { train_step(&model, &dtype, side_px) } else { draw(&model, &dtype, side_px) }
}

fn draw(model: &str, dtype: &str, side_px: usize) -> Result<()> {
    let (start, cancel) = (Instant::now(), CancelToken::default());
    let checkpoint = ModelSource::parse(model)?.open(&OpenOptions::default(), &mut (), &cancel)?;
    let dtype = dtype.parse::<Precision>()?.dtype(&Device::Cpu);
    let mut pipeline = Pipeline::load(&checkpoint, &Device::Cpu, dtype)?;
    drop(checkpoint);
    report(&format!("{} loaded in {dtype:?}", pipeline.family), start);
    let request = GenerateRequest {
        steps: 1,
        size_px: Some((side_px, side_px)),
        ..GenerateRequest::new("a lighthouse")
    };
    let start = Instant::now();
    let picture = pipeline.generate(&request, &mut (), &cancel)?.remove(0).image;
    let hash = format!("{:x}", Sha256::digest(picture.as_raw()));
    report(
        &format!("one step at {side_px} px, with guidance, and decoding (picture {})", &hash[..10]),
        start,
    );
    Ok(())
}

fn train_step(model: &str, dtype: &str, side_px: usize) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("scumble-full-size-{}", std::process::id()));
    let images = folder.join("images");
    files::create_folder(&images)?;
    for file in ["fox.jpg", "fox.txt"] {
        let from = Path::new("sample-data/blueprint").join(file);
        fs::copy(&from, images.join(file)).map_err(|e| Error::io(&from, e))?;
    }
    let config = TrainConfig {
        model: model.into(),
        images,
        out: folder.join("step.safetensors"),
        steps: 1,
        resolution: u32::try_from(side_px).ok(),
        dtype: dtype.into(),
        ..TrainConfig::default()
    };
    let mut start = Instant::now();
    let mut observer = |event: &Event<'_>| match event {
        Event::Finished { stage: Stage::Load } => report("loaded", start),
        Event::Started { stage: Stage::Train, .. } => {
            report("pictures and captions encoded", start);
            start = Instant::now();
        }
        Event::Loss { loss, .. } => report(&format!("training step at {side_px} px, loss {loss:.3}"), start),
        _ => {}
    };
    Trainer::new(config)?.run(&mut observer, &CancelToken::default())?;
    fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))
}

/// The peak of all memory the process had, mapped files included, and what it has of its own now.
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
fn report(what: &str, start: Instant) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line =
        |key: &str| status.lines().find(|l| l.starts_with(key)).unwrap_or("unknown").replace('\t', " ");
    println!("{what}: {:.1} s, {}, {}", start.elapsed().as_secs_f64(), line("VmHWM"), line("RssAnon"));
}
