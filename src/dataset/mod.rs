//! A folder of captioned pictures, made ready for training.
//!
//! [`Dataset::scan`] reads the layouts people already have (a flat folder, or kohya's `N_name/` folders), skips what
//! cannot be used and says why, and puts every picture into an aspect bucket. Nothing here knows a model: latents come
//! from a closure ([`cache`]), token counts from another ([`doctor`]).

pub mod bucket;
pub mod cache;
pub mod caption;
pub mod decode;
pub mod doctor;
pub mod scan;
pub mod transform;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    progress::{CancelToken, Observer},
    random::{Rng, Stream},
};

pub use bucket::{Bucket, BucketOptions, Placement};
pub use cache::LatentCache;
pub use caption::CaptionOptions;
pub use decode::Limits;
pub use doctor::{Problem, Report};
pub use transform::{Prepared, View};

/// How a folder is read.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScanOptions {
    /// Sizes pictures are trained at.
    pub buckets: BucketOptions,
    /// Where captions come from and how they vary.
    pub captions: CaptionOptions,
    /// What is too small or too large to use.
    pub limits: Limits,
}

/// One usable picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The picture's file.
    pub path: PathBuf,
    /// The folder it came from, an index into [`Dataset::folders`].
    pub folder: usize,
    /// The caption before shuffling and dropout, with the trigger word.
    pub caption: String,
    /// True if a caption file stood beside the picture; else the caption is the folder's class.
    pub captioned: bool,
    /// Size as displayed, after the EXIF orientation.
    pub size_px: (u32, u32),
    /// True if the picture had transparency, which is laid on white.
    pub alpha: bool,
    /// SHA-256 of the file.
    pub hash: [u8; 32],
    /// How it is resized and cropped.
    pub placement: Placement,
}

/// A folder of pictures that share a class and a number of repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Folder {
    /// The folder's name on disk, as kohya's metadata lists it.
    pub name: String,
    /// The name without its `N_`: the caption of pictures that have none.
    pub class: String,
    /// How often each picture is seen in an epoch.
    pub repeats: usize,
    /// Usable pictures in it.
    pub images: usize,
}

/// Captioned pictures in buckets, in a fixed order.
#[derive(Debug, Clone)]
pub struct Dataset {
    items: Vec<Item>,
    folders: Vec<Folder>,
    problems: Vec<Problem>,
    options: ScanOptions,
}

impl Dataset {
    /// Reads a folder of pictures. Each is decoded once, so that a broken one is found now and not in the night.
    /// Pictures that cannot be used are skipped, named in [`Dataset::problems`] and in a warning event.
    ///
    /// # Errors
    /// If the folder is missing, empty or holds no usable picture, if an option is out of range, or on cancel.
    pub fn scan(
        root: impl AsRef<Path>,
        options: &ScanOptions,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self> {
        scan::scan(root.as_ref(), options, observer, cancel)
    }

    /// Number of usable pictures.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never true after a successful scan.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Picture `index`, as numbered by [`Dataset::batches`].
    pub fn item(&self, index: usize) -> &Item {
        &self.items[index]
    }

    /// Every usable picture.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The folders the pictures came from.
    pub fn folders(&self) -> &[Folder] {
        &self.folders
    }

    /// What was skipped or is doubtful.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How the folder was read.
    pub fn options(&self) -> &ScanOptions {
        &self.options
    }

    /// Pictures seen in one epoch, repeats counted.
    pub fn samples_per_epoch(&self) -> usize {
        self.folders.iter().map(|f| f.images * f.repeats).sum()
    }

    /// The batches of one epoch: every picture as often as its folder repeats it, one bucket a batch, nothing dropped
    /// (a bucket's last batch may be short). The same seed and epoch give the same batches for ever.
    pub fn batches(&self, epoch: u64, batch_size: usize, seed: u64) -> Vec<Vec<usize>> {
        let mut buckets: BTreeMap<Bucket, Vec<usize>> = BTreeMap::new();
        for (index, item) in self.items.iter().enumerate() {
            let samples = buckets.entry(item.placement.bucket).or_default();
            samples.extend(std::iter::repeat_n(index, self.folders[item.folder].repeats));
        }
        let mut rng = Rng::new(seed, Stream::Shuffle, epoch);
        let mut batches = Vec::new();
        for mut samples in buckets.into_values() {
            rng.shuffle(&mut samples);
            batches.extend(samples.chunks(batch_size.max(1)).map(<[usize]>::to_vec));
        }
        rng.shuffle(&mut batches);
        batches
    }

    /// The caption for the training run's `sample`-th picture: tags shuffled and caption dropped as the options ask.
    pub fn caption(&self, index: usize, seed: u64, sample: u64) -> String {
        caption::vary(&self.items[index].caption, &self.options.captions, seed, sample)
    }

    /// Reads picture `index` at its bucket's size.
    ///
    /// # Errors
    /// If the file changed or vanished since the scan.
    pub fn pixels(&self, index: usize, view: View) -> Result<Prepared> {
        let item = &self.items[index];
        let picture = decode::read(&item.path, &self.options.limits)?;
        transform::prepare(&picture.pixels, &item.placement, view)
    }

    /// How often each tag occurs, by folder name: what kohya's `ss_tag_frequency` holds.
    pub fn tag_frequency(&self) -> BTreeMap<String, BTreeMap<String, usize>> {
        let mut all: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        for item in &self.items {
            let tags = all.entry(self.folders[item.folder].name.clone()).or_default();
            for tag in caption::tags(&item.caption, &self.options.captions.separator) {
                *tags.entry(tag.to_owned()).or_default() += 1;
            }
        }
        all
    }

    /// Pictures by bucket, smallest bucket first.
    pub fn bucket_counts(&self) -> BTreeMap<Bucket, usize> {
        let mut counts = BTreeMap::new();
        for item in &self.items {
            *counts.entry(item.placement.bucket).or_default() += 1;
        }
        counts
    }
}
