//! Where in the network a layer is, told by its name alone in any spelling.

use std::fmt;

use crate::adapter::format::prefix::{Component, is_text};

/// A block of the network, numbered as block-weight tools do: the original code's `input_blocks` and `output_blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Block {
    /// The only text encoder, or the first of two.
    TextEncoder,
    /// The second of two.
    TextEncoder2,
    /// IN00 to IN11.
    In(usize),
    /// MID.
    Mid,
    /// OUT00 to OUT11.
    Out(usize),
    /// Outside of all blocks: time embedding, the last convolution, or unknown.
    Other,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextEncoder => write!(f, "TE"),
            Self::TextEncoder2 => write!(f, "TE2"),
            Self::In(n) => write!(f, "IN{n:02}"),
            Self::Mid => write!(f, "MID"),
            Self::Out(n) => write!(f, "OUT{n:02}"),
            Self::Other => write!(f, "other"),
        }
    }
}

impl Block {
    /// By the component and the flat name (diffusers' or the original).
    pub fn of(component: Component, flat: &str) -> Self {
        match component {
            Component::TextEncoder | Component::OnlyTextEncoder => return Self::TextEncoder,
            Component::TextEncoder2 => return Self::TextEncoder2,
            Component::Unsaid if is_text(flat) => return Self::TextEncoder,
            Component::Unet | Component::Unsaid => {}
        }
        let mut words = flat.split('_');
        let mut number =
            |skip: usize| words.nth(skip).and_then(|w| w.parse::<usize>().ok()).filter(|n| *n < 64);
        let starts = |prefix: &str| flat.starts_with(prefix);
        if starts("input_blocks_") {
            number(2).map_or(Self::Other, Self::In)
        } else if starts("output_blocks_") {
            number(2).map_or(Self::Other, Self::Out)
        } else if starts("middle_block_") || starts("mid_block_") {
            Self::Mid
        } else if starts("down_blocks_") || starts("up_blocks_") {
            let (Some(i), Some(j)) = (number(2), number(1)) else { return Self::Other };
            // Two resnets and a downsampler a level on the way in, three resnets on the way out.
            match (starts("down_"), flat.contains("samplers_")) {
                (true, false) => Self::In(3 * i + j + 1),
                (true, true) => Self::In(3 * i + 3),
                (false, false) => Self::Out(3 * i + j),
                (false, true) => Self::Out(3 * i + 2),
            }
        } else if starts("conv_in") {
            Self::In(0)
        } else {
            Self::Other
        }
    }
}

/// What a layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// `attn1`: the picture looks at itself.
    SelfAttention,
    /// `attn2`: the picture looks at the text.
    CrossAttention,
    /// `ff`.
    FeedForward,
    /// `proj_in`, `proj_out`.
    Projection,
    /// Convolutions and time projections of resnets.
    Resnet,
    /// Down- and upsamplers.
    Resampler,
    /// The first and last convolution, time and size embeddings.
    Ends,
    /// Scales and shifts of normalisations.
    Norm,
    /// The text encoders' attention.
    TextAttention,
    /// The text encoders' feed-forward layers.
    TextMlp,
    /// The text encoders' tables and projection.
    TextEnds,
}

impl Kind {
    /// By the component and the flat name (diffusers' or the original).
    pub fn of(component: Component, flat: &str) -> Self {
        let inside = |word: &str| flat.contains(word);
        let norm = inside("_norm") || inside("ln_") || inside("in_layers_0") || inside("out_layers_0");
        if component != Component::Unet && (component != Component::Unsaid || is_text(flat)) {
            return match () {
                () if norm => Self::Norm,
                () if inside("attn") => Self::TextAttention,
                () if inside("mlp") => Self::TextMlp,
                () => Self::TextEnds,
            };
        }
        match () {
            () if norm || flat == "out_0" => Self::Norm,
            () if inside("attn1") => Self::SelfAttention,
            () if inside("attn2") => Self::CrossAttention,
            () if inside("_ff_") => Self::FeedForward,
            () if inside("proj_in") || inside("proj_out") => Self::Projection,
            () if inside("samplers_") || flat.ends_with("_op") || is_upsampler(flat) => Self::Resampler,
            () if inside("resnets") || inside("layers_") || inside("skip_connection") => Self::Resnet,
            () => Self::Ends,
        }
    }
}

/// The original name ends in a plain `conv` only there.
fn is_upsampler(flat: &str) -> bool {
    flat.starts_with("output_blocks_") && flat.ends_with("_conv")
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SelfAttention => "self-attention",
            Self::CrossAttention => "cross-attention",
            Self::FeedForward => "feed-forward",
            Self::Projection => "projections",
            Self::Resnet => "resnets",
            Self::Resampler => "resamplers",
            Self::Ends => "ends and time embedding",
            Self::Norm => "norms",
            Self::TextAttention => "text attention",
            Self::TextMlp => "text mlp",
            Self::TextEnds => "text embeddings",
        })
    }
}
