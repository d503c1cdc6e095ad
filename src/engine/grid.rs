//! Many pictures as one, seen while it grows.

use std::time::Instant;

use super::{
    DrawGrid, Event, Picture,
    worker::{Task, Worker, told},
};
use crate::{
    error::{Error, Result},
    pipeline::{grid::Axis, sheet},
    progress,
};

/// The longest side of what is shown on the way.
const SMALL_PX: u32 = 1024;

impl Worker {
    pub fn grid(&mut self, DrawGrid { mix, mut request, grid }: DrawGrid, task: Task<'_>) -> Result<()> {
        let begun = Instant::now();
        let named: Vec<usize> = grid.axes().flat_map(Axis::styles).copied().collect();
        let (loaded, recipe) = self.ready(&mix, &mut request, &named, task)?;
        let mut recipe = loaded.complete(&recipe, &request)?;
        recipe.note_grid(&grid, &loaded.pipeline.blend().names());
        let mut step = 0;
        let mut so_far = |picture: &image::RgbImage| {
            step += 1;
            let picture = sheet::small(picture, SMALL_PX).into_owned();
            task.send(Event::Preview { job: task.id, step, picture });
        };
        let mut observer = |event: &progress::Event<'_>| {
            if let Some(event) = told(task.id, event) {
                task.send(event);
            }
        };
        let drawn = loaded.pipeline.draw_grid(&grid, &request, &mut observer, task.cancel, &mut so_far)?;
        let (done, total) = (drawn.done, drawn.total);
        let picture = Picture { image: drawn.picture, recipe, elapsed: begun.elapsed() };
        task.send(Event::Picture(task.id, Box::new(picture)));
        if done < total {
            task.warn(format!("the grid was stopped: {done} of {total} pictures are in it"));
            return Err(Error::Cancelled);
        }
        Ok(())
    }
}
