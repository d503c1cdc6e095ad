//! What the network is fed: latents and conditioning of each batch, by its number in the run.

use std::collections::{BTreeSet, HashMap};

use candle_core::{Device, Tensor};

use super::{
    Base, TrainConfig,
    base::{Conditioning, EncodeOptions},
};
use crate::{
    dataset::{Dataset, LatentCache, View},
    error::{Error, Result},
    models::{AddedConditions, family::PictureFacts},
    ops::Tape,
    progress::{CancelToken, Observer},
    random::{Rng, Stream},
};

/// Encoded captions kept at most; varied captions of a large set would otherwise fill the memory.
const MAX_CAPTIONS: usize = 4096;

/// One batch.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Scaled latents (b, h, w, c), f32.
    pub latents: Tensor,
    /// Numbers of its samples in the run, from which their noise follows.
    pub samples: Vec<u64>,
    /// Which pictures they are.
    pub pictures: Vec<usize>,
    /// Their captions.
    pub captions: Vec<String>,
    /// (b, n, d)
    pub context: Tensor,
    /// For SDXL.
    pub added: Option<AddedConditions>,
}

/// Batches by number, from latents computed once and, while the text encoders are frozen, captions encoded once.
#[derive(Debug)]
pub struct Feed {
    dataset: Dataset,
    latents: LatentCache,
    /// What the VAE's latents are moved and multiplied by for the UNet.
    shift: f64,
    scale: f64,
    /// By caption and the rows it is filled up to.
    captions: HashMap<(String, usize), Conditioning>,
    /// The rows each caption takes by itself.
    rows: HashMap<String, usize>,
    options: Options,
    epoch: (u64, Vec<Vec<usize>>),
}

#[derive(Debug)]
struct Options {
    seed: u64,
    batch_size: usize,
    random_flip: bool,
    clip_skip: Option<usize>,
    /// The text encoders learn: nothing they say can be kept.
    text_learns: bool,
}

impl Feed {
    /// Encodes every picture of the dataset, or finds its latents in the cache.
    ///
    /// # Errors
    /// If a picture cannot be read, its latents are not finite, or on cancel.
    pub fn new(
        config: &TrainConfig,
        dataset: Dataset,
        model: &Base,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self> {
        let vae =
            model.vae.as_ref().ok_or_else(|| Error::invalid("the autoencoder was let go of already"))?;
        // The key must tell one autoencoder from another; its origin and what it is made of do.
        let key = format!("{} {:?} moments", model.origin, vae.config());
        let mut latents = LatentCache::new(config.cache.as_deref(), &key)?;
        let encode = |pixels: &Tensor| {
            let gaussian = vae.encode_until(&pixels.to_device(&model.device)?, None, cancel)?;
            Ok(Tensor::cat(&[&gaussian.mean, &gaussian.logvar], 3)?)
        };
        latents.fill(&dataset, config.random_flip, encode, observer, cancel)?;
        let options = Options {
            seed: config.seed,
            batch_size: config.batch_size,
            random_flip: config.random_flip,
            clip_skip: config.clip_skip,
            text_learns: config.train_text_encoder,
        };
        let first = dataset.batches(0, options.batch_size, options.seed);
        let (shift, scale) = (vae.config().shift_factor.unwrap_or(0.0), vae.config().scaling_factor);
        let epoch = (0, first);
        let (captions, rows) = (HashMap::new(), HashMap::new());
        Ok(Self { dataset, latents, shift, scale, captions, rows, options, epoch })
    }

    /// The pictures.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Batches an epoch has; the same in every epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.epoch.1.len()
    }

    /// Batch number `number` of the run. With a tape, the graph goes through the text encoders.
    ///
    /// # Errors
    /// If an encoder fails.
    pub fn batch(&mut self, number: u64, model: &Base, tape: Option<&Tape>) -> Result<Batch> {
        let per_epoch = self.batches_per_epoch().max(1) as u64;
        let epoch = number / per_epoch;
        if self.epoch.0 != epoch {
            let batches = self.dataset.batches(epoch, self.options.batch_size, self.options.seed);
            self.epoch = (epoch, batches);
        }
        let pictures = self
            .epoch
            .1
            .get((number % per_epoch) as usize)
            .cloned()
            .ok_or_else(|| Error::invalid(format!("epoch {epoch} has fewer batches than the first")))?;
        let samples: Vec<u64> =
            (0..pictures.len() as u64).map(|i| number * self.options.batch_size as u64 + i).collect();
        let seed = self.options.seed;
        let captions: Vec<String> =
            pictures.iter().zip(&samples).map(|(p, s)| self.dataset.caption(*p, seed, *s)).collect();
        let latents = pictures.iter().zip(&samples).map(|(p, s)| self.sample_latents(*p, *s));
        let latents = Tensor::stack(&latents.collect::<Result<Vec<_>>>()?, 0)?.to_device(&model.device)?;
        let conditioning = self.condition(&captions, model, tape)?;
        let added = self.added(&pictures, conditioning.pooled, model)?;
        Ok(Batch { latents, samples, pictures, captions, context: conditioning.context, added })
    }

    /// Drawn from the VAE's posterior anew each time a picture is seen; (h, w, c).
    fn sample_latents(&self, picture: usize, sample: u64) -> Result<Tensor> {
        let flip = View::random(self.options.seed, sample, false, self.options.random_flip).flip;
        let moments = self.latents.get(picture, flip)?;
        let channels = moments.dim(2)? / 2;
        let (mean, logvar) = (moments.narrow(2, 0, channels)?, moments.narrow(2, channels, channels)?);
        let noise = Rng::new(self.options.seed, Stream::Vae, sample).normal(mean.shape(), &Device::Cpu)?;
        let drawn = (mean + (noise * (logvar * 0.5)?.exp()?)?)?;
        Ok(((drawn - self.shift)? * self.scale)?)
    }

    fn condition(&mut self, captions: &[String], model: &Base, tape: Option<&Tape>) -> Result<Conditioning> {
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        let clip_skip = self.options.clip_skip;
        if self.options.text_learns {
            return model.encode(&captions, EncodeOptions { clip_skip, tape, min_rows: 1 });
        }
        let mut rows = 1;
        for caption in &captions {
            rows = rows.max(self.rows_of(caption, model)?);
        }
        let (mut context, mut pooled) = (Vec::new(), Vec::new());
        for caption in captions {
            let kept = self.encoded(caption, rows, model)?;
            context.push(kept.context);
            pooled.extend(kept.pooled);
        }
        let pooled = if pooled.is_empty() { None } else { Some(Tensor::cat(&pooled, 0)?) };
        Ok(Conditioning { context: Tensor::cat(&context, 0)?, pooled })
    }

    fn rows_of(&mut self, caption: &str, model: &Base) -> Result<usize> {
        if let Some(rows) = self.rows.get(caption) {
            return Ok(*rows);
        }
        let rows = model.rows(caption)?;
        self.rows.insert(caption.to_string(), rows);
        Ok(rows)
    }

    fn encoded(&mut self, caption: &str, rows: usize, model: &Base) -> Result<Conditioning> {
        let key = (caption.to_string(), rows);
        if let Some(known) = self.captions.get(&key) {
            return Ok(known.clone());
        }
        let options = EncodeOptions { clip_skip: self.options.clip_skip, min_rows: rows, tape: None };
        let encoded = model.encode(&[caption], options)?;
        if self.captions.len() >= MAX_CAPTIONS {
            self.captions.clear();
            self.rows.clear();
        }
        self.captions.insert(key, encoded.clone());
        Ok(encoded)
    }

    /// Encodes every caption there can be, if they are few and do not vary. Returns whether it did: then the text
    /// encoders are not needed any more.
    ///
    /// # Errors
    /// If an encoder fails, or on cancel.
    pub fn encode_captions(&mut self, model: &Base, cancel: &CancelToken) -> Result<bool> {
        let varying = &self.dataset.options().captions;
        if self.options.text_learns || varying.shuffle {
            return Ok(false);
        }
        let mut captions: BTreeSet<String> = self.dataset.items().iter().map(|i| i.caption.clone()).collect();
        if varying.dropout > 0.0 {
            captions.insert(String::new());
        }
        let mut most = 1;
        for caption in &captions {
            most = most.max(self.rows_of(caption, model)?);
        }
        if captions.len() * most > MAX_CAPTIONS {
            return Ok(false);
        }
        for caption in &captions {
            // Its neighbours in a batch decide how far it is filled up.
            for rows in self.rows_of(caption, model)?..=most {
                cancel.check()?;
                self.encoded(caption, rows, model)?;
            }
        }
        Ok(true)
    }

    /// Pooled text and sizes, for networks that are told of them.
    fn added(
        &self,
        pictures: &[usize],
        pooled: Option<Tensor>,
        model: &Base,
    ) -> Result<Option<AddedConditions>> {
        let Some(pooled) = pooled else { return Ok(None) };
        let ids = pictures.iter().map(|p| model.conventions.time_ids.of(&self.facts(*p)));
        let Some(ids) = ids.collect::<Option<Vec<_>>>() else { return Ok(None) };
        let width = ids.first().map_or(0, Vec::len);
        let time_ids = Tensor::from_vec(ids.concat(), (pictures.len(), width), &model.device)?;
        Ok(Some(AddedConditions { pooled, time_ids }))
    }

    fn facts(&self, picture: usize) -> PictureFacts {
        let item = self.dataset.item(picture);
        let pair = |(w, h): (u32, u32)| (h as usize, w as usize);
        let (target, resized) = (item.placement.bucket, item.placement.resized_px);
        let crop = (resized.0.saturating_sub(target.width) / 2, resized.1.saturating_sub(target.height) / 2);
        PictureFacts {
            original: pair(item.size_px),
            crop: pair(crop),
            target: pair((target.width, target.height)),
            aesthetic_score: 6.0,
        }
    }
}
