//! `scumble train`: every option sets one key of the training configuration.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use super::{Context, numbers::whole, output, seed::Seed, setup::hinted, shell::quoted};
use crate::{
    dataset::{Dataset, ScanOptions, doctor, scan},
    error::{Error, Result},
    pipeline::{ModelSize, request::MAX_CLIP_SKIP, text::tokenizer},
    prompt::Tokenizer,
    training::{LrShape, TrainConfig, TrainOutcome, Trainer, UnetLayers, scan_options, state_path},
    weights::{Family, ModelSource, OpenOptions},
};

/// Options of `train`.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct Args {
    /// The folder of pictures: flat, or with folders named N_name (N repeats); captions in .txt or .caption files
    #[arg(required_unless_present = "config")]
    pub images: Option<PathBuf>,
    /// The adapter to write [default: style.safetensors]
    #[arg(long, short, value_name = "FILE", alias = "output")]
    pub out: Option<PathBuf>,
    /// mini, sd15, sdxl, a hub id (owner/name[@revision]), a diffusers folder, or a .safetensors file [default: mini]
    #[arg(long, short)]
    pub model: Option<String>,
    /// Read everything from a TOML file; options given here win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set any other key of the configuration, as often as you like: optimizer.beta1=0.95
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Only examine the pictures and captions
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "The run")]
struct RunArgs {
    /// Optimizer steps [default: 1000]
    #[arg(long, short, alias = "max-train-steps", value_parser = whole(1, u64::MAX))]
    steps: Option<u64>,
    /// Pictures the network sees at once [default: 1]
    #[arg(long, value_name = "N", alias = "train-batch-size", value_parser = whole(1, usize::MAX))]
    batch_size: Option<usize>,
    /// Batches averaged into one step [default: 1]
    #[arg(long, value_name = "N", alias = "gradient-accumulation-steps", value_parser = whole(1, usize::MAX))]
    gradient_accumulation: Option<usize>,
    /// The highest learning rate [default: 1e-4]
    #[arg(long, value_name = "RATE", alias = "lr")]
    learning_rate: Option<f64>,
    /// That of the text encoders [default: half of it]
    #[arg(long, value_name = "RATE")]
    text_encoder_lr: Option<f64>,
    /// constant, linear, cosine [default: cosine]
    #[arg(long, value_name = "NAME", alias = "lr-scheduler", value_parser = hinted::<LrShape>)]
    lr_schedule: Option<LrShape>,
    /// Steps over which it climbs [default: a twentieth of all]
    #[arg(long, value_name = "N", alias = "lr-warmup-steps", value_parser = whole(0, u64::MAX))]
    warmup_steps: Option<u64>,
    /// Min-SNR gamma; 0 counts all noise levels alike [default: 5]
    #[arg(long, value_name = "GAMMA")]
    min_snr_gamma: Option<f64>,
    /// Noise equal over a whole channel [default: 0]
    #[arg(long, value_name = "AMOUNT")]
    noise_offset: Option<f64>,
    /// All randomness follows from it; -1 is a random one [default: 0]
    #[arg(long, value_parser = hinted::<Seed>)]
    seed: Option<Seed>,
    /// Save every so many steps
    #[arg(long, value_name = "N", alias = "save-every-n-steps", value_parser = whole(0, u64::MAX))]
    save_every: Option<u64>,
    /// Go on where a stopped run left off
    #[arg(long)]
    resume: bool,
    /// Train anew where a finished adapter stands, and replace it
    #[arg(long)]
    force: bool,
    /// Keep activations instead of computing them twice: faster, much more memory
    #[arg(long)]
    no_gradient_checkpointing: bool,
}

#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "The adapter")]
struct NetworkArgs {
    /// The size of the adapter [default: 16]
    #[arg(long, value_name = "R", alias = "network-dim", value_parser = whole(1usize, 1024))]
    rank: Option<usize>,
    /// The adapter is scaled by alpha / rank [default: rank]
    #[arg(long, alias = "network-alpha")]
    alpha: Option<f64>,
    /// attention, feed_forward, projection, convolution; several with commas [default: attention]
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_parser = hinted::<UnetLayers>)]
    layers: Vec<UnetLayers>,
    /// Rank of convolutions [default: rank]
    #[arg(long, value_name = "R", alias = "conv-dim", value_parser = whole(1usize, 1024))]
    conv_rank: Option<usize>,
    /// Their alpha [default: their rank]
    #[arg(long, value_name = "ALPHA")]
    conv_alpha: Option<f64>,
    /// Train the text encoders, too
    #[arg(long)]
    train_text_encoder: bool,
    /// The text encoder's layer that is read, 1 the last
    #[arg(long, value_name = "N", value_parser = whole(1, MAX_CLIP_SKIP))]
    clip_skip: Option<usize>,
    /// The style's name in the file [default: the file's own]
    #[arg(long, alias = "output-name")]
    name: Option<String>,
    /// f16, bf16 or f32 [default: f16]
    #[arg(long, value_name = "DTYPE", alias = "save-precision")]
    save_dtype: Option<String>,
}

#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "Pictures and captions")]
struct DataArgs {
    /// Width and height in pixels [default: the model's own]
    #[arg(long, value_name = "PX")]
    resolution: Option<u32>,
    /// Crop every picture to a square instead of keeping shapes
    #[arg(long)]
    no_buckets: bool,
    /// Never enlarge pictures
    #[arg(long, alias = "bucket-no-upscale")]
    no_upscale: bool,
    /// Show pictures mirrored half of the time
    #[arg(long, alias = "flip-aug")]
    flip: bool,
    /// A word put before every caption
    #[arg(long, value_name = "WORD")]
    trigger: Option<String>,
    /// Shuffle the tags of captions
    #[arg(long)]
    shuffle_caption: bool,
    /// Tags at the front that stay there
    #[arg(long, value_name = "N")]
    keep_tokens: Option<usize>,
    /// Share of samples with an empty caption [default: 0]
    #[arg(long, value_name = "SHARE", alias = "caption-dropout-rate")]
    caption_dropout: Option<f64>,
    /// Keep encoded pictures in this folder between runs
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let config = configuration(args, context)?;
    if config.images.as_os_str().is_empty() {
        return Err(Error::invalid("no folder of pictures is named")
            .with_hint("set `images` in the file, or name the folder after `train`"));
    }
    // Said before a model is opened, or downloaded.
    scan::expect_folder(&config.images)?;
    if args.check {
        return check(&config, context);
    }
    let (out, resume) = (config.out.clone(), config.resume);
    // A stopped run, or one that is finished and was to be resumed, has messages of its own.
    if !resume && !state_path(&out).exists() && !out.is_dir() {
        output::refuse_replacing(&out, args.run.force)?;
    }
    let Context { console, cancel, .. } = context;
    let model = config.model.clone();
    let outcome = Trainer::new(config)?.run(console, cancel);
    console.close();
    match outcome? {
        TrainOutcome::Finished { adapter, loss } => {
            let object = json!({ "event": "trained", "path": adapter, "loss": loss });
            console.result(&adapter.display().to_string(), &object);
            let (model, lora) = (quoted(&model), quoted(&format!("{}:0.8", adapter.display())));
            console.note(&format!("next: scumble generate \"…\" --model {model} --lora {lora}"));
            Ok(())
        }
        TrainOutcome::Cancelled { adapter, checkpoint, step } => {
            let object =
                json!({ "event": "cancelled", "path": adapter, "checkpoint": checkpoint, "step": step });
            console.result(&adapter.display().to_string(), &object);
            let again = if resume { "" } else { " with `--resume` added" };
            console.note(&format!(
                "stopped after step {step}; {} is usable as it is, and the same command{again} goes on from there",
                out.display()
            ));
            Err(Error::Cancelled)
        }
    }
}

/// The configuration file, or the defaults, with the options given on the command line laid over it.
fn configuration(args: &Args, context: &Context) -> Result<TrainConfig> {
    let mut config = match &args.config {
        Some(path) => TrainConfig::load(path)?,
        None => TrainConfig::default(),
    };
    set(&mut config.images, args.images.as_ref());
    set(&mut config.out, args.out.as_ref());
    set(&mut config.model, args.model.as_ref());
    set(&mut config.device, context.global.device.map(|d| d.to_string()).as_ref());
    set(&mut config.dtype, context.global.dtype.map(|d| d.to_string()).as_ref());
    config.offline |= context.global.offline;
    run_options(&args.run, &mut config);
    set(&mut config.seed, args.run.seed.map(|seed| seed.number(&context.console)).as_ref());
    network_options(&args.network, &mut config);
    data_options(&args.data, &mut config);
    args.set.iter().try_fold(config, |config, pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Error::invalid(format!("expected `--set KEY=VALUE`, found `{pair}`")))?;
        config.with(key.trim(), value.trim())
    })
}

fn run_options(args: &RunArgs, config: &mut TrainConfig) {
    set(&mut config.steps, args.steps.as_ref());
    set(&mut config.batch_size, args.batch_size.as_ref());
    set(&mut config.gradient_accumulation, args.gradient_accumulation.as_ref());
    set(&mut config.learning_rate, args.learning_rate.as_ref());
    set_some(&mut config.text_encoder_lr, args.text_encoder_lr.as_ref());
    set(&mut config.lr_schedule, args.lr_schedule.as_ref());
    set_some(&mut config.warmup_steps, args.warmup_steps.as_ref());
    set(&mut config.min_snr_gamma, args.min_snr_gamma.as_ref());
    set(&mut config.noise_offset, args.noise_offset.as_ref());
    set(&mut config.save_every, args.save_every.as_ref());
    config.resume |= args.resume;
    config.gradient_checkpointing &= !args.no_gradient_checkpointing;
}

fn network_options(args: &NetworkArgs, config: &mut TrainConfig) {
    set(&mut config.rank, args.rank.as_ref());
    set_some(&mut config.alpha, args.alpha.as_ref());
    if !args.layers.is_empty() {
        config.layers = args.layers.iter().copied().collect();
    }
    set_some(&mut config.conv_rank, args.conv_rank.as_ref());
    set_some(&mut config.conv_alpha, args.conv_alpha.as_ref());
    config.train_text_encoder |= args.train_text_encoder;
    set_some(&mut config.clip_skip, args.clip_skip.as_ref());
    set_some(&mut config.name, args.name.as_ref());
    set(&mut config.save_dtype, args.save_dtype.as_ref());
}

fn data_options(args: &DataArgs, config: &mut TrainConfig) {
    set_some(&mut config.resolution, args.resolution.as_ref());
    config.random_flip |= args.flip;
    set_some(&mut config.cache, args.cache.as_ref());
    let ScanOptions { buckets, captions, .. } = &mut config.dataset;
    buckets.enabled &= !args.no_buckets;
    buckets.no_upscale |= args.no_upscale;
    set_some(&mut captions.trigger, args.trigger.as_ref());
    captions.shuffle |= args.shuffle_caption;
    set(&mut captions.keep_tokens, args.keep_tokens.as_ref());
    set(&mut captions.dropout, args.caption_dropout.as_ref());
}

fn set<T: Clone>(key: &mut T, option: Option<&T>) {
    if let Some(value) = option {
        key.clone_from(value);
    }
}

fn set_some<T: Clone>(key: &mut Option<T>, option: Option<&T>) {
    if option.is_some() {
        *key = option.cloned();
    }
}

/// `--check`: what the doctor says, at the sizes the training would use, without loading the model.
fn check(config: &TrainConfig, context: &mut Context) -> Result<()> {
    let (size, tokenizer) = about_model(config, context)?;
    let options = scan_options(config, size);
    let Context { console, cancel, .. } = context;
    let dataset = Dataset::scan(&config.images, &options, &mut (), cancel)?;
    let count = |caption: &str| tokenizer.encode(caption).map_or(0, |ids| ids.len());
    let report = doctor::examine(&dataset, Some(&count));
    let (width, height) = options.buckets.resolution;
    console.note(&format!("for `{}` at {width}x{height}", config.model));
    let text = report.to_string();
    let object = serde_json::to_value(&report).map_err(|e| Error::invalid(e.to_string()))?;
    console.result(text.trim_end(), &object);
    Ok(())
}

/// What of the model decides over pictures' sizes and captions' lengths. Nothing is downloaded for it.
fn about_model(config: &TrainConfig, context: &Context) -> Result<(ModelSize, Tokenizer)> {
    let source = ModelSource::parse(&config.model)?;
    let options = OpenOptions { offline: true, ..OpenOptions::default() };
    match (source.open(&options, &mut (), &context.cancel), &source) {
        (Ok(checkpoint), _) => Ok((ModelSize::of_checkpoint(&checkpoint)?, tokenizer(&checkpoint, false)?)),
        (Err(e), ModelSource::Hub { id, .. }) if !e.is_cancelled() => {
            let family = if id.to_lowercase().contains("xl") { Family::Sdxl } else { Family::Sd1 };
            let size = ModelSize::of_family(family);
            context.console.note(&format!(
                "{source} is not on this machine yet: taken for {} at {} px",
                family.title(),
                size.native_px
            ));
            Ok((size, Tokenizer::openai()?))
        }
        (Err(e), _) => Err(e),
    }
}
