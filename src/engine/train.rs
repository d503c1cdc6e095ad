//! Training, with pictures on the way.

use super::{
    Event, LoraUse, Mix, Previews, Training,
    model::Loaded,
    worker::{Task, Worker, told},
};
use crate::{
    adapter::{Blend, Strength},
    error::{Error, Result},
    pipeline::infotext::Recipe,
    progress,
    training::{TrainOutcome, Trainer},
};

impl Worker {
    pub fn train(&mut self, Training { mut config, previews }: Training, task: Task<'_>) -> Result<()> {
        let loaded = self.open(&config.model, task)?;
        // The trainer shares the networks as they are now.
        loaded.pipeline.set_blend(Blend::new())?;
        if let Some(previews) = &previews {
            config.save_every = previews.every;
        }
        let (out, steps) = (config.out.clone(), config.steps);
        let mut trainer = Trainer::with_model(config, &loaded.pipeline)?;
        let mut step = 0;
        let mut observer = |event: &progress::Event<'_>| {
            if let progress::Event::Loss { step: now, .. } = event {
                step = *now;
            }
            if let Some(event) = told(task.id, event) {
                task.send(event);
            }
            if let (progress::Event::Saved { path }, Some(previews)) = (event, &previews)
                && *path == out
                && !task.cancel.is_cancelled()
                && let Err(e) = loaded.sample(path, step, previews, task)
                && !e.is_cancelled()
            {
                task.warn(format!("no preview: {e}"));
            }
        };
        match trainer.run(&mut observer, task.cancel)? {
            TrainOutcome::Finished { adapter: path, .. } => {
                task.send(Event::Adapter { job: task.id, path, step: steps, resumable: false });
                Ok(())
            }
            TrainOutcome::Cancelled { adapter: path, step, .. } => {
                task.send(Event::Adapter { job: task.id, path, step, resumable: true });
                Err(Error::Cancelled)
            }
        }
    }
}

impl Loaded {
    /// Draws with the adapter as it was just saved.
    fn sample(
        &mut self,
        path: &std::path::Path,
        step: u64,
        previews: &Previews,
        task: Task<'_>,
    ) -> Result<()> {
        let lora = LoraUse { path: path.to_path_buf(), strength: Strength::uniform(1.0) };
        let mix = Mix { model: self.name.clone(), loras: vec![lora], normalize: false };
        let (blend, loras) = self.blend(&mix, task)?;
        self.pipeline.set_blend(blend)?;
        let request = &previews.request;
        let recipe = Recipe { loras, model: Some(mix.model), ..Recipe::of(request) };
        self.pictures(request, &recipe, task, &mut |picture| {
            task.send(Event::Sample { job: task.id, step, picture: Box::new(picture) });
        })
    }
}
