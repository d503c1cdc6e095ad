//! The visitor that finds the layers an adapter can sit on.

use std::fmt;

use super::{Conv2d, Embedding, GroupNorm, LayerNorm, Linear, Norm};
use crate::error::Result;

/// A component of a Stable Diffusion model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The denoising network.
    Unet,
    /// The only text encoder of SD 1/2, CLIP-L of SDXL.
    TextEncoder,
    /// OpenCLIP bigG of SDXL.
    TextEncoder2,
}

impl Part {
    /// Every component.
    pub const ALL: [Self; 3] = [Self::Unet, Self::TextEncoder, Self::TextEncoder2];

    /// diffusers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

/// Where a layer is: its component and its dotted path in diffusers' (UNet) or Hugging Face's (text encoder) words,
/// such as `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q` or
/// `text_model.encoder.layers.0.self_attn.q_proj`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerPath {
    /// The component.
    pub part: Part,
    /// The dotted path, equal to the checkpoint's key without `.weight`.
    pub name: String,
}

impl LayerPath {
    /// The path of a whole component; [`LayerPath::join`] goes down from it.
    pub fn root(part: Part) -> Self {
        Self { part, name: String::new() }
    }

    /// The path of a child.
    #[must_use]
    pub fn join(&self, child: impl fmt::Display) -> Self {
        let name = if self.name.is_empty() { child.to_string() } else { format!("{}.{child}", self.name) };
        Self { part: self.part, name }
    }

    /// Is it `outer`, or below it?
    pub fn is_inside(&self, outer: &Self) -> bool {
        let rest = self.name.strip_prefix(&outer.name);
        let below = |rest: &str| rest.is_empty() || outer.name.is_empty() || rest.starts_with('.');
        self.part == outer.part && rest.is_some_and(below)
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.part.name(), self.name)
    }
}

/// A layer that adapters exist for.
#[derive(Debug)]
pub enum Slot<'a> {
    /// An affine layer.
    Linear(&'a mut Linear),
    /// A convolution.
    Conv2d(&'a mut Conv2d),
    /// The scale and shift of a `GroupNorm` or `LayerNorm`.
    Norm(&'a mut Norm),
    /// A lookup table.
    Embedding(&'a mut Embedding),
}

impl Slot<'_> {
    /// The same slot, for a use before another.
    pub fn reborrow(&mut self) -> Slot<'_> {
        match self {
            Self::Linear(layer) => Slot::Linear(layer),
            Self::Conv2d(layer) => Slot::Conv2d(layer),
            Self::Norm(norm) => Slot::Norm(norm),
            Self::Embedding(table) => Slot::Embedding(table),
        }
    }
}

/// Receives each layer with its path.
pub type Visitor<'a> = dyn FnMut(&LayerPath, Slot<'_>) -> Result<()> + 'a;

/// Something with layers inside.
pub trait Adaptable {
    /// Calls `f` once for every layer below `path`, in a fixed order.
    ///
    /// # Errors
    /// Whatever `f` returns; visiting stops there.
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()>;
}

impl Adaptable for Linear {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        f(path, Slot::Linear(self))
    }
}

impl Adaptable for Conv2d {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        f(path, Slot::Conv2d(self))
    }
}

impl Adaptable for GroupNorm {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        f(path, Slot::Norm(&mut self.norm))
    }
}

impl Adaptable for LayerNorm {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        f(path, Slot::Norm(&mut self.norm))
    }
}

impl Adaptable for Embedding {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        f(path, Slot::Embedding(self))
    }
}
