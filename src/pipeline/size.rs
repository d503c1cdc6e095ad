//! The sizes a model draws and is trained at.

use super::{Pipeline, load};
use crate::{
    error::Result,
    models::{
        family::{self, Conventions},
        unet::UNetConfig,
        vae::VaeConfig,
    },
    weights::{Checkpoint, Family},
};

/// A picture with a side longer than this many times the model's own is far from anything it has seen.
const FAR: f64 = 2.0;

/// What a model's configs say of pictures' sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSize {
    /// The side of the pictures it was trained on, in pixels.
    pub native_px: usize,
    /// What pictures' sides must be multiples of: the network halves its input at every level but the last.
    pub step_px: usize,
}

impl ModelSize {
    /// Of an opened model; its weights are not read.
    ///
    /// # Errors
    /// If a config is missing or malformed.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let (unet, vae) = (load::unet_config(checkpoint)?, load::vae_config(checkpoint)?);
        Ok(Self::new(&unet, &vae, &family::conventions(checkpoint.family)))
    }

    /// Of a family's full-size model.
    pub fn of_family(family: Family) -> Self {
        let (unet, vae) = (family::unet_config(family), family::vae_config(family));
        Self::new(&unet, &vae, &family::conventions(family))
    }

    pub(super) fn of(pipeline: &Pipeline) -> Self {
        Self::new(pipeline.unet.config(), pipeline.vae.config(), &pipeline.conventions)
    }

    fn new(unet: &UNetConfig, vae: &VaeConfig, conventions: &Conventions) -> Self {
        let stated = unet.sample_size.as_ref().and_then(serde_json::Value::as_u64);
        let levels = unet.block_out_channels.len();
        Self {
            native_px: stated.map_or(conventions.size_px, |latent| latent as usize * vae.downscale()),
            step_px: vae.downscale() << levels.saturating_sub(1),
        }
    }

    /// What to expect of a size far beyond the model's own; `None` if it is not.
    pub fn warning(self, model: &str, (width, height): (usize, usize)) -> Option<String> {
        let native = self.native_px;
        let far = width.max(height) as f64 > FAR * native as f64;
        far.then(|| {
            let work = (width * height) as f64 / (native * native) as f64;
            format!(
                "{model} was trained at {native} px: at {width}x{height} expect noise or repeated shapes, \
                 at least {work:.0} times the work, and much more memory"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_from_the_configs() -> Result<()> {
        let mini = ModelSize::of_checkpoint(&crate::weights::embedded::open()?)?;
        assert_eq!(mini.native_px, 128);
        assert_eq!(ModelSize::of_family(Family::Sd1), ModelSize { native_px: 512, step_px: 64 });
        assert_eq!(ModelSize::of_family(Family::Sdxl).native_px, 1024);
        assert_eq!(mini.warning("mini", (256, 128)), None);
        let warning = mini.warning("mini", (512, 512)).unwrap_or_default();
        assert!(warning.starts_with("mini was trained at 128 px: at 512x512"), "{warning}");
        assert!(warning.contains("16 times"), "{warning}");
        Ok(())
    }
}
