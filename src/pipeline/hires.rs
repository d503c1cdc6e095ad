//! The second pass: a finished picture is enlarged and partly drawn again. Large pictures so keep the composition of the
//! size the model knows.
//!
//! The second pass is img2img of the first one's picture, from the same seed. Its steps are all done, as in the web UI:
//! they are the last of a schedule of steps / strength. Pixels are enlarged, with Lanczos, not
//! latents as the web UI does by default: a pass of scale 1 is img2img to the bit, and little strength leaves no blur of
//! enlarged latents behind. A model that knows one size only, as `mini` does, repeats shapes in the second pass too.

use super::{
    GenerateRequest, Generated, InitImage, Pipeline,
    infotext::Recipe,
    request::{MAX_SIDE_PX, MAX_STEPS},
};
use crate::{
    error::{Error, Result},
    progress::{CancelToken, Event, Observer, Stage},
};

/// The web UI's keys. The strength is its `Denoising strength`.
const UPSCALE: &str = "Hires upscale";
const RESIZE: &str = "Hires resize";
const STEPS: &str = "Hires steps";
const UPSCALER: &str = "Hires upscaler";
/// Pictures grow by this at most.
pub const MAX_SCALE: f64 = 8.0;

/// A second pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hires {
    /// Width and height times this, to the nearest size the model draws.
    pub scale: f64,
    /// How much is drawn again: 0 nothing, 1 everything.
    pub strength: f64,
    /// Its steps, all of which are done; `None` is as many as those of the first pass.
    pub steps: Option<usize>,
}

impl Default for Hires {
    fn default() -> Self {
        Self { scale: 1.5, strength: 0.5, steps: None }
    }
}

impl Hires {
    /// The second pass a recipe tells of, also the web UI's.
    pub fn of(recipe: &Recipe) -> Option<Self> {
        let scale = recipe.other(UPSCALE).and_then(|text| text.parse().ok());
        let resized = || {
            let (width, _) = recipe.other(RESIZE)?.split_once('x')?;
            Some(width.parse::<f64>().ok()? / recipe.size_px?.0 as f64)
        };
        let scale = scale.or_else(resized).filter(|scale: &f64| scale.is_finite() && *scale > 0.0)?;
        let steps = recipe.other(STEPS).and_then(|text| text.parse().ok()).filter(|steps| *steps > 0);
        let strength = recipe.denoising_strength.unwrap_or(Self::default().strength);
        Some(Self { scale, strength, steps })
    }

    /// What a recipe says of it, but for the strength.
    pub(super) fn note(&self) -> Vec<(String, String)> {
        let steps = self.steps.map(|steps| (STEPS, steps.to_string()));
        let all = [Some((UPSCALE, self.scale.to_string())), steps, Some((UPSCALER, "Lanczos".into()))];
        all.into_iter().flatten().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The schedule's steps and how many of them, its last, are done, as the web UI counts both (`setup_img2img_steps`).
    /// Where that is more than `most`, fewer are done, from the same noise on.
    fn steps(&self, first: usize, most: usize) -> (usize, usize) {
        let (steps, strength) = (self.steps.unwrap_or(first), self.strength.min(0.999));
        let all = (steps as f64 / strength) as usize;
        match strength {
            0.0 => (steps, 0),
            _ if all > most => (most, ((most as f64 * strength).round() as usize).max(1)),
            _ => (all, steps),
        }
    }

    fn check(&self, request: &GenerateRequest) -> Result<()> {
        if request.init.is_some() {
            return Err(Error::invalid(
                "a second pass follows a picture that is drawn from noise, not another one",
            )
            .with_hint("ask for the larger size itself: a picture to start from is enlarged to it"));
        }
        if !(1.0..=MAX_SCALE).contains(&self.scale) {
            let found = self.scale;
            return Err(Error::invalid(format!(
                "expected a second pass 1 to {MAX_SCALE} times as large, found {found}"
            )));
        }
        if let Some(steps) = self.steps.filter(|steps| !(1..=MAX_STEPS).contains(steps)) {
            return Err(Error::invalid(format!(
                "expected 1 to {MAX_STEPS} steps of a second pass, found {steps}"
            )));
        }
        Ok(())
    }
}

impl GenerateRequest {
    /// Width and height of the finished pictures in pixels: after the second pass, if there is one.
    ///
    /// # Errors
    /// If the model cannot draw that size.
    pub fn final_size_on(&self, pipeline: &Pipeline) -> Result<(usize, usize)> {
        let (width, height) = self.size_on(pipeline)?;
        let Some(hires) = self.hires else { return Ok((width, height)) };
        let step = pipeline.size().step_px;
        let side = |length: usize| {
            let steps = (length as f64 * hires.scale / step as f64).round();
            (steps as usize).clamp(1, MAX_SIDE_PX) * step
        };
        let size_px = Some((side(width), side(height)));
        Self { size_px, hires: None, ..self.clone() }.size_on(pipeline).map_err(|e| e.context("second pass"))
    }

    /// Steps of both passes.
    pub(super) fn steps_in_all(&self) -> usize {
        self.steps + self.hires.map_or(0, |hires| hires.steps.unwrap_or(self.steps))
    }
}

impl Pipeline {
    /// [`Pipeline::generate_each`] of a request with a second pass.
    pub(super) fn generate_twice(
        &mut self,
        (request, hires): (&GenerateRequest, Hires),
        observer: &mut dyn Observer,
        cancel: &CancelToken,
        finished: &mut dyn FnMut(Generated, &mut dyn Observer) -> Result<()>,
    ) -> Result<()> {
        hires.check(request)?;
        let size_px = Some(request.final_size_on(self)?);
        let once = GenerateRequest { hires: None, ..request.clone() };
        let (schedule, last) = hires.steps(request.steps, request.sampler.most_steps(&self.schedule));
        let twice =
            GenerateRequest { size_px, steps: schedule, count: 1, batch: 1, noise: None, ..once.clone() };
        let [first, all] = [self.sigmas(&once)?.len() - 1, self.sigmas(&twice)?.len() - 1];
        let steps = [first as u64, last.min(all) as u64];
        let batches = request.count.div_ceil(request.batch) as u64;
        let total = steps[0] * batches + steps[1] * request.count as u64;
        self.settle_blend(request)?;
        observer.observe(&Event::Started { stage: Stage::Sample, total });
        let mut before = 0;
        for first in (0..request.count).step_by(request.batch) {
            let count = request.batch.min(request.count - first);
            let noise = request.noise.as_ref().map(|noise| noise.narrow(0, first, count)).transpose()?;
            let seed = request.seed.wrapping_add(first as u64);
            let once = GenerateRequest { count, seed, noise, ..once.clone() };
            let mut part = Part { observer: &mut *observer, before, total, first: first == 0 };
            let pictures = self.generate(&once, &mut part, cancel)?;
            before += steps[0];
            for (index, Generated { image, seed, .. }) in pictures.into_iter().enumerate() {
                let init = Some(InitImage { steps: Some(last), ..InitImage::new(image, hires.strength) });
                let twice = GenerateRequest { init, seed, ..twice.clone() };
                let mut part = Part { observer: &mut *observer, before, total, first: first + index == 0 };
                let pictures = self.generate(&twice, &mut part, cancel)?;
                before += steps[1];
                pictures.into_iter().try_for_each(|picture| finished(picture, observer))?;
            }
        }
        observer.observe(&Event::Finished { stage: Stage::Sample });
        Ok(())
    }
}

/// Counts a pass as part of the whole.
struct Part<'a> {
    observer: &'a mut dyn Observer,
    before: u64,
    total: u64,
    /// Warnings are the same for all that follow.
    first: bool,
}

impl Observer for Part<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { stage: Stage::Sample, .. } | Event::Finished { stage: Stage::Sample } => {}
            Event::Advanced { stage: Stage::Sample, done, .. } => {
                let (done, total) = (self.before + done, self.total);
                self.observer.observe(&Event::Advanced { stage: Stage::Sample, done, total });
            }
            Event::Warning { .. } if !self.first => {}
            other => self.observer.observe(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_carry_it_in_the_web_uis_words() {
        for hires in [Hires::default(), Hires { scale: 2.0, strength: 0.35, steps: Some(12) }] {
            let request = GenerateRequest { hires: Some(hires), ..GenerateRequest::new("fox") };
            let text = Recipe::of(&request).to_text();
            assert!(text.contains("Hires upscale: ") && text.contains("Hires upscaler: Lanczos"), "{text}");
            assert_eq!(Hires::of(&Recipe::parse(&text)), Some(hires), "{text}");
        }
        let of = |text: &str| Hires::of(&Recipe::parse(text));
        let resized = "fox\nSteps: 20, Size: 512x768, Denoising strength: 0.7, Hires resize: 1024x1536";
        assert_eq!(of(resized), Some(Hires { scale: 2.0, strength: 0.7, steps: None }));
        assert_eq!(of("fox\nSteps: 20, Size: 512x768, Denoising strength: 0.7"), None);
        assert_eq!(of("fox\nSteps: 20, Size: 0x0, Hires resize: 1x1, Seed: 3"), None);
    }

    /// Numbers of the web UI's `setup_img2img_steps`, which returns the schedule's steps and one less than are done.
    #[test]
    fn all_steps_are_done_whatever_the_strength() {
        let of = |strength, steps| Hires { strength, steps, ..Hires::default() }.steps(20, 1000);
        for (strength, steps, expected) in [
            (0.5, None, (40, 20)),
            (0.5, Some(6), (12, 6)),
            (0.3, Some(10), (33, 10)),
            (0.7, Some(15), (21, 15)),
            (1.0, Some(30), (30, 30)),
            (0.0, Some(30), (30, 0)),
            (0.01, Some(20), (1000, 10)),
            (0.0001, Some(20), (1000, 1)),
        ] {
            assert_eq!(of(strength, steps), expected, "{strength} {steps:?}");
        }
    }
}
