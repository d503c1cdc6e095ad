//! What a style learns: its adapter makes the embedded model predict the noise on pictures of that style better, those
//! it was not trained on too, and not on pictures of another.

#![expect(clippy::print_stdout, reason = "the losses measured, for `--nocapture`")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use image::imageops::{self, FilterType};
use scumble::{
    Error, Result,
    adapter::{Blend, LoadOptions, Strength},
    models::UNetInput,
    pipeline::{Pipeline, text::TextOptions},
    progress::CancelToken,
    random::{Rng, Stream},
    training::{LrShape, TrainConfig, Trainer, UnetLayers, loss::weighted_mse},
    weights::embedded,
};

const STYLES: [&str; 3] = ["blueprint", "stained-glass", "riso"];
const TIMESTEPS: [usize; 2] = [300, 700];
/// Kept from the training below.
const UNSEEN: [&str; 6] = ["fox", "house", "owl", "rocket", "tree", "turtle"];

fn sample_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data")
}

fn mini() -> Result<Pipeline> {
    Pipeline::load(&embedded::open()?, &Device::Cpu, DType::F32)
}

/// Pictures of one style with their captions.
struct Pictures {
    /// (b, h, w, c)
    latents: Tensor,
    captions: Vec<String>,
}

impl Pictures {
    fn read(pipeline: &Pipeline, style: &str, subjects: &[&str], side_px: u32) -> Result<Self> {
        let (mut latents, mut captions) = (Vec::new(), Vec::new());
        for subject in subjects {
            let path = sample_data().join(style).join(subject);
            let picture = image::open(path.with_extension("jpg")).expect("a committed picture").to_rgb8();
            let picture = imageops::resize(&picture, side_px, side_px, FilterType::CatmullRom);
            latents.push(pipeline.encode_picture(&picture)?);
            let caption = fs::read_to_string(path.with_extension("txt")).map_err(|e| Error::io(path, e))?;
            captions.push(caption.trim().to_string());
        }
        Ok(Self { latents: Tensor::cat(&latents, 0)?, captions })
    }

    /// The mean squared error of the predicted noise, with the same noise in every call.
    fn loss(&self, pipeline: &mut Pipeline) -> Result<f64> {
        let context = self.captions.iter().map(|c| pipeline.text.encode(c, 1, TextOptions::default()));
        let context = context.map(|c| Ok(c?.context)).collect::<Result<Vec<_>>>()?;
        let (context, schedule, b) = (Tensor::cat(&context, 0)?, &pipeline.schedule, self.captions.len());
        let mut sum = 0.0;
        for timestep in TIMESTEPS {
            let noise = Rng::new(5, Stream::TrainNoise, timestep as u64)
                .normal(self.latents.shape().clone(), &Device::Cpu)?;
            let timesteps = vec![timestep; b];
            let noisy = schedule.add_noise(&self.latents, &noise, &timesteps)?;
            let target = schedule.prediction.target(schedule, &self.latents, &noise, &timesteps)?;
            let timesteps = Tensor::full(timestep as f32, b, &Device::Cpu)?;
            let prediction = pipeline.unet.forward(&UNetInput::new(&noisy, &timesteps, &context))?;
            sum += f64::from(weighted_mse(&prediction, &target, &vec![1.0; b])?.to_scalar::<f32>()?);
        }
        Ok(sum / TIMESTEPS.len() as f64)
    }
}

fn wear(pipeline: &mut Pipeline, adapter: &Path) -> Result<()> {
    let adapter = pipeline.load_adapter(adapter, &LoadOptions::default())?;
    pipeline.set_blend(Blend::new().with("style", adapter, Strength::default()))
}

/// A folder with the blueprints that are not kept from it.
fn training_folder() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
    let blueprint = sample_data().join("blueprint");
    for entry in fs::read_dir(&blueprint).map_err(|e| Error::io(&blueprint, e))?.flatten() {
        let path = entry.path();
        if path.file_stem().is_some_and(|stem| UNSEEN.iter().all(|unseen| stem != *unseen)) {
            fs::copy(&path, folder.path().join(entry.file_name())).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(folder)
}

#[test]
fn a_style_is_learned_and_nothing_else() -> Result<()> {
    let mut pipeline = mini()?;
    let side_px = 64;
    let blueprints = Pictures::read(&pipeline, "blueprint", &UNSEEN, side_px)?;
    let windows = Pictures::read(&pipeline, "stained-glass", &UNSEEN, side_px)?;
    let before = (blueprints.loss(&mut pipeline)?, windows.loss(&mut pipeline)?);

    let folder = training_folder()?;
    let config = TrainConfig {
        images: folder.path().into(),
        out: folder.path().join("out/blueprint.safetensors"),
        steps: 16,
        batch_size: 4,
        resolution: Some(side_px),
        learning_rate: 5e-3,
        lr_schedule: LrShape::Constant,
        layers: UnetLayers::ALL.into(),
        gradient_checkpointing: false,
        seed: 3,
        ..TrainConfig::default()
    };
    Trainer::with_model(config.clone(), &pipeline)?.run(&mut (), &CancelToken::default())?;

    wear(&mut pipeline, &config.out)?;
    let after = (blueprints.loss(&mut pipeline)?, windows.loss(&mut pipeline)?);
    // Measured: 0.54 and 1.02; with an earlier embedded model 0.64 and 1.17.
    let (own, other) = (after.0 / before.0, after.1 / before.1);
    println!("of the base's loss: {own:.2} on unseen blueprints, {other:.2} on stained glass");
    assert!(own < 0.9 && other > own + 0.2, "blueprints {own:.2}, stained glass {other:.2}");
    Ok(())
}

/// Of the three committed adapters, each helps its own style most, and each style is helped most by its own.
#[test]
fn committed_adapters_fit_their_styles() -> Result<()> {
    let mut pipeline = mini()?;
    let pictures = STYLES.map(|style| Pictures::read(&pipeline, style, &UNSEEN[..3], 128));
    let pictures = pictures.into_iter().collect::<Result<Vec<_>>>()?;
    let losses =
        |pipeline: &mut Pipeline| pictures.iter().map(|p| p.loss(pipeline)).collect::<Result<Vec<_>>>();
    let base = losses(&mut pipeline)?;
    println!("base {base:.4?}");
    let mut table = Vec::new();
    for style in STYLES {
        wear(&mut pipeline, &sample_data().join("adapters").join(style).with_extension("safetensors"))?;
        let with = losses(&mut pipeline)?;
        let change: Vec<f64> = with.iter().zip(&base).map(|(with, base)| with / base).collect();
        println!("with {style}: {with:.4?}, of the base's {change:.3?}");
        table.push(change);
    }
    // Measured: 0.10 to 0.17 of the base's loss on its own style, 1.0 to 2.2 on another.
    for (i, row) in table.iter().enumerate() {
        for (j, other) in row.iter().enumerate().filter(|(j, _)| *j != i) {
            let own = row[i];
            assert!(own < 0.8 && *other > 1.2 * own, "{}: {own:.2}, {other:.2} on {}", STYLES[i], STYLES[j]);
            let worn = table[j][i];
            assert!(worn > 1.2 * own, "{}: {own:.2}, {worn:.2} with {}", STYLES[i], STYLES[j]);
        }
    }
    Ok(())
}
