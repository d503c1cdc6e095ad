//! What to draw.

use std::{path::PathBuf, sync::Arc};

use candle_core::Tensor;
use image::RgbImage;

use super::{Hires, ModelSize, Pipeline, text::TextOptions};
use crate::{
    diffusion::{Sampler, SigmaSchedule},
    error::{Error, Result},
    prompt::emphasis::Emphasis,
};

/// Everything a picture depends on besides the model and its adapters.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What to draw, with weights such as `(moon:1.3)`; adapter tags are the caller's to take out.
    pub prompt: String,
    /// What to keep out.
    pub negative: String,
    /// Width and height in pixels; `None` is what the model was trained on.
    pub size_px: Option<(usize, usize)>,
    /// Looks at the picture.
    pub steps: usize,
    /// The solver.
    pub sampler: Sampler,
    /// How noise levels are spread over the steps.
    pub schedule: SigmaSchedule,
    /// How strongly the prompt pulls; 1 ignores the negative prompt and takes half the time; `None` is the model's own.
    pub cfg_scale: Option<f64>,
    /// Pulls over-exposed pictures back, 0 to 1; 0 is off.
    pub cfg_rescale: f64,
    /// The first picture's seed; the next has the next number.
    pub seed: u64,
    /// Pictures.
    pub count: usize,
    /// Pictures denoised together: faster on a GPU, and more memory.
    pub batch: usize,
    /// Which text encoder layer from the end, 1 the last; `None` is the family's own.
    pub clip_skip: Option<usize>,
    /// What weights in prompts do.
    pub emphasis: Emphasis,
    /// Fresh noise of stochastic solvers; `None` is the solver's own.
    pub eta: Option<f64>,
    /// Starts from a picture instead of noise alone.
    pub init: Option<InitImage>,
    /// Enlarges the finished picture and draws it again in part.
    pub hires: Option<Hires>,
    /// The noise to start from instead of the seeds', unit normal (count, h, w, c): for comparing with other programs.
    pub noise: Option<Tensor>,
    /// Sends [`Event::Preview`](crate::progress::Event::Preview) every so many steps; 0 is never.
    pub preview_every: usize,
}

/// A picture to start from.
#[derive(Debug, Clone)]
pub struct InitImage {
    /// Scaled to the request's size, its sides cropped where the proportions differ.
    pub pixels: Arc<RgbImage>,
    /// How much is redrawn: 0 nothing, 1 everything.
    pub strength: f64,
    /// That as so many of the request's steps, the last ones, instead of the strength's share of them.
    pub steps: Option<usize>,
    /// Where it is from, for recipes.
    pub source: Option<InitSource>,
}

/// The file of a picture to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitSource {
    /// Where it is.
    pub path: PathBuf,
    /// The first 10 hexadecimal digits of its SHA-256.
    pub hash: String,
}

impl InitImage {
    /// A picture that is in no file.
    pub fn new(pixels: impl Into<Arc<RgbImage>>, strength: f64) -> Self {
        Self { pixels: pixels.into(), strength, steps: None, source: None }
    }
}

impl Default for GenerateRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative: String::new(),
            size_px: None,
            steps: 25,
            sampler: Sampler::Dpmpp2m,
            schedule: SigmaSchedule::Karras,
            cfg_scale: None,
            cfg_rescale: 0.0,
            seed: 0,
            count: 1,
            batch: 1,
            clip_skip: None,
            emphasis: Emphasis::default(),
            eta: None,
            init: None,
            hires: None,
            noise: None,
            preview_every: 0,
        }
    }
}

/// Larger sides are refused before memory is asked for.
pub const MAX_SIDE_PX: usize = 8192;
/// Stronger guidance is no picture any more.
pub const MAX_CFG_SCALE: f64 = 100.0;
/// More steps are a slip of the finger: the networks know a thousand noise levels.
pub const MAX_STEPS: usize = 1000;
/// More pictures of one request are a slip of the finger, too.
pub const MAX_COUNT: usize = 10_000;
/// The layers of the deepest text encoder that may be skipped.
pub const MAX_CLIP_SKIP: usize = 24;

impl GenerateRequest {
    /// A request with defaults for everything else.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }

    /// The guidance on `pipeline`.
    pub fn cfg_scale_on(&self, pipeline: &Pipeline) -> f64 {
        self.cfg_scale.unwrap_or(pipeline.conventions.cfg_scale)
    }

    /// How much is drawn again of the picture it starts from, or that the second pass does.
    pub fn strength(&self) -> Option<f64> {
        let init = self.init.as_ref().map(|init| init.strength);
        init.or(self.hires.map(|hires| hires.strength))
    }

    pub(super) fn text_options(&self) -> TextOptions {
        TextOptions { clip_skip: self.clip_skip, emphasis: self.emphasis }
    }

    /// Width and height in pixels on `pipeline`.
    ///
    /// # Errors
    /// If the model cannot draw that size.
    pub fn size_on(&self, pipeline: &Pipeline) -> Result<(usize, usize)> {
        let ModelSize { native_px: native, step_px: multiple } = pipeline.size();
        let (width, height) = self.size_px.unwrap_or((native, native));
        for side in [width, height] {
            if side == 0 || side > MAX_SIDE_PX || !side.is_multiple_of(multiple) {
                return Err(Error::invalid(format!(
                    "cannot draw {width}x{height}: expected sides that are multiples of {multiple}, at most {MAX_SIDE_PX}"
                ))
                .with_hint(format!("the nearest is {}", nearest((width, height), multiple))));
            }
        }
        Ok((width, height))
    }

    pub(super) fn check(&self, pipeline: &Pipeline) -> Result<()> {
        let channels = (pipeline.unet.config().in_channels, pipeline.vae.config().latent_channels);
        if channels.0 != channels.1 {
            return Err(Error::invalid(format!(
                "{}: the network takes {} channels, expected {}: inpainting and editing models are not supported",
                pipeline.origin, channels.0, channels.1
            )));
        }
        for (name, value, most) in [
            ("cfg", Some(self.cfg_scale_on(pipeline)), MAX_CFG_SCALE),
            ("cfg rescale", Some(self.cfg_rescale), 1.0),
            ("eta", self.eta, 1.0),
            ("strength", self.strength(), 1.0),
        ] {
            if let Some(value) = value.filter(|value| !(0.0..=most).contains(value)) {
                return Err(Error::invalid(format!("expected {name} from 0 to {most}, found {value}")));
            }
        }
        if !(1..=MAX_STEPS).contains(&self.steps) {
            return Err(Error::invalid(format!("expected 1 to {MAX_STEPS} steps, found {}", self.steps)));
        }
        if !(1..=MAX_COUNT).contains(&self.count) || self.batch == 0 {
            let (count, batch) = (self.count, self.batch);
            return Err(Error::invalid(format!(
                "expected 1 to {MAX_COUNT} pictures, found {count} in batches of {batch}"
            )));
        }
        let layers = pipeline.text.encoders.iter().map(|e| e.model.config().num_hidden_layers).min();
        if let (Some(skip), Some(layers)) = (self.clip_skip, layers)
            && !(1..=layers).contains(&skip)
        {
            return Err(Error::invalid(format!(
                "expected clip skip from 1 to {layers}, the layers of {}'s text encoder, found {skip}",
                pipeline.origin
            )));
        }
        Ok(())
    }
}

fn nearest((width, height): (usize, usize), multiple: usize) -> String {
    let round = |side: usize| (side.min(MAX_SIDE_PX) + multiple / 2).max(multiple) / multiple * multiple;
    format!("{}x{}", round(width), round(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_size_is_possible() {
        assert_eq!(nearest((500, 0), 64), "512x64");
        assert_eq!(nearest((479, 100_000), 64), "448x8192");
    }
}
