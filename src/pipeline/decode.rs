//! Latents to pictures.

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::Pipeline;
use crate::{
    error::{Error, Result},
    models::vae::Tiling,
    progress::CancelToken,
};

/// How the autoencoder takes pictures that are too large for it at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tiles {
    /// Pictures with more latent pixels than this are cut.
    pub whole: usize,
    /// How they are cut.
    pub tiling: Tiling,
}

impl Default for Tiles {
    /// Whole up to 1024 × 1024 pixels at the usual eight to one.
    fn default() -> Self {
        Self { whole: 128 * 128, tiling: Tiling::default() }
    }
}

impl Tiles {
    /// How a picture of this many latent pixels is cut; `None` if it is not.
    pub fn of(&self, height: usize, width: usize) -> Option<&Tiling> {
        (height * width > self.whole).then_some(&self.tiling)
    }
}

impl Pipeline {
    /// Decodes one picture, in tiles if it is large ([`Pipeline::tiles`]).
    ///
    /// # Shapes
    /// - `latents`: (1, h, w, c), in the network's scale
    ///
    /// # Errors
    /// If the device has no room, or the decoder overflows.
    pub fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        self.decode_until(latents, &CancelToken::default())
    }

    /// [`Pipeline::decode`], stopped between layers if asked to.
    ///
    /// # Errors
    /// As [`Pipeline::decode`]; [`Error::Cancelled`].
    pub fn decode_until(&self, latents: &Tensor, cancel: &CancelToken) -> Result<RgbImage> {
        let config = self.vae.config();
        let shift = config.shift_factor.unwrap_or(0.0);
        let x =
            ((latents.to_dtype(DType::F32)? / config.scaling_factor)? + shift)?.to_dtype(self.vae_dtype())?;
        let (_, h, w, _) = x.dims4()?;
        to_picture(&self.vae.decode_until(&x, self.tiles.of(h, w), cancel)?)?
            .ok_or_else(|| self.overflow("the decoded picture is NaN", self.vae_dtype()))
    }

    pub(super) fn vae_dtype(&self) -> DType {
        if self.dtype() == DType::F16 { DType::F32 } else { self.dtype() }
    }
}

/// `None` if a number is none.
///
/// # Shapes
/// - `x`: (1, h, w, 3) in [-1, 1], what is outside is cut off
fn to_picture(x: &Tensor) -> Result<Option<RgbImage>> {
    let (_, h, w, _) = x.dims4()?;
    let values = x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    if values.iter().any(|v| v.is_nan()) {
        return Ok(None);
    }
    let bytes =
        values.iter().map(|v| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
    let picture = RgbImage::from_raw(w as u32, h as u32, bytes);
    picture.map(Some).ok_or_else(|| Error::invalid(format!("a decoded picture of {w}x{h} is too large")))
}
