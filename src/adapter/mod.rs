//! The adapter: a file of deltas on a model's weights, how it is read, checked, blended, fused, trained and written.
//!
//! A file's keys are resolved through a [`NameTable`] made from the model's own layers, so that every key is applied
//! or listed with its reason, and nothing is guessed.

pub mod attach;
pub mod bake;
pub mod blend;
pub mod card;
pub mod check;
pub mod delta;
pub mod embedding;
pub mod extract;
mod factors;
pub mod format;
pub mod fuse;
pub mod guard;
pub mod layers;
pub mod library;
pub mod lineage;
pub mod merge;
pub mod metadata;
pub mod parts;
pub mod privacy;
mod regions;
pub mod report;
pub mod resize;
pub mod similarity;
pub mod strength;
pub mod survey;
pub mod svd;
pub mod train_init;
pub mod truncate;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use attach::Live;
pub use blend::{Blend, BlendEntry, BlendMode};
pub use delta::{Branch, Delta, Full, LowRank};
pub use embedding::Embedding;
pub use format::{Dialect, LoadOptions, NameTable, SaveOptions};
pub use lineage::Lineage;
pub use metadata::{Metadata, TrainingRecord};
pub use parts::Parts;
pub use report::{LoadReport, Unmatched};
pub use strength::{Curve, Strength};
pub use survey::Survey;
pub use train_init::{Group, Trainable, TrainableSpec};

use crate::{error::Result, nn::LayerPath, weights::reader::SafetensorsFile};

/// The deltas of one file, by the layer they belong to.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    /// What changes where. Tensors are on the CPU, in the dtype and shape of the file.
    pub layers: BTreeMap<LayerPath, Delta>,
    /// Words that came in the same file, with the vectors they stand for in prompts.
    pub embeddings: Vec<Arc<Embedding>>,
    /// What the file says of itself.
    pub metadata: Metadata,
    /// What of the file was applied, and what not and why.
    pub report: LoadReport,
}

impl Adapter {
    /// Reads a file of any known dialect for the model `table` was made from.
    ///
    /// # Errors
    /// If the file is malformed, was trained for another family, or has keys that match nothing and
    /// `options.allow_unmatched` is off.
    pub fn load(path: impl AsRef<Path>, table: &NameTable, options: &LoadOptions) -> Result<Self> {
        format::read(path.as_ref(), table, options)
    }

    /// [`Adapter::load`] of a file that is open already.
    ///
    /// # Errors
    /// As [`Adapter::load`], without the file's name.
    pub fn of(file: &SafetensorsFile, table: &NameTable, options: &LoadOptions) -> Result<Self> {
        format::read_opened(file, table, options)
    }

    /// Writes the deltas as safetensors, atomically. `sshs_model_hash` and `modelspec.hash_sha256` are computed.
    ///
    /// # Errors
    /// If a layer is not in `table`, the dialect cannot express a delta, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>, table: &NameTable, options: &SaveOptions) -> Result<()> {
        format::write(self, path.as_ref(), table, options)
    }

    /// What [`Adapter::save`] would write, in memory: each file's path below the one given there (empty for a dialect of
    /// one file) and its bytes.
    ///
    /// # Errors
    /// As [`Adapter::save`], but for the disk's.
    pub fn to_files(&self, table: &NameTable, options: &SaveOptions) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        format::to_files(self, table, options)
    }
}
