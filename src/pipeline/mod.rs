//! From a request to pictures: text encoders, denoising network and autoencoder of one model, put together.

pub mod blending;
pub mod decode;
pub mod embeddings;
pub mod export;
pub mod generate;
pub mod grid;
pub mod hires;
pub mod img2img;
pub mod infotext;
pub mod layers;
pub mod load;
pub mod preview;
pub mod random;
pub mod request;
pub mod sheet;
pub mod size;
pub mod text;

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device};

pub use decode::Tiles;
pub use generate::Generated;
pub use hires::Hires;
pub use request::{GenerateRequest, InitImage, InitSource};
pub use size::ModelSize;
pub use text::{Conditioning, TextEncoders};

use crate::{
    adapter::{Adapter, Blend, LoadOptions, NameTable, Parts},
    diffusion::NoiseSchedule,
    error::Result,
    models::{AutoencoderKl, UNet2DConditionModel, family::Conventions},
    nn::Part,
    weights::Family,
};

/// A model ready to draw, with the adapters that are blended into it.
#[derive(Debug)]
pub struct Pipeline {
    /// The model's family.
    pub family: Family,
    /// What the user called the model.
    pub origin: String,
    /// The denoising network.
    pub unet: UNet2DConditionModel,
    /// Pictures to latents and back.
    pub vae: AutoencoderKl,
    /// Prompts to what the network reads.
    pub text: TextEncoders,
    /// The noise the network was trained on.
    pub schedule: NoiseSchedule,
    /// How the family is used.
    pub conventions: Conventions,
    /// How large pictures are decoded and encoded.
    pub tiles: Tiles,
    device: Device,
    dtype: DType,
    blend: Blend,
    applied: blending::Applied,
}

impl Pipeline {
    /// The device the model is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of the network's weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Pixels a side of one latent pixel.
    pub fn downscale(&self) -> usize {
        self.vae.config().downscale()
    }

    /// The sizes the model draws.
    pub fn size(&self) -> ModelSize {
        ModelSize::of(self)
    }

    /// The side of the pictures the model was trained on, in pixels.
    pub fn native_size_px(&self) -> usize {
        self.size().native_px
    }

    /// The components adapters touch.
    pub fn parts(&mut self) -> Parts<'_> {
        parts(&mut self.unet, &mut self.text)
    }

    /// The names an adapter's file may use for this model.
    ///
    /// # Errors
    /// Never; the signature is that of visiting.
    pub fn name_table(&mut self) -> Result<NameTable> {
        NameTable::of(&mut self.parts())
    }

    /// Reads an adapter for this model; [`Pipeline::set_blend`] applies it.
    ///
    /// # Errors
    /// As [`Adapter::load`].
    pub fn load_adapter(&mut self, path: impl AsRef<Path>, options: &LoadOptions) -> Result<Arc<Adapter>> {
        Ok(Arc::new(Adapter::load(path, &self.name_table()?, options)?))
    }
}

fn parts<'a>(unet: &'a mut UNet2DConditionModel, text: &'a mut TextEncoders) -> Parts<'a> {
    text.add_to(Parts::new().with(Part::Unet, unet))
}
