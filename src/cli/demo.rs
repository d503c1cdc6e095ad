//! `scumble demo`: the whole path in a few minutes, with nothing but the program itself.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde_json::json;

use super::{Context, output, setup, shell::quoted};
use crate::{
    adapter::{Blend, LoadOptions, Strength},
    diffusion::{Sampler, SigmaSchedule},
    error::{Error, Result},
    files::{self, OutputLock},
    pipeline::{
        GenerateRequest,
        sheet::{self, Sheet},
    },
    progress::{Event, Observer as _, Stage},
    training::{TrainConfig, TrainOutcome, Trainer, UnetLayers, state_path},
};

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// blueprint, stained-glass or riso
    #[arg(long, default_value = "blueprint")]
    pub style: String,
    /// The folder for the adapter and the pictures
    #[arg(long, short, default_value = "scumble-demo")]
    pub out: PathBuf,
    /// Optimizer steps: more is closer to the style
    #[arg(long, default_value_t = 400)]
    pub steps: u64,
    /// Denoising steps of each picture
    #[arg(long, default_value_t = 20, hide = true)]
    pub draw_steps: usize,
    /// All randomness follows from it
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Replace an earlier demo that is finished
    #[arg(long)]
    pub force: bool,
}

/// A built-in style: its folder under `sample-data/`, the words that call it, its pictures.
struct Style {
    name: &'static str,
    trigger: &'static str,
    pictures: &'static [(&'static str, &'static [u8])],
}

/// The pictures of a folder, compiled in.
macro_rules! pictures {
    ($folder:literal: $($word:literal)*) => {
        &[$((
            $word,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data/", $folder, "/", $word, ".jpg")),
        )),*]
    };
}

/// The same subjects in every folder.
macro_rules! style {
    ($folder:literal, $trigger:literal) => {
        Style {
            name: $folder,
            trigger: $trigger,
            pictures: pictures!($folder: "airplane" "apple" "banana" "butterfly" "cactus" "car" "cup" "dog" "fish"
                "fox" "guitar" "house" "lemon" "lion" "moon" "mushroom" "owl" "rabbit" "rocket" "star" "sunflower"
                "tree" "turtle" "umbrella"),
        }
    };
}

static STYLES: [Style; 3] = [
    style!("blueprint", "blueprint style"),
    style!("stained-glass", "stained glass style"),
    style!("riso", "riso print style"),
];

/// Subjects that no style was trained on come first: the style has to carry over.
const SUBJECTS: [&str; 4] = ["frog", "penguin", "strawberry", "house"];
/// Columns of the picture: the style's weight, 0 being the base model.
const WEIGHTS: [f64; 3] = [0.0, 0.5, 1.0];

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let style = STYLES.iter().find(|s| s.name == args.style);
    let style = style.ok_or_else(|| Error::unknown("style", &args.style, STYLES.iter().map(|s| s.name)))?;
    let path = args.out.join(format!("{}.png", style.name));
    let _lock = OutputLock::take(&path)?;
    let adapter = args.out.join(format!("{}.safetensors", style.name));
    if !state_path(&adapter).exists() {
        output::refuse_replacing(&adapter, args.force)?;
    }
    let images = unpack(style, args)?;
    context.console.note(&format!(
        "training the style `{}` from {} pictures on the built-in model",
        style.name,
        style.pictures.len()
    ));
    train(args, &images, &adapter, context)?;
    let sheet = draw(args, style, &adapter, context).inspect_err(|e| {
        if e.is_cancelled() {
            let lora = quoted(&format!("{}:0.8", adapter.display()));
            let prompt = quoted(&format!("owl, {}", style.trigger));
            context.console.close();
            context
                .console
                .note(&format!("the adapter is finished: scumble generate {prompt} --lora {lora}"));
        }
    })?;
    context.console.close();
    sheet::write_png(&path, &sheet)?;
    let object = json!({ "event": "demo", "picture": path, "adapter": adapter, "images": images });
    context.console.result(&path.display().to_string(), &object);
    next_steps(args, style, (&images, &adapter), context);
    Ok(())
}

fn next_steps(args: &Args, style: &Style, (images, adapter): (&Path, &Path), context: &Context) {
    let sheet = args.out.join(format!("{}.png", style.name));
    let prompt = quoted(&format!("owl, {}", style.trigger));
    let (lora, out) = (quoted(&format!("{}:0.8", adapter.display())), quoted(&args.out.to_string_lossy()));
    for line in [
        format!("{} shows each prompt without the style, at half and at full weight", sheet.display()),
        "try next:".into(),
        format!("  scumble generate {prompt} --lora {lora} --count 4 --out {out}"),
        format!(
            "  scumble train {} --out my-style.safetensors --steps 800 --batch-size 4 --lr 5e-3 --layers attention,feed_forward,projection,convolution",
            quoted(&images.to_string_lossy())
        ),
        "  scumble train ./my-pictures --model sd15 --out my-style.safetensors".into(),
    ] {
        context.console.note(&line);
    }
}

/// Writes a style's pictures and captions where the user can look at them and train on them again.
fn unpack(style: &Style, args: &Args) -> Result<PathBuf> {
    let folder = args.out.join(style.name);
    let write = |name: String, bytes: &[u8]| {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        output::refuse_replacing(&path, args.force)?;
        files::write_bytes(path, bytes)
    };
    for (word, bytes) in style.pictures {
        write(format!("{word}.jpg"), bytes)?;
        write(format!("{word}.txt"), format!("{word}, {}\n", style.trigger).as_bytes())?;
    }
    Ok(folder)
}

/// Settings found by trying: every kind of layer and a high learning rate, because the built-in model is small, the
/// styles are far from it, and a few hundred steps (about 80 s of processor time) must do.
fn config(args: &Args, images: &Path, out: &Path) -> TrainConfig {
    TrainConfig {
        images: images.to_path_buf(),
        out: out.to_path_buf(),
        // A demo that was stopped goes on by itself.
        resume: state_path(out).exists(),
        steps: args.steps,
        batch_size: 4,
        rank: 16,
        layers: UnetLayers::ALL.into(),
        learning_rate: 5e-3,
        seed: args.seed,
        gradient_checkpointing: false,
        ..TrainConfig::default()
    }
}

fn train(args: &Args, images: &Path, out: &Path, context: &mut Context) -> Result<()> {
    let mut config = config(args, images, out);
    if let Some(device) = context.global.device {
        config.device = device.to_string();
    }
    if let Some(dtype) = context.global.dtype {
        config.dtype = dtype.to_string();
    }
    match Trainer::new(config)?.run(&mut context.console, &context.cancel)? {
        TrainOutcome::Finished { .. } => Ok(()),
        TrainOutcome::Cancelled { adapter, checkpoint, step } => {
            let (total, out) = (args.steps, args.out.display());
            context.console.close();
            if context.console.is_json() {
                let line =
                    json!({ "event": "cancelled", "path": adapter, "checkpoint": checkpoint, "step": step });
                context.console.data(&line.to_string());
            }
            context.console.note(&format!(
                "stopped after step {step} of {total}; what was learned is kept in {out}, and the same command goes on from there"
            ));
            Err(Error::Cancelled)
        }
    }
}

fn draw(args: &Args, style: &Style, adapter: &Path, context: &mut Context) -> Result<RgbImage> {
    let (mut pipeline, _) = setup::open_model("mini", context)?;
    let adapter = pipeline.load_adapter(adapter, &LoadOptions::default())?;
    let (stage, total) = (Stage::Sample, (WEIGHTS.len() * SUBJECTS.len()) as u64);
    context.console.observe(&Event::Started { stage, total });
    let mut cells = Vec::new();
    for weight in WEIGHTS {
        let blend = Blend::new().with(style.name, adapter.clone(), Strength::uniform(weight));
        pipeline.set_blend(blend)?;
        for subject in SUBJECTS {
            let request = GenerateRequest {
                prompt: format!("{subject}, {}", style.trigger),
                steps: args.draw_steps,
                sampler: Sampler::Dpmpp2m,
                schedule: SigmaSchedule::Karras,
                seed: args.seed,
                ..GenerateRequest::default()
            };
            // One bar for all of them, not twelve.
            let pictures = pipeline.generate(&request, &mut (), &context.cancel)?;
            cells.extend(pictures.into_iter().map(|p| p.image));
            context.console.observe(&Event::Advanced { stage, done: cells.len() as u64, total });
        }
    }
    context.console.observe(&Event::Finished { stage });
    let label = |weight: f64| if weight == 0.0 { "base".to_owned() } else { format!("style {weight:.1}") };
    let (columns, rows) = (WEIGHTS.map(label), SUBJECTS.map(str::to_owned));
    // Drawn a weight at a time, shown a subject a row.
    let turned = (0..SUBJECTS.len()).flat_map(|row| cells.iter().skip(row).step_by(SUBJECTS.len()).cloned());
    let cells: Vec<RgbImage> = turned.collect();
    Ok(Sheet { columns: &columns, rows: &rows, cell_px: (256, 256), title: "" }.draw(&cells))
}
