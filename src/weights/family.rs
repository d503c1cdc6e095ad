//! The families of Stable Diffusion, and the parts a model of each is made of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which family a model belongs to. What that means for the network's sizes is in `models::family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Family {
    /// Stable Diffusion 1.x: one CLIP ViT-L text encoder.
    Sd1,
    /// Stable Diffusion 2.x: one OpenCLIP ViT-H text encoder, penultimate layer.
    Sd2,
    /// Stable Diffusion XL base and everything trained from it: two text encoders, pooled embedding, sizes.
    Sdxl,
    /// The refiner of Stable Diffusion XL: only the second text encoder.
    SdxlRefiner,
    /// Built like SD1 with sizes of its own, given by its config files; the embedded model is one.
    Mini,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [Self::Sd1, Self::Sd2, Self::Sdxl, Self::SdxlRefiner, Self::Mini];

    /// The name used on the command line and in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "sd1",
            Self::Sd2 => "sd2",
            Self::Sdxl => "sdxl",
            Self::SdxlRefiner => "sdxl-refiner",
            Self::Mini => "mini",
        }
    }

    /// The name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Sd1 => "Stable Diffusion 1.x",
            Self::Sd2 => "Stable Diffusion 2.x",
            Self::Sdxl => "Stable Diffusion XL",
            Self::SdxlRefiner => "Stable Diffusion XL refiner",
            Self::Mini => "small Stable Diffusion",
        }
    }

    /// The components a complete model has.
    pub fn components(self) -> &'static [Component] {
        match self {
            Self::Sd1 | Self::Sd2 | Self::Mini => &[Component::Unet, Component::Vae, Component::TextEncoder],
            Self::Sdxl => &[Component::Unet, Component::Vae, Component::TextEncoder, Component::TextEncoder2],
            Self::SdxlRefiner => &[Component::Unet, Component::Vae, Component::TextEncoder2],
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name);
        Self::ALL.into_iter().find(|f| f.name() == s).ok_or_else(|| Error::unknown("model family", s, known))
    }
}

/// A part of a model that has its own weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The denoising network.
    Unet,
    /// Pictures to latents and back.
    Vae,
    /// The (first) text encoder.
    TextEncoder,
    /// SDXL's second text encoder.
    TextEncoder2,
}

impl Component {
    /// Its folder in diffusers' layout.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
