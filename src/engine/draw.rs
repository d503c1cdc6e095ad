//! Drawing, with the picture to be seen from the first step on.

use std::time::{Duration, Instant};

use super::{
    Draw, Event, Mix, Picture,
    model::Loaded,
    worker::{Task, Worker, told},
};
use crate::{
    adapter::BlendMode,
    error::Result,
    pipeline::{GenerateRequest, infotext, infotext::Recipe},
    progress,
};

/// More adapters than this are not looked through for overlap: it takes time.
const COMPARED: usize = 4;
/// Time between previews: nobody is shown more than thirty a second, and each takes a while to colour.
const PREVIEW_EVERY: Duration = Duration::from_millis(33);

impl Worker {
    pub fn draw(&mut self, Draw { mix, mut request, .. }: Draw, task: Task<'_>) -> Result<()> {
        let (loaded, recipe) = self.ready(&mix, &mut request, &[], task)?;
        // What adapters have in common takes a while to compute, once: the picture comes first.
        let paths: Vec<_> = mix.loras.iter().map(|lora| lora.path.clone()).collect();
        let known = loaded.compared == paths;
        if known {
            loaded.report(task)?;
        }
        loaded.pictures(&request, &recipe, task, &mut |picture| {
            task.send(Event::Picture(task.id, Box::new(picture)));
        })?;
        if !known && paths.len() <= COMPARED {
            loaded.compared = paths;
            loaded.report(task)?;
        }
        Ok(())
    }

    /// The model with the mix set, and what recipes say of both; previews are asked for. A style that is off is in no
    /// recipe, unless it is one of `named`, by its place.
    pub(super) fn ready(
        &mut self,
        mix: &Mix,
        request: &mut GenerateRequest,
        named: &[usize],
        task: Task<'_>,
    ) -> Result<(&mut Loaded, Recipe)> {
        let loaded = self.open(&mix.model, task)?;
        let (text, tags) = infotext::LoraUse::extract(&request.prompt)?;
        for tag in tags {
            task.warn(format!(
                "`<lora:{}:…>` in the prompt is left out: add the style to the blend",
                tag.name
            ));
        }
        request.prompt = text;
        request.preview_every = 1;
        let (blend, used) = loaded.blend(mix, task)?;
        loaded.pipeline.set_blend(blend)?;
        let counts = |(place, lora): (usize, infotext::LoraUse)| {
            (!lora.strength.is_zero() || named.contains(&place)).then_some(lora)
        };
        let used = used.into_iter().enumerate().filter_map(counts).collect();
        let mut recipe = Recipe { loras: used, model: Some(mix.model.clone()), ..Recipe::of(request) };
        if !recipe.loras.is_empty() {
            recipe.note_mode(BlendMode::Live, mix.normalize);
        }
        Ok((loaded, recipe))
    }
}

/// Which previews of a job are worth making: the first at once, then one every [`PREVIEW_EVERY`].
#[derive(Debug, Default)]
struct Pace(Option<Instant>);

impl Pace {
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|last| now.saturating_duration_since(last) >= PREVIEW_EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

impl Loaded {
    /// Draws with the blend that is set; `recipe` lacks only what follows from the model and the picture.
    pub fn pictures(
        &mut self,
        request: &GenerateRequest,
        recipe: &Recipe,
        task: Task<'_>,
        finished: &mut dyn FnMut(Picture),
    ) -> Result<()> {
        let mut begun = Instant::now();
        let recipe = self.complete(recipe, request)?;
        let colours = self.pipeline.latent_colours();
        let mut pace = Pace::default();
        let mut observer = |event: &progress::Event<'_>| match event {
            progress::Event::Preview { step, latents } => {
                // A preview that cannot be made is no reason to stop.
                if pace.is_due(Instant::now())
                    && let Ok(picture) = colours.picture(latents)
                {
                    task.send(Event::Preview { job: task.id, step: *step, picture });
                }
            }
            other => {
                if let Some(event) = told(task.id, other) {
                    task.send(event);
                }
            }
        };
        self.pipeline.generate_each(request, &mut observer, task.cancel, &mut |drawn, _| {
            let recipe = Recipe { seed: Some(drawn.seed), ..recipe.clone() };
            finished(Picture { image: drawn.image, recipe, elapsed: begun.elapsed() });
            begun = Instant::now();
            Ok(())
        })
    }

    /// A recipe with what follows from the model.
    pub fn complete(&self, recipe: &Recipe, request: &GenerateRequest) -> Result<Recipe> {
        Ok(Recipe {
            size_px: Some(request.size_on(&self.pipeline)?),
            cfg_scale: Some(request.cfg_scale_on(&self.pipeline)),
            model_hash: self.hash.clone(),
            ..recipe.clone()
        })
    }

    fn report(&mut self, task: Task<'_>) -> Result<()> {
        let report = self.pipeline.blend_report()?;
        task.send(Event::Blend(task.id, Box::new(report)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_preview_is_made_and_thirty_a_second() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut due = |ms: u64| pace.is_due(start + Duration::from_millis(ms));
        assert!(due(0), "the first of a job");
        let made = (1..1000).filter(|ms| due(*ms)).count();
        assert_eq!(made, 30);
        assert!(due(5000) && !due(5001), "slow steps are all shown, and give no credit");
    }
}
