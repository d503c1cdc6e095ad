//! The family an adapter or a model belongs to, and what files call it.

use std::fmt;

use crate::weights::Family;

/// A family, told by the width its cross-attention reads: shapes do not lie, metadata may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lineage {
    /// Cross-attention 768.
    Sd1,
    /// Cross-attention 1024.
    Sd2,
    /// Cross-attention 2048.
    Sdxl,
    /// Cross-attention 1280.
    SdxlRefiner,
    /// Cross-attention 128: the embedded model.
    Mini,
    /// Any other width.
    Other(usize),
}

/// What metadata call a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Labels {
    /// kohya's `ss_base_model_version`.
    pub version: &'static str,
    /// `modelspec.architecture`. <https://github.com/Stability-AI/ModelSpec>
    pub architecture: &'static str,
}

/// What metadata begin with, the more special first, and the family it says.
const VERSIONS: [(&str, Lineage); 4] = [
    ("sdxl_", Lineage::Sdxl),
    ("sd_v2", Lineage::Sd2),
    ("sd_v1", Lineage::Sd1),
    ("scumble_mini", Lineage::Mini),
];
const ARCHITECTURES: [(&str, Lineage); 5] = [
    ("stable-diffusion-xl-v1-refiner", Lineage::SdxlRefiner),
    ("stable-diffusion-xl-v1", Lineage::Sdxl),
    ("stable-diffusion-v2", Lineage::Sd2),
    ("stable-diffusion-v1", Lineage::Sd1),
    ("scumble-mini", Lineage::Mini),
];

impl Lineage {
    /// Every family with a width of its own.
    pub(crate) const NAMED: [Self; 5] = [Self::Sd1, Self::Sd2, Self::Sdxl, Self::SdxlRefiner, Self::Mini];

    /// By the input width of `attn2.to_k`.
    pub fn of_cross_attention(width: usize) -> Self {
        Self::NAMED.into_iter().find(|l| l.width() == width).unwrap_or(Self::Other(width))
    }

    /// What a value of `ss_base_model_version` says.
    pub(crate) fn of_version(version: &str) -> Option<Self> {
        VERSIONS.iter().find(|(start, _)| version.starts_with(start)).map(|(_, lineage)| *lineage)
    }

    /// What a value of `modelspec.architecture` says.
    pub(crate) fn of_architecture(architecture: &str) -> Option<Self> {
        ARCHITECTURES.iter().find(|(start, _)| architecture.starts_with(start)).map(|(_, lineage)| *lineage)
    }

    /// What metadata call it; `v_prediction` tells two models of SD 2 apart.
    pub(crate) fn labels(self, v_prediction: bool) -> Labels {
        let (version, architecture) = match self {
            Self::Sd1 => ("sd_v1", "stable-diffusion-v1"),
            Self::Sd2 if v_prediction => ("sd_v2_v", "stable-diffusion-v2-768-v"),
            Self::Sd2 => ("sd_v2", "stable-diffusion-v2-512"),
            Self::Sdxl => ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
            // kohya has no word for the refiner.
            Self::SdxlRefiner => ("sdxl_base_v1-0", "stable-diffusion-xl-v1-refiner"),
            Self::Mini => ("scumble_mini", "scumble-mini"),
            Self::Other(_) => ("other", "stable-diffusion-other"),
        };
        Labels { version, architecture }
    }

    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "SD 1.x",
            Self::Sd2 => "SD 2.x",
            Self::Sdxl => "SDXL",
            Self::SdxlRefiner => "the SDXL refiner",
            Self::Mini => "mini",
            Self::Other(_) => "another model",
        }
    }

    /// As `--family` and configs name it. Other widths are of models like SD 1 with sizes of their own.
    pub fn family(self) -> Family {
        match self {
            Self::Sd1 => Family::Sd1,
            Self::Sd2 => Family::Sd2,
            Self::Sdxl => Family::Sdxl,
            Self::SdxlRefiner => Family::SdxlRefiner,
            Self::Mini | Self::Other(_) => Family::Mini,
        }
    }

    fn width(self) -> usize {
        match self {
            Self::Sd1 => 768,
            Self::Sd2 => 1024,
            Self::Sdxl => 2048,
            Self::SdxlRefiner => 1280,
            Self::Mini => 128,
            Self::Other(width) => width,
        }
    }
}

impl From<Family> for Lineage {
    fn from(family: Family) -> Self {
        Self::NAMED.into_iter().find(|lineage| lineage.family() == family).unwrap_or(Self::Sd1)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (cross-attention {})", self.name(), self.width())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same_family() {
        for lineage in Lineage::NAMED {
            assert_eq!(Lineage::of_cross_attention(lineage.width()), lineage);
            for v_prediction in [false, true] {
                let labels = lineage.labels(v_prediction);
                assert_eq!(Lineage::of_architecture(labels.architecture), Some(lineage));
                let version = Lineage::of_version(labels.version);
                assert!(version == Some(lineage) || lineage == Lineage::SdxlRefiner, "{lineage}");
            }
        }
        assert_eq!(Lineage::of_cross_attention(64), Lineage::Other(64));
        assert_eq!(Lineage::of_version(Lineage::Other(64).labels(false).version), None);
    }
}
