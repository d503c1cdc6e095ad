//! Work on many layers at once, with progress and a way to stop.

use rayon::prelude::*;

use crate::{
    error::Result,
    progress::{CancelToken, Event, Observer, Stage},
};

/// Layers a core gets before progress is told: all wait for the slowest of them.
const LAYERS_AT_ONCE: usize = 8;

/// Who is told of long work, and who may stop it.
pub struct Progress<'a> {
    /// Told after every few layers.
    pub observer: &'a mut dyn Observer,
    /// Asked before every layer.
    pub cancel: &'a CancelToken,
}

impl std::fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("cancel", self.cancel).finish_non_exhaustive()
    }
}

/// Applies `f` to every item on all cores; results are in the items' order.
///
/// # Errors
/// The first error in the items' order, or that the user stopped it.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    progress: &mut Progress<'_>,
    f: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let total = items.len() as u64;
    let mut done = Vec::with_capacity(items.len());
    progress.observer.observe(&Event::Started { stage: Stage::Layers, total });
    for chunk in items.chunks(rayon::current_num_threads() * LAYERS_AT_ONCE) {
        let cancel = progress.cancel;
        let results: Vec<Result<R>> =
            chunk.par_iter().map(|item| cancel.check().and_then(|()| f(item))).collect();
        for result in results {
            done.push(result?);
        }
        progress.observer.observe(&Event::Advanced { stage: Stage::Layers, done: done.len() as u64, total });
    }
    progress.observer.observe(&Event::Finished { stage: Stage::Layers });
    Ok(done)
}
