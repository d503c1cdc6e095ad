//! From a picture to what the VAE sees: resized with Lanczos3, cropped to its bucket, perhaps mirrored, in [-1, 1].

use candle_core::{Device, Tensor};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images::Image};
use image::RgbImage;

use super::bucket::Placement;
use crate::{
    error::{Error, Result},
    random::{Rng, Stream},
};

/// Which part of the resized picture is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Where the crop lies in the overhang, as fractions (across, down): (0.5, 0.5) is the centre.
    pub crop: (f64, f64),
    /// Mirrored left to right.
    pub flip: bool,
}

impl View {
    /// The centre, not mirrored: what caches hold.
    pub const CENTRE: Self = Self { crop: (0.5, 0.5), flip: false };

    /// A view drawn for sample number `sample` of a run.
    pub fn random(seed: u64, sample: u64, random_crop: bool, random_flip: bool) -> Self {
        let mut rng = Rng::new(seed, Stream::Augment, sample);
        let drawn = Self { crop: (rng.unit(), rng.unit()), flip: rng.unit() < 0.5 };
        Self {
            crop: if random_crop { drawn.crop } else { Self::CENTRE.crop },
            flip: random_flip && drawn.flip,
        }
    }
}

/// A picture as the VAE takes it, and what SDXL's size conditioning wants to know.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// (h, w, 3) in [-1, 1], f32 on the CPU.
    pub pixels: Tensor,
    /// Width and height of the file's picture.
    pub original_px: (u32, u32),
    /// The crop's left and top edge in the resized picture.
    pub crop_px: (u32, u32),
}

/// Resizes, crops and mirrors a picture.
///
/// # Errors
/// If memory for the resized picture cannot be had.
pub fn prepare(picture: &RgbImage, placement: &Placement, view: View) -> Result<Prepared> {
    let (w, h) = placement.resized_px;
    let (bw, bh) = (placement.bucket.width, placement.bucket.height);
    let resized = resize(picture, w, h)?;
    let offset = |overhang: u32, at: f64| (f64::from(overhang) * at.clamp(0.0, 1.0)) as u32;
    let (left, top) = (offset(w - bw, view.crop.0), offset(h - bh, view.crop.1));
    let mut values = Vec::with_capacity((bw * bh * 3) as usize);
    for y in 0..bh {
        for x in 0..bw {
            let x = if view.flip { bw - 1 - x } else { x };
            let at = (((top + y) * w + left + x) * 3) as usize;
            values.extend(resized[at..at + 3].iter().map(|v| f32::from(*v) / 127.5 - 1.0));
        }
    }
    let pixels = Tensor::from_vec(values, (bh as usize, bw as usize, 3), &Device::Cpu)?;
    Ok(Prepared { pixels, original_px: picture.dimensions(), crop_px: (left, top) })
}

fn resize(picture: &RgbImage, width: u32, height: u32) -> Result<Vec<u8>> {
    if picture.dimensions() == (width, height) {
        return Ok(picture.as_raw().clone());
    }
    let failed =
        |e: &dyn std::fmt::Display| Error::invalid(format!("cannot resize to {width}x{height}: {e}"));
    let from = fast_image_resize::images::ImageRef::new(
        picture.width(),
        picture.height(),
        picture.as_raw(),
        PixelType::U8x3,
    )
    .map_err(|e| failed(&e))?;
    let mut to = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&from, &mut to, &options).map_err(|e| failed(&e))?;
    Ok(to.into_vec())
}
