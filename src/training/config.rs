//! The training configuration: this struct *is* the TOML file, and every `scumble train` flag sets one of its keys.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{AdamWConfig, LrSchedule, LrShape};
use crate::{
    adapter::{Group, TrainableSpec},
    dataset::ScanOptions,
    error::{Error, Result},
    files,
};

/// Everything a training run depends on. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The base: `mini`, a diffusers folder, a `.safetensors` file, or a hub id.
    pub model: String,
    /// The folder of pictures.
    pub images: PathBuf,
    /// The adapter to write.
    pub out: PathBuf,
    /// The style's name in the file; the file's own name if left out.
    pub name: Option<String>,

    /// Optimizer steps.
    pub steps: u64,
    /// Pictures the network sees at once.
    pub batch_size: usize,
    /// Batches whose gradients are averaged into one step.
    pub gradient_accumulation: usize,
    /// All randomness follows from it.
    pub seed: u64,

    /// Width and height in pixels; the model's own size if left out.
    pub resolution: Option<u32>,
    /// Show pictures mirrored half of the time. Not for styles with writing or a left and a right.
    pub random_flip: bool,

    /// r, the size of the adapter.
    pub rank: usize,
    /// The adapter is scaled by alpha / rank; rank if left out.
    pub alpha: Option<f64>,
    /// Rank of convolutions larger than 1×1, if `layers` has `convolution`; rank if left out.
    pub conv_rank: Option<usize>,
    /// Their alpha; `conv_rank` if left out.
    pub conv_alpha: Option<f64>,
    /// Which of the UNet's layers are trained.
    pub layers: BTreeSet<UnetLayers>,
    /// Train the text encoders' attention and feed-forward layers, too.
    pub train_text_encoder: bool,

    /// The highest learning rate.
    pub learning_rate: f64,
    /// That of the text encoders; half the other's if left out.
    pub text_encoder_lr: Option<f64>,
    /// How it falls.
    pub lr_schedule: LrShape,
    /// Steps over which it climbs; a twentieth of all, at most 100, if left out.
    pub warmup_steps: Option<u64>,
    /// Longer gradients are shortened to this; 0 leaves them.
    pub max_grad_norm: f64,
    /// Min-SNR-γ; 0 counts all noise levels alike.
    pub min_snr_gamma: f64,
    /// Noise that is equal over a whole channel; 0 is off.
    pub noise_offset: f64,
    /// The text encoder's layer that is read, counted from the last = 1; the model's own if left out.
    pub clip_skip: Option<usize>,

    /// `auto`, `cpu`, `cuda`, `cuda:1`, `metal`.
    pub device: String,
    /// `auto`, `f32`, `f16`, `bf16`: what base weights and activations are held in.
    pub dtype: String,
    /// Use only what is on this machine.
    pub offline: bool,
    /// Compute activations a second time instead of keeping them: a third slower, a fraction of the memory.
    pub gradient_checkpointing: bool,
    /// Where latents are kept between runs; nowhere if left out.
    pub cache: Option<PathBuf>,

    /// `f16`, `bf16` or `f32`: what the adapter is written in.
    pub save_dtype: String,
    /// Steps between saves; 0 saves at the end only.
    pub save_every: u64,
    /// Go on from the state beside `out`, if there is one.
    pub resume: bool,
    /// Write nothing that differs from run to run (dates) into the adapter.
    pub reproducible: bool,

    /// AdamW's numbers.
    pub optimizer: AdamWConfig,
    /// How the folder is read.
    pub dataset: ScanOptions,
}

/// A kind of layer of the UNet, as `layers` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnetLayers {
    /// q, k, v and out.
    Attention,
    /// The feed-forward layers behind it.
    FeedForward,
    /// The layers into and out of a transformer.
    Projection,
    /// Resnets and resamplers.
    Convolution,
}

impl UnetLayers {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Attention, Self::FeedForward, Self::Projection, Self::Convolution];

    /// The name in configuration files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::FeedForward => "feed_forward",
            Self::Projection => "projection",
            Self::Convolution => "convolution",
        }
    }

    fn group(self) -> Group {
        match self {
            Self::Attention => Group::Attention,
            Self::FeedForward => Group::FeedForward,
            Self::Projection => Group::Projection,
            Self::Convolution => Group::Convolution,
        }
    }
}

impl std::str::FromStr for UnetLayers {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name);
        Self::ALL.into_iter().find(|l| l.name() == s).ok_or_else(|| Error::unknown("kind of layer", s, known))
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            model: "mini".into(),
            images: PathBuf::new(),
            out: PathBuf::from("style.safetensors"),
            name: None,
            steps: 1000,
            batch_size: 1,
            gradient_accumulation: 1,
            seed: 0,
            resolution: None,
            random_flip: false,
            rank: 16,
            alpha: None,
            conv_rank: None,
            conv_alpha: None,
            layers: BTreeSet::from([UnetLayers::Attention]),
            train_text_encoder: false,
            learning_rate: 1e-4,
            text_encoder_lr: None,
            lr_schedule: LrShape::Cosine,
            warmup_steps: None,
            max_grad_norm: 1.0,
            min_snr_gamma: 5.0,
            noise_offset: 0.0,
            clip_skip: None,
            device: "auto".into(),
            dtype: "auto".into(),
            offline: false,
            gradient_checkpointing: true,
            cache: None,
            save_dtype: "f16".into(),
            save_every: 0,
            resume: false,
            reproducible: false,
            optimizer: AdamWConfig::default(),
            dataset: ScanOptions::default(),
        }
    }
}

impl TrainConfig {
    /// What to try when this does not fit the device's memory: what costs least first.
    pub(super) fn with_less_memory(&self) -> String {
        if self.batch_size > 1 {
            let (half, steps) = (self.batch_size.div_ceil(2), 2 * self.gradient_accumulation);
            return format!(
                "`--batch-size {half} --gradient-accumulation {steps}` trains the same in less memory"
            );
        }
        if !self.gradient_checkpointing {
            return "`--gradient-checkpointing` keeps a part of the activations and computes the rest again"
                .into();
        }
        match self.resolution {
            Some(px) => format!("`--resolution {}` takes less memory than {px}", px * 3 / 4 / 64 * 64),
            None => "a smaller `--resolution` than the model's own takes less memory".into(),
        }
    }

    /// Reads a TOML file. Relative paths stay relative to the working directory, as on the command line.
    ///
    /// # Errors
    /// If it cannot be read or has an unknown key or a wrong value.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        files::walk::expect(path, &["toml"])?;
        let text = files::read_text(path)?;
        Self::from_toml(&text).map_err(|e| e.context(path.display().to_string()))
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// If it has an unknown key (with the nearest known one as the hint) or a wrong value.
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| explain(&e))
    }

    /// This configuration with one key changed, as a command line says it: `("rank", "8")`, `("layers",
    /// "attention,projection")`, `("optimizer.beta1", "0.95")`.
    ///
    /// # Errors
    /// If there is no such key (with the nearest one as the hint), or it cannot have that value.
    pub fn with(&self, key: &str, value: &str) -> Result<Self> {
        let mut root: toml::Table = self.to_toml()?.parse().map_err(|e| explain(&e))?;
        let mut path: Vec<&str> = key.split('.').collect();
        let last = path.pop().unwrap_or(key);
        let mut table = &mut root;
        for name in path {
            let inner = table.entry(name).or_insert_with(|| toml::Table::new().into()).as_table_mut();
            table =
                inner.ok_or_else(|| Error::invalid(format!("`{name}` in `{key}` is not a group of keys")))?;
        }
        let value = match table.get(last) {
            Some(toml::Value::Array(_)) if !value.trim_start().starts_with('[') => {
                let words = value.split(',').map(str::trim).filter(|w| !w.is_empty());
                toml::Value::Array(words.map(|w| toml::Value::String(w.into())).collect())
            }
            Some(toml::Value::String(_)) => toml::Value::String(value.into()),
            // Numbers and bools as TOML reads them; anything else is text.
            Some(toml::Value::Float(_)) => value.parse().map_or_else(|_| value.into(), toml::Value::Float),
            _ => format!("x = {value}")
                .parse::<toml::Table>()
                .ok()
                .and_then(|mut t| t.remove("x"))
                .unwrap_or_else(|| value.into()),
        };
        table.insert(last.into(), value);
        Self::deserialize(root).map_err(|e| explain(&e).context(format!("`{key}`")))
    }

    /// The file that [`TrainConfig::load`] reads.
    ///
    /// # Errors
    /// If a path is not text.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|e| Error::invalid(format!("the configuration cannot be written: {e}")))
    }

    /// # Errors
    /// If a value is out of range, naming its key.
    pub fn check(&self) -> Result<()> {
        // What is left out has a default that holds.
        let (alpha, conv_alpha) = (self.alpha.unwrap_or(1.0), self.conv_alpha.unwrap_or(1.0));
        let (conv_rank, text_lr) = (self.conv_rank.unwrap_or(1), self.text_encoder_lr.unwrap_or(0.0));
        let (rate, rank) = (self.learning_rate, 1..=1024);
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let rules: [(bool, &str, &str, &dyn fmt::Display); 13] = [
            (self.steps > 0, "steps", "at least 1", &self.steps),
            (self.batch_size > 0, "batch_size", "at least 1", &self.batch_size),
            (
                self.gradient_accumulation > 0,
                "gradient_accumulation",
                "at least 1",
                &self.gradient_accumulation,
            ),
            (rank.contains(&self.rank), "rank", "1 to 1024", &self.rank),
            (positive(alpha), "alpha", "above 0", &alpha),
            (rank.contains(&conv_rank), "conv_rank", "1 to 1024", &conv_rank),
            (positive(conv_alpha), "conv_alpha", "above 0", &conv_alpha),
            (positive(rate) && rate <= 1.0, "learning_rate", "above 0, at most 1", &rate),
            ((0.0..=1.0).contains(&text_lr), "text_encoder_lr", "0 to 1", &text_lr),
            (not_negative(self.max_grad_norm), "max_grad_norm", "0 or more", &self.max_grad_norm),
            (not_negative(self.min_snr_gamma), "min_snr_gamma", "0 or more", &self.min_snr_gamma),
            ((0.0..=1.0).contains(&self.noise_offset), "noise_offset", "0 to 1", &self.noise_offset),
            (self.clip_skip != Some(0), "clip_skip", "at least 1", &0),
        ];
        if let Some((_, key, expected, found)) = rules.iter().find(|(holds, ..)| !holds) {
            return Err(Error::invalid(format!(
                "training configuration: expected `{key}` to be {expected}, found {found}"
            )));
        }
        let missing = match () {
            () if self.layers.is_empty() && !self.train_text_encoder => {
                "`layers` to have at least one kind of layer"
            }
            () if self.out.file_name().is_none() => "`out` to be a file name",
            () => return self.check_optimizer(),
        };
        Err(Error::invalid(format!("training configuration: expected {missing}")))
    }

    fn check_optimizer(&self) -> Result<()> {
        self.optimizer.check().map_err(|e| e.context("training configuration, `optimizer`"))
    }

    /// What is trained and how large.
    pub fn trainable(&self) -> TrainableSpec {
        let mut groups: BTreeSet<Group> = self.layers.iter().map(|l| l.group()).collect();
        if self.train_text_encoder {
            groups.extend([Group::TextAttention, Group::TextMlp]);
        }
        let conv = self.conv_rank.map(|rank| (rank, self.conv_alpha.unwrap_or(rank as f64)));
        TrainableSpec {
            groups,
            rank: self.rank,
            alpha: self.alpha.unwrap_or(self.rank as f64),
            conv_rank_alpha: conv,
            seed: self.seed,
            ..TrainableSpec::default()
        }
    }

    /// The learning rate of every step.
    pub fn lr(&self) -> LrSchedule {
        LrSchedule {
            peak: self.learning_rate,
            shape: self.lr_schedule,
            warmup_steps: self.warmup_steps.unwrap_or_else(|| (self.steps / 20).min(100)),
            total_steps: self.steps,
        }
    }

    /// The text encoders' learning rate as a share of the UNet's.
    pub fn text_encoder_rate(&self) -> f64 {
        self.text_encoder_lr.map_or(0.5, |lr| lr / self.learning_rate)
    }

    /// The style's name.
    pub fn style_name(&self) -> String {
        let stem = || self.out.file_stem().map(|s| s.to_string_lossy().into_owned());
        self.name.clone().or_else(stem).unwrap_or_else(|| "style".into())
    }
}

/// toml's message, with the nearest known key as the hint.
fn explain(error: &toml::de::Error) -> Error {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    if let (true, Some(key)) = (message.starts_with("unknown field"), quoted.next()) {
        return Error::unknown("key", key, quoted);
    }
    Error::invalid(error.to_string().trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_round_trips() -> Result<()> {
        let config = TrainConfig { alpha: Some(4.0), conv_rank: Some(8), resume: true, ..Default::default() };
        assert_eq!(TrainConfig::from_toml(&config.to_toml()?)?, config);
        assert_eq!(TrainConfig::from_toml("")?, TrainConfig::default());
        config.check()
    }

    #[test]
    fn what_needs_less_memory_is_said_step_by_step() {
        let config = TrainConfig { batch_size: 4, gradient_checkpointing: false, ..TrainConfig::default() };
        assert!(config.with_less_memory().contains("--batch-size 2 --gradient-accumulation 2"));
        let config = TrainConfig { batch_size: 1, ..config };
        assert!(config.with_less_memory().contains("--gradient-checkpointing"));
        let config = TrainConfig { gradient_checkpointing: true, resolution: Some(1024), ..config };
        assert!(config.with_less_memory().contains("--resolution 768"));
    }

    #[test]
    fn one_key_is_set_as_on_a_command_line() -> Result<()> {
        let config = TrainConfig::default()
            .with("rank", "8")?
            .with("alpha", "4")?
            .with("learning_rate", "1")?
            .with("layers", "attention, projection")?
            .with("images", "2024")?
            .with("name", "blue print")?
            .with("resume", "true")?
            .with("optimizer.beta1", "0.95")?
            .with("dataset.captions.trigger", "sks")?;
        assert_eq!((config.rank, config.alpha, config.resume), (8, Some(4.0), true));
        assert_eq!((config.learning_rate, config.optimizer.beta1), (1.0, 0.95));
        assert_eq!(config.layers, BTreeSet::from([UnetLayers::Attention, UnetLayers::Projection]));
        assert_eq!((config.images.to_str(), config.name.as_deref()), (Some("2024"), Some("blue print")));
        assert_eq!(config.dataset.captions.trigger.as_deref(), Some("sks"));
        let error = config.with("optimizer.bta1", "1").expect_err("no such key");
        assert!(error.hint().unwrap_or_default().contains("did you mean `beta1`?"), "{error}");
        assert!(config.with("rank", "many").is_err() && config.with("rank.of", "1").is_err());
        Ok(())
    }

    #[test]
    fn mistakes_are_named() {
        let fail = |text: &str| TrainConfig::from_toml(text).expect_err(text);
        let error = fail("learning_rat = 1e-4");
        assert_eq!(error.to_string(), "unknown key `learning_rat`");
        assert!(error.hint().unwrap_or_default().contains("did you mean `learning_rate`?"));
        assert!(fail("[optimizer]\nbeta3 = 1").hint().unwrap_or_default().contains("`beta"));
        assert!(fail("steps = \"many\"").to_string().contains("steps"));
        let error = TrainConfig { rank: 0, ..Default::default() }.check().expect_err("rank 0");
        assert!(error.to_string().contains("`rank` to be 1 to 1024, found 0"), "{error}");
        let error = TrainConfig { learning_rate: f64::NAN, ..Default::default() }.check().expect_err("NaN");
        assert!(error.to_string().contains("above 0, at most 1, found NaN"), "{error}");
        assert!(TrainConfig { max_grad_norm: f64::INFINITY, ..Default::default() }.check().is_err());
    }
}
