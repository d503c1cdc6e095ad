//! What is remembered between runs.

use std::path::PathBuf;

use scumble::pipeline::Hires;
use serde::{Deserialize, Serialize};

use super::Style;

/// The two sides of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Tab {
    /// Generate and blend.
    #[default]
    Draw,
    /// Train.
    Train,
}

/// Colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ThemeChoice {
    /// What the system prefers.
    #[default]
    System,
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

/// What is remembered between runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Which side is open.
    pub tab: Tab,
    /// Colours.
    pub theme: ThemeChoice,
    /// As `--model` takes it.
    pub model: String,
    /// Models opened before.
    pub recent_models: Vec<String>,
    /// What to draw.
    pub prompt: String,
    /// What to keep out.
    pub negative: String,
    /// By its short name.
    pub sampler: String,
    /// By its name.
    pub schedule: String,
    /// Denoising steps.
    pub steps: usize,
    /// `None` is the model's own.
    pub cfg: Option<f64>,
    /// `None` is the model's own.
    pub size: Option<(usize, usize)>,
    /// The picture to start from.
    pub start: Option<StartFile>,
    /// How much of a picture to start from is drawn anew, 0 to 1.
    pub strength: f64,
    /// The second pass.
    pub hires: HiresForm,
    /// The first picture's seed.
    pub seed: u64,
    /// Generating again keeps it.
    pub keep_seed: bool,
    /// Pictures.
    pub count: usize,
    /// Changes draw at once.
    pub live: bool,
    /// The blend. `None` until the first start has filled it with the sample styles.
    pub styles: Option<Vec<Style>>,
    /// Keeps the sum in bounds.
    pub normalize: bool,
    /// The library's folder.
    pub library: Option<PathBuf>,
    /// What to train.
    pub train: TrainForm,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tab: Tab::Draw,
            theme: ThemeChoice::System,
            model: "mini".into(),
            recent_models: Vec::new(),
            prompt: "house, blueprint style".into(),
            negative: String::new(),
            sampler: "dpmpp_2m".into(),
            schedule: "karras".into(),
            steps: 20,
            cfg: None,
            size: None,
            start: None,
            strength: 0.75,
            hires: HiresForm::default(),
            seed: 7,
            keep_seed: false,
            count: 1,
            live: true,
            styles: None,
            normalize: false,
            library: None,
            train: TrainForm::default(),
        }
    }
}

/// The file of a picture to start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFile {
    /// Where it was.
    pub path: PathBuf,
    /// What its content is known by, if it was read before.
    pub hash: Option<String>,
}

impl StartFile {
    /// A file that is to be read for the first time.
    pub fn new(path: PathBuf) -> Self {
        Self { path, hash: None }
    }
}

/// The second pass: a picture is enlarged and drawn again in part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HiresForm {
    /// It is wanted.
    pub on: bool,
    /// Width and height times this.
    pub scale: f64,
    /// How much is drawn again, 0 to 1.
    pub strength: f64,
    /// Steps of its schedule; 0 is those of the first pass.
    pub steps: usize,
}

impl Default for HiresForm {
    fn default() -> Self {
        let Hires { scale, strength, .. } = Hires::default();
        Self { on: false, scale, strength, steps: 0 }
    }
}

/// What to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainForm {
    /// The folder of pictures.
    pub folder: Option<PathBuf>,
    /// The style's name.
    pub name: String,
    /// Optimizer steps.
    pub steps: u64,
    /// The adapter's size.
    pub rank: usize,
    /// The highest learning rate.
    pub rate: f64,
    /// Pictures at once.
    pub batch: usize,
    /// Put before every caption.
    pub trigger: String,
    /// Every kind of layer, not only attention.
    pub all_layers: bool,
    /// The text encoder, too.
    pub text_encoder: bool,
    /// Mirrored half of the time.
    pub flip: bool,
    /// Less memory, more time.
    pub checkpointing: bool,
    /// All randomness follows from it.
    pub seed: u64,
    /// Steps between previews.
    pub preview_every: u64,
    /// What previews show.
    pub preview_prompt: String,
}

impl Default for TrainForm {
    /// What makes a style on the embedded model in a few minutes.
    fn default() -> Self {
        Self {
            folder: None,
            name: "my-style".into(),
            steps: 400,
            rank: 16,
            rate: 5e-3,
            batch: 4,
            trigger: String::new(),
            all_layers: true,
            text_encoder: false,
            flip: false,
            checkpointing: false,
            seed: 7,
            preview_every: 100,
            preview_prompt: "penguin".into(),
        }
    }
}
