//! Latents to rough colours at once: each latent pixel becomes one pixel, without the autoencoder.
//!
//! The numbers for Stable Diffusion 1 and XL are those ComfyUI and the web UI show previews with; those for the embedded
//! model are a least-squares fit to its pictures (R² 0.97 over 21 of them).

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::Pipeline;
use crate::{
    error::{Error, Result},
    weights::Family,
};

/// What each latent channel adds to red, green and blue in [-1, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentColours {
    channels: [[f32; 3]; 4],
    bias: [f32; 3],
}

const SD1: LatentColours = LatentColours {
    channels: [
        [0.3512, 0.2297, 0.3227],
        [0.3250, 0.4974, 0.2350],
        [-0.2829, 0.1762, 0.2721],
        [-0.2120, -0.2616, -0.7177],
    ],
    bias: [0.0; 3],
};
const SDXL: LatentColours = LatentColours {
    channels: [
        [0.3651, 0.4232, 0.4341],
        [-0.2533, -0.0042, 0.1068],
        [0.1076, 0.1111, -0.0362],
        [-0.3165, -0.2492, -0.2188],
    ],
    bias: [0.1084, -0.0175, -0.0011],
};
const MINI: LatentColours = LatentColours {
    channels: [
        [0.4783, 0.0623, 0.0019],
        [0.0325, 0.3706, 0.0129],
        [-0.0002, 0.1034, 0.4765],
        [-0.0142, 0.0123, -0.0111],
    ],
    bias: [0.2427, 0.1028, 0.0456],
};

impl Pipeline {
    /// How this model's latents are shown before they are decoded.
    pub fn latent_colours(&self) -> LatentColours {
        match self.family {
            Family::Sd1 | Family::Sd2 => SD1,
            Family::Sdxl | Family::SdxlRefiner => SDXL,
            Family::Mini => MINI,
        }
    }
}

impl LatentColours {
    /// The first picture of a batch.
    ///
    /// # Shapes
    /// - `latents`: (b, h, w, 4), in the network's scale
    ///
    /// # Errors
    /// If the latents do not have four channels.
    pub fn picture(&self, latents: &Tensor) -> Result<RgbImage> {
        let (_, h, w, c) = latents.dims4()?;
        if c != self.channels.len() {
            return Err(Error::invalid(format!("expected latents of 4 channels to preview, found {c}")));
        }
        let first = latents.narrow(0, 0, 1)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let values = first.flatten_all()?.to_vec1::<f32>()?;
        let mut bytes = Vec::with_capacity(h * w * 3);
        for latent in values.chunks_exact(c) {
            for colour in 0..3 {
                let mixed = latent.iter().zip(&self.channels).map(|(value, row)| value * row[colour]);
                let level = self.bias[colour] + mixed.sum::<f32>();
                bytes.push(((level * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8);
            }
        }
        let picture = RgbImage::from_raw(w as u32, h as u32, bytes);
        picture.ok_or_else(|| Error::invalid(format!("a preview of {w}x{h} is too large")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pipeline::GenerateRequest, progress::CancelToken, weights::embedded};

    #[test]
    fn previews_look_like_the_picture_in_small() -> Result<()> {
        let mut pipeline = Pipeline::load(&embedded::open()?, &Device::Cpu, DType::F32)?;
        let request =
            GenerateRequest { steps: 6, seed: 3, ..GenerateRequest::new("cat, flat icon, blue background") };
        let drawn = pipeline.generate(&request, &mut (), &CancelToken::default())?.remove(0);
        let preview = pipeline.latent_colours().picture(&drawn.latents)?;
        let (w, h) = preview.dimensions();
        let small = image::imageops::resize(&drawn.image, w, h, image::imageops::FilterType::Triangle);
        let far: u32 =
            preview.as_raw().iter().zip(small.as_raw()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        let mean = f64::from(far) / preview.as_raw().len() as f64;
        assert!(mean < 20.0, "{mean} of 255 off on average");
        let wrong = Tensor::zeros((1, 2, 2, 16), DType::F32, &Device::Cpu)?;
        assert!(SD1.picture(&wrong).is_err());
        Ok(())
    }
}
