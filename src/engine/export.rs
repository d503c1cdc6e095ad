//! A blend as one adapter.

use super::{
    Event, Export,
    worker::{Task, Worker},
};
use crate::{
    adapter::{
        SaveOptions,
        layers::Progress,
        merge::{self, MergeOptions, Method},
        truncate::total_error,
    },
    error::{Error, Result},
    files::OutputLock,
};

impl Worker {
    pub fn export(&mut self, Export { mix, out, rank }: &Export, task: Task<'_>) -> Result<()> {
        if let Some(lora) = mix.loras.iter().find(|lora| lora.path == *out) {
            return Err(Error::file(&lora.path, "is one of the styles of this blend")
                .with_hint("choose another name"));
        }
        let loaded = self.open(&mix.model, task)?;
        let (blend, _) = loaded.blend(mix, task)?;
        if blend.is_base() {
            return Err(Error::invalid("all weights are 0, so there is nothing to export"));
        }
        if mix.normalize {
            task.warn("the file has the styles' own weights, not those kept in bounds");
        }
        let options = SaveOptions::default();
        options.dialect.check_name(out)?;
        let _lock = OutputLock::take(out)?;
        let table = loaded.pipeline.name_table()?;
        let method = if rank.is_some() { Method::Svd } else { Method::Cat };
        let merging = MergeOptions { method, rank: *rank, ..MergeOptions::default() };
        let mut progress = Progress { observer: &mut task.observer(), cancel: task.cancel };
        let cut = merge::merge(&blend, &table, &merging, &mut progress)?;
        cut.adapter.save(out, &table, &options)?;
        task.send(Event::Exported {
            job: task.id,
            path: out.clone(),
            rank: cut.losses.iter().map(|loss| loss.ranks.1).max().unwrap_or_default(),
            relative_error: total_error(&cut.losses),
        });
        Ok(())
    }
}
