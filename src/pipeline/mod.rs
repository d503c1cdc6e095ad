//! From a request to pictures: text encoders, denoising network and autoencoder of one model, put together.

pub mod decode;
pub mod embeddings;
pub mod export;
pub mod generate;
pub mod img2img;
pub mod infotext;
pub mod layers;
pub mod load;
pub mod request;
pub mod text;

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device};

pub use decode::Tiles;
pub use generate::Generated;
pub use request::{GenerateRequest, InitImage};
pub use text::{Conditioning, TextEncoders};

use crate::{
    adapter::{Adapter, Blend, Live, LoadOptions, NameTable, Parts},
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
    live: Option<Live>,
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

    /// The side of the pictures the model was trained on, in pixels.
    pub fn native_size_px(&self) -> usize {
        let stated = self.unet.config().sample_size.as_ref().and_then(serde_json::Value::as_u64);
        stated.map_or(self.conventions.size_px, |latent| latent as usize * self.downscale())
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

    /// Applies adapters live, in place of those before. With the same adapters as before only the strengths are
    /// rewritten.
    ///
    /// # Errors
    /// If an adapter does not fit the model.
    pub fn set_blend(&mut self, blend: Blend) -> Result<()> {
        let same = |a: &Blend, b: &Blend| {
            a.entries.len() == b.entries.len()
                && a.entries.iter().zip(&b.entries).all(|(a, b)| Arc::ptr_eq(&a.adapter, &b.adapter))
        };
        self.text.set_bundled(&blend)?;
        let mut parts = parts(&mut self.unet, &mut self.text);
        match &mut self.live {
            Some(live) if same(&self.blend, &blend) => live.set_strengths(&mut parts, &blend.strengths())?,
            _ => self.live = Some(Live::attach(&blend, &mut parts)?),
        }
        self.blend = blend;
        self.text.forget();
        Ok(())
    }

    /// The adapters in use.
    pub fn blend(&self) -> &Blend {
        &self.blend
    }
}

fn parts<'a>(unet: &'a mut UNet2DConditionModel, text: &'a mut TextEncoders) -> Parts<'a> {
    text.add_to(Parts::new().with(Part::Unet, unet))
}
