//! A picture to start from: its latents, and the part of the walk that is left.

use candle_core::{DType, Tensor};
use image::{
    RgbImage,
    imageops::{self, FilterType},
};

use super::{GenerateRequest, InitImage, Pipeline};
use crate::{diffusion::sigmas, error::Result, progress::CancelToken};

impl Pipeline {
    /// The noise levels of a request: all of them, or with a picture to start from the last part.
    pub(super) fn sigmas(&self, request: &GenerateRequest) -> Result<Vec<f64>> {
        let all = request.sampler.sigmas(&self.schedule, request.schedule, request.steps)?;
        let tail = match &request.init {
            None => return Ok(all),
            Some(InitImage { steps: Some(steps), .. }) => {
                all.get((all.len() - 1).saturating_sub(*steps)..).unwrap_or_default()
            }
            Some(InitImage { strength, .. }) => sigmas::img2img_tail(&all, *strength)?,
        };
        match tail {
            // No step is left: the picture as it is, without the noise of the walk's end.
            [] | [_] => Ok(vec![0.0]),
            tail => Ok(tail.to_vec()),
        }
    }

    /// The latents (1, h, w, c) of the picture a request starts from.
    pub(super) fn encode_init(
        &self,
        request: &GenerateRequest,
        (width, height): (usize, usize),
        cancel: &CancelToken,
    ) -> Result<Option<Tensor>> {
        let Some(init) = &request.init else { return Ok(None) };
        let pixels = cover(&init.pixels, width as u32, height as u32);
        Ok(Some(self.encode_until(&pixels, cancel)?))
    }

    /// The likeliest latents of a picture, in the network's scale; in tiles if it is large.
    ///
    /// # Shapes
    /// - (1, h / downscale, w / downscale, c), f32
    ///
    /// # Errors
    /// If the device has no room.
    pub fn encode_picture(&self, pixels: &RgbImage) -> Result<Tensor> {
        self.encode_until(pixels, &CancelToken::default())
    }

    fn encode_until(&self, pixels: &RgbImage, cancel: &CancelToken) -> Result<Tensor> {
        let (width, height) = pixels.dimensions();
        let values: Vec<f32> = pixels.as_raw().iter().map(|v| f32::from(*v) / 127.5 - 1.0).collect();
        let x = Tensor::from_vec(values, (1, height as usize, width as usize, 3), self.device())?;
        let (config, x) = (self.vae.config(), x.to_dtype(self.vae_dtype())?);
        let latent = |side: u32| side as usize / self.downscale();
        let tiling = self.tiles.of(latent(height), latent(width));
        let gaussian = self.vae.encode_until(&x, tiling, cancel)?;
        let latents = gaussian.mean.to_dtype(DType::F32)?;
        let shift = config.shift_factor.unwrap_or(0.0);
        Ok(((latents - shift)? * config.scaling_factor)?)
    }
}

/// Scales a picture until it covers the size, and crops what stands over evenly.
fn cover(pixels: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (w, h) = pixels.dimensions();
    if (w, h) == (width, height) || w == 0 || h == 0 {
        return pixels.clone();
    }
    let scale = (f64::from(width) / f64::from(w)).max(f64::from(height) / f64::from(h));
    let side = |length: u32, least: u32| ((f64::from(length) * scale).round() as u32).max(least);
    let (w, h) = (side(w, width), side(h, height));
    let scaled = imageops::resize(pixels, w, h, FilterType::Lanczos3);
    imageops::crop_imm(&scaled, (w - width) / 2, (h - height) / 2, width, height).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_keeps_proportions_and_crops_evenly() {
        let pixels = RgbImage::from_fn(8, 4, |x, _| image::Rgb([if x < 4 { 0 } else { 255 }, 0, 0]));
        let covered = cover(&pixels, 4, 4);
        assert_eq!(covered.dimensions(), (4, 4));
        assert_eq!((covered.get_pixel(0, 0)[0], covered.get_pixel(3, 3)[0]), (0, 255));
        assert_eq!(cover(&pixels, 1, 100).dimensions(), (1, 100));
    }
}
