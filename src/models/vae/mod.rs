//! Pictures to latents and back (<https://arxiv.org/abs/2112.10752>), under diffusers' names.

mod blocks;
pub mod config;
pub mod tiling;

use std::collections::BTreeMap;

use candle_core::{DType, Shape, Tensor};

use self::blocks::{Decoder, Encoder, conv};
pub use self::{config::VaeConfig, tiling::Tiling};
use crate::{
    error::Result,
    nn::Conv2d,
    progress::CancelToken,
    weights::{self, Weights},
};

/// A normal distribution for each latent value.
#[derive(Debug, Clone)]
pub struct DiagonalGaussian {
    /// (b, h, w, c); also the likeliest latents.
    pub mean: Tensor,
    /// Logarithm of the variance (b, h, w, c), in [-30, 20].
    pub logvar: Tensor,
}

impl DiagonalGaussian {
    /// mean + σ · `noise`.
    ///
    /// # Shapes
    /// - `noise`: (b, h, w, c) → (b, h, w, c)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let std = (&self.logvar * 0.5)?.exp()?;
        Ok((&self.mean + std.mul(&noise.to_dtype(std.dtype())?)?)?)
    }
}

/// `AutoencoderKL`. `config().scaling_factor` is for the caller to apply.
#[derive(Debug, Clone)]
pub struct AutoencoderKl {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

impl AutoencoderKl {
    /// Loads the autoencoder that `config` describes; the attention may be under diffusers' old names, and its weights
    /// may be 1×1 convolutions.
    ///
    /// # Errors
    /// If the config has a value this network does not have, or a tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        config.check()?;
        let latents = config.latent_channels;
        let quant = || conv(&weights.pp("quant_conv"), 2 * latents, 2 * latents, 1);
        let post_quant = || conv(&weights.pp("post_quant_conv"), latents, latents, 1);
        Ok(Self {
            config: config.clone(),
            encoder: Encoder::load(&weights.pp("encoder"), config)?,
            decoder: Decoder::load(&weights.pp("decoder"), config)?,
            quant_conv: config.use_quant_conv.then(quant).transpose()?,
            post_quant_conv: config.use_post_quant_conv.then(post_quant).transpose()?,
        })
    }

    /// Name and shape of every tensor of the autoencoder that `config` describes.
    ///
    /// # Errors
    /// If the config has a value this network does not have.
    pub fn parameter_shapes(config: &VaeConfig) -> Result<BTreeMap<String, Shape>> {
        weights::record_shapes(|weights| Self::load(weights, config).map(drop))
    }

    /// The config the network was made from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// # Shapes
    /// - `pictures`: (b, h, w, 3) in [-1, 1] → mean and log variance (b, h / 8, w / 8, 4)
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn encode(&self, pictures: &Tensor) -> Result<DiagonalGaussian> {
        self.encode_until(pictures, None, &CancelToken::default())
    }

    /// [`AutoencoderKl::encode`], stopped between layers if asked to; with a tiling in overlapping tiles, for pictures too
    /// large to encode at once.
    ///
    /// # Shapes
    /// - `pictures`: (b, h, w, 3) in [-1, 1] → mean and log variance (b, h / 8, w / 8, 4)
    ///
    /// # Errors
    /// If shapes disagree, or the tiling makes no sense; [`Error::Cancelled`](crate::error::Error::Cancelled).
    pub fn encode_until(
        &self,
        pictures: &Tensor,
        tiling: Option<&Tiling>,
        cancel: &CancelToken,
    ) -> Result<DiagonalGaussian> {
        let Some(tiling) = tiling else { return self.split(&self.moments(pictures, cancel)?) };
        let sides = (tiling.size * self.config.downscale(), tiling.size);
        self.split(&tiling.map(pictures, sides, |tile| self.moments(tile, cancel))?)
    }

    /// # Shapes
    /// - `latents`: (b, h, w, 4) → pictures (b, 8 h, 8 w, 3), about [-1, 1]
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_until(latents, None, &CancelToken::default())
    }

    /// [`AutoencoderKl::decode`], stopped between layers if asked to; with a tiling in overlapping tiles, for pictures too
    /// large to decode at once. Tiles do not see one another, so such a picture differs a little from one decoded whole.
    ///
    /// # Shapes
    /// - `latents`: (b, h, w, 4) → (b, 8 h, 8 w, 3)
    ///
    /// # Errors
    /// If shapes disagree, or the tiling makes no sense; [`Error::Cancelled`](crate::error::Error::Cancelled).
    pub fn decode_until(
        &self,
        latents: &Tensor,
        tiling: Option<&Tiling>,
        cancel: &CancelToken,
    ) -> Result<Tensor> {
        let decode = |latents: &Tensor| {
            let latents = latents.to_dtype(self.dtype())?;
            match &self.post_quant_conv {
                Some(post_quant_conv) => self.decoder.forward(&post_quant_conv.forward(&latents)?, cancel),
                None => self.decoder.forward(&latents, cancel),
            }
        };
        match tiling {
            None => decode(latents),
            Some(tiling) => tiling.map(latents, (tiling.size, tiling.size * self.config.downscale()), decode),
        }
    }

    /// Mean and log variance side by side (b, h / 8, w / 8, 8).
    fn moments(&self, pictures: &Tensor, cancel: &CancelToken) -> Result<Tensor> {
        let moments = self.encoder.forward(&pictures.to_dtype(self.dtype())?, cancel)?;
        match &self.quant_conv {
            Some(quant_conv) => quant_conv.forward(&moments),
            None => Ok(moments),
        }
    }

    fn split(&self, moments: &Tensor) -> Result<DiagonalGaussian> {
        let latents = self.config.latent_channels;
        let mean = moments.narrow(3, 0, latents)?.contiguous()?;
        let logvar = moments.narrow(3, latents, latents)?.contiguous()?;
        Ok(DiagonalGaussian { mean, logvar: logvar.clamp(-30f32, 20f32)? })
    }

    /// The dtype activations have.
    fn dtype(&self) -> DType {
        self.decoder.dtype()
    }
}
