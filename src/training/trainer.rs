//! The training loop.

use std::path::{Path, PathBuf};

use candle_core::DType;
use sha2::{Digest as _, Sha256};

use super::{
    Base, LrSchedule, State, TrainConfig,
    checkpoint::Progress,
    feed::Feed,
    learner::Learner,
    record::{self, Moment},
    state_path,
    thread::on_large_stack,
};
use crate::{
    adapter::{NameTable, SaveOptions},
    dataset::{BucketOptions, Dataset, ScanOptions, doctor},
    device::{DeviceChoice, Precision},
    error::{Error, Result},
    files::OutputLock,
    ops::Tape,
    pipeline::{ModelSize, Pipeline},
    progress::{CancelToken, Event, Observer, Stage},
    weights::{ModelSource, OpenOptions},
};

/// How much of the smoothed loss is its past.
const LOSS_MEMORY: f64 = 0.95;

/// How a run ended. Both ways there is an adapter to use.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainOutcome {
    /// All steps are done.
    Finished {
        /// The adapter's file.
        adapter: PathBuf,
        /// The smoothed loss at the end.
        loss: f64,
    },
    /// Somebody asked to stop; everything until then is kept.
    Cancelled {
        /// The adapter as it was.
        adapter: PathBuf,
        /// What `resume` goes on from.
        checkpoint: PathBuf,
        /// Steps done.
        step: u64,
    },
}

/// Trains one adapter.
#[derive(Debug)]
pub struct Trainer {
    config: TrainConfig,
    model: Option<Base>,
}

impl Trainer {
    /// A run that opens its model itself.
    ///
    /// # Errors
    /// If a value of the configuration is out of range.
    pub fn new(config: TrainConfig) -> Result<Self> {
        config.check()?;
        Ok(Self { config, model: None })
    }

    /// A run on a model that is open already (`&Pipeline`, for one); its weights are shared, not copied, and never
    /// change.
    ///
    /// # Errors
    /// If a value of the configuration is out of range.
    pub fn with_model(config: TrainConfig, model: impl Into<Base>) -> Result<Self> {
        config.check()?;
        Ok(Self { config, model: Some(model.into()) })
    }

    /// Trains to the end, or until somebody asks to stop: within one step, keeping everything.
    ///
    /// # Errors
    /// If model or pictures cannot be read, a file cannot be written, or the loss is no longer a number (the state
    /// before that step is kept). [`Error::Cancelled`] if there was nothing to keep yet.
    pub fn run(&mut self, observer: &mut dyn Observer, cancel: &CancelToken) -> Result<TrainOutcome> {
        let Self { config, model } = self;
        on_large_stack(observer, |observer| {
            let _lock = claim(&config.out)?;
            check_kept(config)?;
            let model = match model {
                Some(model) => model.clone(),
                None => open(config, observer, cancel)?,
            };
            let mut run = Run::prepare(config, model, observer, cancel)?;
            run.train(observer, cancel)
        })
    }
}

/// A run under way.
struct Run<'a> {
    config: &'a TrainConfig,
    learner: Learner,
    feed: Feed,
    lr: LrSchedule,
    table: NameTable,
    dataset: String,
    step: u64,
    loss: Option<f64>,
}

impl<'a> Run<'a> {
    fn prepare(
        config: &'a TrainConfig,
        mut model: Base,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self> {
        let latents = model.vae.as_ref().map(|vae| vae.config().latent_channels);
        let input = model.unet.config().in_channels;
        if let Some(latents) = latents.filter(|latents| *latents != input) {
            return Err(Error::invalid(format!(
                "{}: its UNet takes {input} channels and its VAE makes {latents}",
                model.origin
            ))
            .with_hint(
                "inpainting and editing models cannot be trained; use the model they were made from",
            ));
        }
        let options = scan_options(config, model.size);
        let dataset = Dataset::scan(&config.images, &options, observer, cancel)?;
        for message in doctor::caption_notes(&dataset, &|caption| model.tokens(caption)) {
            observer.observe(&Event::Warning { message: &message });
        }
        let fingerprint = fingerprint(&dataset);
        let mut feed = Feed::new(config, dataset, &model, observer, cancel)?;
        let table = NameTable::of(&mut model.parts())?;
        // What is encoded once is not needed in memory while the UNet trains.
        model.vae = None;
        if feed.encode_captions(&model, cancel)? {
            model.encoders.clear();
        }
        let mut run = Self {
            config,
            learner: Learner::new(config, model)?,
            feed,
            lr: config.lr(),
            table,
            dataset: fingerprint,
            step: 0,
            loss: None,
        };
        run.resume(observer)?;
        Ok(run)
    }

    fn train(&mut self, observer: &mut dyn Observer, cancel: &CancelToken) -> Result<TrainOutcome> {
        let (stage, total) = (Stage::Train, self.config.steps);
        observer.observe(&Event::Started { stage, total });
        observer.observe(&Event::Advanced { stage, done: self.step, total });
        while self.step < total {
            match self.advance(cancel) {
                Ok(learning_rate) => {
                    let loss = self.loss.unwrap_or_default();
                    observer.observe(&Event::Loss { step: self.step, loss, learning_rate });
                    observer.observe(&Event::Advanced { stage, done: self.step, total });
                }
                Err(e) if e.is_cancelled() => return self.stop(observer),
                Err(e) => {
                    // What went wrong first is what the user must hear.
                    if self.step > 0
                        && let Err(second) = self.save_state(observer)
                    {
                        let message = format!("the state before the failure could not be kept: {second}");
                        observer.observe(&Event::Warning { message: &message });
                    }
                    return Err(e);
                }
            }
            let save_every = self.config.save_every;
            if save_every > 0 && self.step.is_multiple_of(save_every) && self.step < total {
                self.save_state(observer)?;
                self.save_adapter(observer)?;
            }
        }
        observer.observe(&Event::Finished { stage });
        self.save_adapter(observer)?;
        // The finished adapter replaces it.
        std::fs::remove_file(state_path(&self.config.out)).ok();
        Ok(TrainOutcome::Finished { adapter: self.config.out.clone(), loss: self.loss.unwrap_or_default() })
    }

    /// One optimizer step; returns its learning rate. The state is as before if it fails.
    fn advance(&mut self, cancel: &CancelToken) -> Result<f64> {
        let (learning_rate, feed) = (self.lr.rate(self.step), &mut self.feed);
        let mut next = |number, model: &Base, tape: Option<&Tape>| feed.batch(number, model, tape);
        let loss = self.learner.step(self.step, learning_rate, &mut next, cancel)?;
        self.step += 1;
        self.loss = Some(self.loss.map_or(loss, |past| past * LOSS_MEMORY + loss * (1.0 - LOSS_MEMORY)));
        Ok(learning_rate)
    }

    fn stop(&self, observer: &mut dyn Observer) -> Result<TrainOutcome> {
        if self.step == 0 {
            return Err(Error::Cancelled);
        }
        self.save_state(observer)?;
        self.save_adapter(observer)?;
        Ok(TrainOutcome::Cancelled {
            adapter: self.config.out.clone(),
            checkpoint: state_path(&self.config.out),
            step: self.step,
        })
    }

    fn save_adapter(&self, observer: &mut dyn Observer) -> Result<()> {
        let moment = Moment { step: self.step, batches_per_epoch: self.feed.batches_per_epoch() };
        let metadata =
            record::metadata(self.config, &self.learner.model, self.feed.dataset(), &self.table, moment);
        let dtype = match self.config.save_dtype.parse()? {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Auto | Precision::F16 => DType::F16,
        };
        let options = SaveOptions { dtype: Some(dtype), ..SaveOptions::default() };
        self.learner.trainable.to_adapter(metadata)?.save(&self.config.out, &self.table, &options)?;
        observer.observe(&Event::Saved { path: &self.config.out });
        Ok(())
    }

    fn save_state(&self, observer: &mut dyn Observer) -> Result<()> {
        let vars = self.learner.trainable.vars();
        let values = self.learner.names.iter().cloned().zip(vars.iter().map(|v| v.as_tensor().clone()));
        let state = State {
            progress: Progress {
                step: self.step,
                loss: self.loss,
                config: self.config.to_toml()?,
                dataset: self.dataset.clone(),
            },
            values: values.collect(),
            moments: self.learner.optimizer.moments().cloned().collect(),
        };
        let path = state_path(&self.config.out);
        state.save(&path)?;
        observer.observe(&Event::Saved { path: &path });
        Ok(())
    }

    /// Goes on from the state beside the adapter, if that is wished for and there is one.
    fn resume(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let path = state_path(&self.config.out);
        if !self.config.resume {
            return Ok(());
        }
        if !path.exists() {
            return Ok(());
        }
        let state = State::load(&path, &self.learner.names)?;
        let (done, steps) = (state.progress.step, self.config.steps);
        if done > steps {
            return Err(Error::file(
                &path,
                format!("is at step {done} already, expected one of {steps} at most"),
            )
            .with_hint("resume with more `--steps`; to end here, use the adapter as it is"));
        }
        for (var, (name, value)) in self.learner.trainable.vars().iter().zip(&state.values) {
            if var.shape() != value.shape() {
                let (expected, found) = (var.dims(), value.dims());
                let what = format!("`{name}`: expected shape {expected:?}, found {found:?}");
                return Err(Error::file(&path, what).with_hint("train with the same rank as before"));
            }
            var.set(&value.to_device(var.device())?)?;
        }
        self.learner.optimizer.restore(state.progress.step, state.moments)?;
        (self.step, self.loss) = (state.progress.step, state.progress.loss);
        let mut changed = changed_keys(&state.progress.config, self.config);
        if state.progress.dataset != self.dataset {
            changed.push("the pictures or captions".into());
        }
        if !changed.is_empty() {
            let message = format!(
                "resuming with other settings than before ({}): the result will not equal an uninterrupted run",
                changed.join(", ")
            );
            observer.observe(&Event::Warning { message: &message });
        }
        Ok(())
    }
}

/// Refuses to lose earlier work: a stopped run by a forgotten `resume`, a finished adapter by a `resume` too many.
fn check_kept(config: &TrainConfig) -> Result<()> {
    let state = state_path(&config.out);
    match (config.resume, state.exists()) {
        (false, true) => {
            Err(Error::file(&state, "keeps a run that was stopped, which this one would replace").with_hint(
                "add `--resume` to go on from there; or delete that file, or choose another `--out`",
            ))
        }
        (true, false) if config.out.exists() => {
            Err(Error::file(&config.out, "is finished: there is no state beside it to resume from")
                .with_hint("choose another `--out`, or `--force` instead of `--resume` to train it anew"))
        }
        _ => Ok(()),
    }
}

fn open(config: &TrainConfig, observer: &mut dyn Observer, cancel: &CancelToken) -> Result<Base> {
    let device = config.device.parse::<DeviceChoice>()?.open()?;
    let dtype = config.dtype.parse::<Precision>()?.dtype(&device);
    let options = OpenOptions { offline: config.offline, ..OpenOptions::default() };
    let checkpoint = ModelSource::parse(&config.model)?.open(&options, observer, cancel)?;
    let (stage, total) = (Stage::Load, 1);
    observer.observe(&Event::Started { stage, total });
    let pipeline = Pipeline::load(&checkpoint, &device, dtype)?;
    observer.observe(&Event::Finished { stage });
    Ok(Base::from(&pipeline))
}

/// How a run reads its folder: as its configuration says, with the model's own sizes where the user named none.
pub fn scan_options(config: &TrainConfig, model: ModelSize) -> ScanOptions {
    let (mut options, untouched) = (config.dataset.clone(), BucketOptions::default());
    let size = u32::try_from(model.native_px).unwrap_or(untouched.resolution.0);
    match config.resolution {
        Some(side) => options.buckets.resolution = (side, side),
        None if options.buckets.resolution == untouched.resolution => {
            options.buckets.resolution = (size, size);
        }
        None => {}
    }
    if options.buckets.step_px == untouched.step_px {
        options.buckets.step_px = u32::try_from(model.step_px).unwrap_or(untouched.step_px);
    }
    options
}

/// Takes the adapter and the state beside it for this run: that it cannot be written, or is written by another run, is
/// found out now and not after an hour.
fn claim(out: &Path) -> Result<OutputLock> {
    if out.is_dir() {
        return Err(Error::file(out, "is a folder, expected a file name to write the adapter to"));
    }
    SaveOptions::default().dialect.check_name(out)?;
    OutputLock::take(out)
}

/// What identifies pictures, captions and their sizes.
fn fingerprint(dataset: &Dataset) -> String {
    let mut hash = Sha256::new();
    for item in dataset.items() {
        hash.update(item.hash);
        hash.update(item.caption.as_bytes());
        hash.update([0]);
        let bucket = item.placement.bucket;
        hash.update([bucket.width.to_le_bytes(), bucket.height.to_le_bytes()].concat());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The keys that differ from a saved configuration and change the result.
fn changed_keys(saved: &str, config: &TrainConfig) -> Vec<String> {
    const HARMLESS: [&str; 10] = [
        "out",
        "name",
        "images",
        "device",
        "offline",
        "cache",
        "save_every",
        "save_dtype",
        "resume",
        "reproducible",
    ];
    let table = |text: &str| text.parse::<toml::Table>().unwrap_or_default();
    let (saved, now) = (table(saved), table(&config.to_toml().unwrap_or_default()));
    let keys: std::collections::BTreeSet<&String> = saved.keys().chain(now.keys()).collect();
    keys.into_iter()
        .filter(|key| !HARMLESS.contains(&key.as_str()) && saved.get(*key) != now.get(*key))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests;
