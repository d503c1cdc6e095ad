//! How strongly an adapter acts, and where: weight(part, block, step, place).
//!
//! `0.8` is the usual case. The whole grammar, which `--lora`, prompt tags and blend files share, is in
//! `docs/blending.md`.

mod blocks;
mod curve;
mod region;
mod words;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::GrayImage;

pub use blocks::{Block, Blocks};
pub use curve::{Curve, MAX_WEIGHT};
pub use region::{Half, Masks, Region};

use super::NameTable;
use crate::{
    error::Result,
    nn::{LayerPath, Part},
    weights::Family,
};

/// The weight m of an adapter in a blend: W' = W + m · ΔW. Negative weights and weights above 1 are legal.
///
/// What [`Strength::at`] answers is the weight at one moment: that of the first step, until [`Strength::at_percent`]
/// has fixed another one.
#[derive(Debug, Clone, PartialEq)]
pub struct Strength {
    unet: Curve,
    text_encoder: Curve,
    blocks: Blocks,
    region: Option<Region>,
    /// What normalising a blend takes away on single layers.
    factors: Option<Arc<BTreeMap<LayerPath, f64>>>,
}

impl Strength {
    /// The same weight everywhere.
    pub fn uniform(weight: f64) -> Self {
        Self::split(weight, weight)
    }

    /// One weight for the denoising network, one for the text encoders.
    pub fn split(unet: f64, text_encoder: f64) -> Self {
        Self::curves(Curve::Constant(unet), Curve::Constant(text_encoder))
    }

    /// Weights that change over the steps.
    pub fn curves(unet: Curve, text_encoder: Curve) -> Self {
        Self { unet, text_encoder, blocks: Blocks::default(), region: None, factors: None }
    }

    /// The same with factors on single blocks.
    #[must_use]
    pub fn with_blocks(self, blocks: Blocks) -> Self {
        Self { blocks, ..self }
    }

    /// The same in a part of the picture only. The text encoders are untouched by that.
    #[must_use]
    pub fn in_region(self, region: Region) -> Self {
        Self { region: Some(region), ..self }
    }

    /// The weight in the denoising network, without blocks and region.
    pub fn unet(&self) -> &Curve {
        &self.unet
    }

    /// The weight in the text encoders.
    pub fn text_encoder(&self) -> Curve {
        self.text_encoder.scaled(self.blocks.base())
    }

    /// Factors on single blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Where in the picture it acts, if not everywhere.
    pub fn region(&self) -> Option<&Region> {
        self.region.as_ref()
    }

    /// The weight on one layer. With a region, that inside of it; 0 on layers that do not know places (the time's
    /// embedding, keys and values of the text), and everywhere before [`Strength::on_canvas`].
    pub fn at(&self, layer: &LayerPath) -> f64 {
        let weight = match layer.part {
            Part::TextEncoder | Part::TextEncoder2 => self.text_encoder.at(0.0) * self.blocks.base(),
            Part::Unet if self.region.is_some() && self.masks(layer).is_none() => return 0.0,
            Part::Unet => self.unet.at(0.0) * self.blocks.factor(&layer.name),
        };
        match &self.factors {
            Some(factors) => weight * factors.get(layer).copied().unwrap_or(1.0),
            None => weight,
        }
    }

    /// The masks to multiply the change of a layer's output by; `None` where it counts everywhere (or nowhere).
    pub fn masks(&self, layer: &LayerPath) -> Option<&Arc<Masks>> {
        let region =
            self.region.as_ref().filter(|_| layer.part == Part::Unet && knows_places(&layer.name))?;
        region.masks()
    }

    /// True if the weight on a layer differs from place to place.
    pub fn differs_on(&self, layer: &LayerPath) -> bool {
        self.region.is_some() && layer.part == Part::Unet && knows_places(&layer.name)
    }

    /// True if no layer is touched at any time.
    pub fn is_zero(&self) -> bool {
        self.unet.peak() == 0.0 && self.text_encoder.peak() == 0.0
    }

    /// True if the weight changes over the steps.
    pub fn is_scheduled(&self) -> bool {
        !(self.unet.is_constant() && self.text_encoder.is_constant())
    }

    /// The strength of one moment: when `percent` of the steps are done.
    #[must_use]
    pub fn at_percent(&self, percent: f64) -> Self {
        let fix = |curve: &Curve| Curve::Constant(curve.at(percent));
        Self { unet: fix(&self.unet), text_encoder: fix(&self.text_encoder), ..self.clone() }
    }

    /// The strength with every curve at its peak: what the worst moment may do.
    #[must_use]
    pub fn at_peak(&self) -> Self {
        let fix = |curve: &Curve| Curve::Constant(curve.peak());
        Self { unet: fix(&self.unet), text_encoder: fix(&self.text_encoder), ..self.clone() }
    }

    /// The strength on a picture of (h, w) latent pixels: its region at every resolution.
    ///
    /// # Errors
    /// If the region's mask has not been read.
    pub fn on_canvas(&self, size: (usize, usize)) -> Result<Self> {
        let region = self.region.as_ref().map(|region| region.on_canvas(size)).transpose()?;
        Ok(Self { region, ..self.clone() })
    }

    /// Times a number, everywhere.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let (unet, text_encoder) = (self.unet.scaled(factor), self.text_encoder.scaled(factor));
        Self { unet, text_encoder, ..self.clone() }
    }

    /// Times a number on single layers.
    #[must_use]
    pub(crate) fn with_factors(&self, factors: Arc<BTreeMap<LayerPath, f64>>) -> Self {
        Self { factors: Some(factors), ..self.clone() }
    }

    /// Reads the mask, if there is one, by `read`.
    ///
    /// # Errors
    /// Whatever `read` returns.
    pub fn read_mask(&mut self, read: &mut dyn FnMut(&Path) -> Result<Mask>) -> Result<()> {
        if let Some(region) = &mut self.region
            && let Some(path) = region.file()
        {
            let mask = read(path)?;
            region.set_file(mask.path);
            region.set_picture(mask.picture);
        }
        Ok(())
    }

    /// # Errors
    /// If a factor is on a block that the model has not.
    pub fn check_blocks(&self, table: &NameTable) -> Result<()> {
        let of_unet = table.layers().filter(|(path, _)| path.part == Part::Unet);
        self.blocks.check_names(of_unet.map(|(path, _)| path.name.as_str()))
    }

    /// # Errors
    /// If block weights count another family's blocks.
    pub fn check(&self, family: Family) -> Result<()> {
        self.blocks.check(family)
    }
}

/// A mask as it was read.
#[derive(Debug, Clone)]
pub struct Mask {
    /// Where recipes find it again.
    pub path: PathBuf,
    /// White is 1.
    pub picture: Arc<GrayImage>,
}

/// Layers whose input is the time or the text have no places to differ at.
fn knows_places(name: &str) -> bool {
    let placeless = ["attn2.to_k", "attn2.to_v", "time_emb_proj"];
    let embedding = ["time_embedding.", "add_embedding.", "class_embedding."];
    !placeless.iter().any(|end| name.ends_with(end)) && !embedding.iter().any(|start| name.starts_with(start))
}

impl Default for Strength {
    fn default() -> Self {
        Self::uniform(1.0)
    }
}
