//! Several adapters, each with its strength.

use std::sync::Arc;

use super::{Adapter, Strength};
use crate::nn::LayerPath;

/// One adapter of a blend.
#[derive(Debug, Clone)]
pub struct BlendEntry {
    /// What the user calls it; recipes and messages name it so.
    pub name: String,
    /// Shared: the same file may be in many blends.
    pub adapter: Arc<Adapter>,
    /// Its weight.
    pub strength: Strength,
}

/// Adapters with strengths, applied together: live ([`super::Live`]) or fused ([`super::fuse::fuse`]).
/// The order does not matter but for rounding.
#[derive(Debug, Clone, Default)]
pub struct Blend {
    /// In the order the user gave them.
    pub entries: Vec<BlendEntry>,
}

impl Blend {
    /// Nothing: the base model.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an adapter.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, adapter: Arc<Adapter>, strength: Strength) -> Self {
        self.entries.push(BlendEntry { name: name.into(), adapter, strength });
        self
    }

    /// The strengths in order, as [`super::Live::set_strengths`] takes them.
    pub fn strengths(&self) -> Vec<Strength> {
        self.entries.iter().map(|e| e.strength).collect()
    }

    /// True if the base model is unchanged.
    pub fn is_base(&self) -> bool {
        self.entries.iter().all(|e| e.strength.is_zero())
    }

    /// The entries that have a delta for `path`.
    pub(crate) fn on<'a>(&'a self, path: &'a LayerPath) -> impl Iterator<Item = (usize, &'a BlendEntry)> {
        self.entries.iter().enumerate().filter(move |(_, e)| e.adapter.layers.contains_key(path))
    }
}
