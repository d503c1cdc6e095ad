//! What every subcommand needs before it starts: options for all, threads, Ctrl-C, the base model.

use std::{io::Write as _, str::FromStr};

use candle_core::{DType, Device};
use clap::Args;

use super::Context;
use crate::{
    device::{self, DeviceChoice, Precision},
    error::{Error, Result},
    pipeline::Pipeline,
    progress::{CancelToken, Event, Observer as _, Stage},
    weights::{ModelSource, OpenOptions, hashes::HashCache},
};

/// Options of every subcommand.
#[derive(Debug, Clone, Args)]
pub(super) struct Global {
    /// Where to compute: auto, cpu, cuda, cuda:1, metal
    #[arg(long, global = true, value_name = "DEVICE", value_parser = hinted::<DeviceChoice>, help_heading = "For every command")]
    pub device: Option<DeviceChoice>,
    /// What weights and activations are held in: auto, f32, f16, bf16
    #[arg(long, global = true, value_name = "DTYPE", value_parser = hinted::<Precision>, help_heading = "For every command")]
    pub dtype: Option<Precision>,
    /// Processor threads to use [default: all]
    #[arg(long, global = true, value_name = "N", help_heading = "For every command")]
    pub threads: Option<usize>,
    /// Never use the network
    #[arg(long, global = true, help_heading = "For every command")]
    pub offline: bool,
    /// Report as JSON lines on standard output
    #[arg(long, global = true, help_heading = "For every command")]
    pub json: bool,
    /// Print results and errors only
    #[arg(long, short, global = true, help_heading = "For every command")]
    pub quiet: bool,
}

impl Global {
    /// The device and the dtype on it.
    ///
    /// # Errors
    /// If a card was asked for that is not there.
    pub fn open(&self) -> Result<(Device, DType)> {
        let device = self.device.unwrap_or_default().open()?;
        let dtype = self.dtype.unwrap_or_default().dtype(&device);
        Ok((device, dtype))
    }
}

/// Parses an option's value; clap prints an error's message only, so the hint is put into it.
pub(super) fn hinted<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: Error| match e.hint() {
        Some(hint) => format!("{e}\nhint: {hint}"),
        None => e.to_string(),
    })
}

/// Limits the thread pool that all numeric work shares.
pub(super) fn threads(global: &Global) -> Result<()> {
    let Some(n) = global.threads else { return Ok(()) };
    // More than a few for each processor only wait for one another.
    let most = std::thread::available_parallelism().map_or(64, |there| 4 * there.get().max(16));
    if !(1..=most).contains(&n) {
        return Err(Error::invalid(format!(
            "`--threads` must be from 1 to {most} on this machine, found {n}"
        )));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .build_global()
        .map_err(|e| Error::invalid(format!("cannot start {n} threads: {e}")))
}

/// The first Ctrl-C asks to stop, within a step; the second ends the process.
pub(super) fn on_interrupt(cancel: &CancelToken) {
    let cancel = cancel.clone();
    let handler = move || {
        if cancel.is_cancelled() {
            std::process::exit(i32::from(super::CANCELLED));
        }
        cancel.cancel();
        writeln!(std::io::stderr(), "\nstopping and keeping what is there (Ctrl-C again to stop at once)")
            .ok();
    };
    // Without a handler Ctrl-C ends the process, which is what it did before.
    ctrlc::set_handler(handler).ok();
}

/// Opens a base model, with its short hash if it has one.
pub(super) fn open_model(name: &str, context: &mut Context) -> Result<(Pipeline, Option<String>)> {
    let source = ModelSource::parse(name)?;
    let (device, dtype) = context.global.open()?;
    if let Some(remark) = device::remark(context.global.device.unwrap_or_default(), &device, dtype) {
        context.console.note(remark);
    }
    let options = OpenOptions { offline: context.global.offline, ..OpenOptions::default() };
    let checkpoint = source.open(&options, &mut context.console, &context.cancel)?;
    context.cancel.check()?;
    context.console.observe(&Event::Started { stage: Stage::Load, total: 1 });
    let pipeline = Pipeline::load(&checkpoint, &device, dtype)?;
    // A picture whose model cannot be named is still a picture.
    let hash = match checkpoint.hash(&HashCache::from_env(), &context.cancel) {
        Err(e) if e.is_cancelled() => return Err(e),
        hash => hash.ok(),
    };
    context.console.observe(&Event::Finished { stage: Stage::Load });
    Ok((pipeline, hash))
}
