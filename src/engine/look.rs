//! Looking at files, without a model in memory.

use std::path::PathBuf;

use rayon::prelude::*;

use super::{Event, ScannedPicture, worker::Task};
use crate::{
    adapter::{
        format::folder,
        library::{Card, Library},
    },
    dataset::{Dataset, Item, decode, doctor},
    error::Result,
    files::{self, walk},
    pipeline::{ModelSize, sheet, text::tokenizer},
    training::{TrainConfig, scan_options},
    weights::{ModelSource, OpenOptions},
};

/// The longest side of a thumbnail.
const THUMBNAIL_PX: u32 = 128;

/// What a training would find.
pub(super) fn scan(config: &TrainConfig, task: Task<'_>) -> Result<()> {
    let options = OpenOptions { offline: true, ..OpenOptions::default() };
    let checkpoint = ModelSource::parse(&config.model)?.open(&options, &mut (), task.cancel)?;
    let tokenizer = tokenizer(&checkpoint, false)?;
    let options = scan_options(config, ModelSize::of_checkpoint(&checkpoint)?);
    // The report says again what the scan warns of.
    let dataset = Dataset::scan(&config.images, &options, &mut (), task.cancel)?;
    let count = |caption: &str| tokenizer.encode(caption).map_or(0, |ids| ids.len());
    let report = Box::new(doctor::examine(&dataset, Some(&count)));
    let look = |item: &Item| -> Result<ScannedPicture> {
        task.cancel.check()?;
        let pixels = decode::read(&item.path, &options.limits)?.pixels;
        Ok(ScannedPicture {
            path: item.path.clone(),
            caption: item.caption.clone(),
            captioned: item.captioned,
            tokens: count(&item.caption),
            size_px: item.size_px,
            thumbnail: sheet::small(&pixels, THUMBNAIL_PX).into_owned(),
        })
    };
    let pictures = dataset.items().par_iter().map(look).collect::<Result<Vec<_>>>()?;
    task.send(Event::Scanned { job: task.id, report, pictures });
    Ok(())
}

/// The adapters of a folder and those inside it.
pub(super) fn library(folder: PathBuf, task: Task<'_>) -> Result<()> {
    let cache = files::cache_folder();
    let library = Library::scan((&folder, walk::NEAR), Some(&cache), &mut task.observer(), task.cancel)?;
    task.send(Event::Library { job: task.id, folder, entries: library.entries });
    Ok(())
}

/// What one adapter's file says of itself.
pub(super) fn describe(path: PathBuf, task: Task<'_>) -> Result<()> {
    let card = Card::of(&folder::look(&path)?).map_err(|e| e.at(&path))?;
    task.send(Event::Described { job: task.id, path, card: Box::new(card) });
    Ok(())
}
