//! Adapter files: one dialect a file here, one table of names for all.
//!
//! Reading: each key is split into a module's name and a parameter by the longest known suffix ([`suffix`]), the
//! module's spelling is undone ([`prefix`]) and looked up in the model's own [`NameTable`]. Names are never rewritten
//! by replacing words in them.

mod assemble;
mod comfy;
mod fit;
pub mod folder;
pub mod kohya;
pub mod names;
pub mod peft;
mod peft_config;
mod peft_write;
pub mod prefix;
mod read;
pub mod suffix;
mod write;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use candle_core::DType;

pub use fit::Fit;
pub use names::NameTable;
pub(crate) use read::{read, read_opened, report};
pub(crate) use write::{to_files, write};

use crate::error::{Error, Result};

/// How names are spelled in a file this program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Dialect {
    /// What kohya's sd-scripts and LyCORIS write and every other tool reads.
    #[default]
    Kohya,
    /// What diffusers' `save_lora_weights` writes: PEFT names below the component's. Only `LoRA` and `DoRA`.
    Diffusers,
    /// A folder for each component, as PEFT's `save_pretrained` makes it.
    Peft,
    /// The original code's names, as ComfyUI has them.
    Comfy,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Self; 4] = [Self::Kohya, Self::Diffusers, Self::Peft, Self::Comfy];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
            Self::Peft => "peft",
            Self::Comfy => "comfy",
        }
    }

    /// True if an adapter becomes a folder rather than a file.
    pub fn is_folder(self) -> bool {
        self == Self::Peft
    }

    /// Tells whether other tools will find an adapter under this name.
    ///
    /// # Errors
    /// If a file's name does not end in `.safetensors`, or a folder's ends like a file's.
    pub fn check_name(self, out: &Path) -> Result<()> {
        let ending = out.extension().map(|e| e.to_string_lossy().to_lowercase());
        let of_weights = ending.as_deref().is_some_and(|e| WEIGHT_ENDINGS.contains(&e));
        let bare = if of_weights { out.with_extension("") } else { out.to_path_buf() };
        let (expected, better) = match self.is_folder() {
            true if of_weights => ("the name of a folder".to_owned(), bare),
            false if ending.as_deref() != Some(WEIGHTS) => {
                let mut name = bare.into_os_string();
                name.push(format!(".{WEIGHTS}"));
                (format!("a name that ends in `.{WEIGHTS}`"), PathBuf::from(name))
            }
            _ => return Ok(()),
        };
        let found = ending.map_or("no ending".into(), |e| format!("`.{e}`"));
        Err(Error::file(out, format!("expected {expected}, found {found}"))
            .with_hint(format!("write to {}", better.display())))
    }
}

/// How files that may be written end.
const WEIGHTS: &str = "safetensors";
/// How files with weights end, safe or not.
pub const WEIGHT_ENDINGS: [&str; 6] = [WEIGHTS, "ckpt", "pt", "pth", "bin", "pickle"];

impl FromStr for Dialect {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name);
        Self::ALL.into_iter().find(|d| d.name() == s).ok_or_else(|| Error::unknown("dialect", s, known))
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How strict reading is.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Applies a file of which some keys match nothing; they stay listed in the report.
    pub allow_unmatched: bool,
    /// The scale of `LoKr` deltas whose factors are both stored whole. Trainers agree on 1 and ignore alpha there; a few
    /// files were made by others, and collapse the picture until their alpha / rank is given here.
    pub whole_lokr_scale: Option<f64>,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct SaveOptions {
    /// The spelling of names.
    pub dialect: Dialect,
    /// The dtype of the factors; `None` keeps what they have.
    pub dtype: Option<DType>,
}
