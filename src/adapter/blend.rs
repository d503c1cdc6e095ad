//! Several adapters, each with its strength.

use std::{fmt, str::FromStr, sync::Arc};

use super::{Adapter, NameTable, Strength};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
    weights::Family,
};

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

/// How a blend gets into the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlendMode {
    /// Whichever is faster for what is drawn.
    #[default]
    Auto,
    /// As branches beside the base weights: strengths change at once, each step costs a little more.
    Live,
    /// As plain weights, computed from the pristine base: no cost per step.
    Fused,
}

/// Adapters with strengths, applied together: live ([`super::Live`]) or fused ([`super::fuse::fuse`]).
/// The order matters where a delta depends on the weight it meets: DoRA, the OFT family, IA³ and GLoRA.
#[derive(Debug, Clone, Default)]
pub struct Blend {
    /// In the order the user gave them.
    pub entries: Vec<BlendEntry>,
    /// How they are applied.
    pub mode: BlendMode,
    /// Keeps what the adapters add up to at the energy they would have apart: see [`super::guard`].
    pub normalize: bool,
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

    /// The adapters' names in order.
    pub fn names(&self) -> Vec<&str> {
        self.entries.iter().map(|e| e.name.as_str()).collect()
    }

    /// The strengths in order, as [`super::Live::set_strengths`] takes them.
    pub fn strengths(&self) -> Vec<Strength> {
        self.entries.iter().map(|e| e.strength.clone()).collect()
    }

    /// True if the base model is unchanged.
    pub fn is_base(&self) -> bool {
        self.entries.iter().all(|e| e.strength.is_zero())
    }

    /// True if every weight is the same at every step and everywhere in the picture: what fusing takes.
    pub fn is_fixed(&self) -> bool {
        self.check_fixed().is_ok()
    }

    /// Refuses what [`Blend::is_fixed`] is not: plain weights and files have no steps and no places.
    ///
    /// # Errors
    /// With the first adapter whose weight changes.
    pub fn check_fixed(&self) -> Result<()> {
        let changes = |e: &&BlendEntry| e.strength.is_scheduled() || e.strength.region().is_some();
        let Some(entry) = self.entries.iter().find(changes) else { return Ok(()) };
        Err(Error::invalid(format!(
            "the weight of `{}`, {}, changes over the steps or with the place: neither plain weights nor files can hold that",
            entry.name, entry.strength
        ))
        .with_hint("give it one number; pictures drawn live can have it: `scumble generate --lora-mode live`"))
    }

    /// Refuses block weights that count the blocks of another family.
    ///
    /// # Errors
    /// With the first adapter that has such.
    pub fn check_family(&self, family: Family) -> Result<()> {
        let check = |e: &BlendEntry| e.strength.check(family);
        self.entries.iter().try_for_each(|e| check(e).map_err(|x| x.context(format!("adapter `{}`", e.name))))
    }

    /// Refuses factors on blocks that the model has not.
    ///
    /// # Errors
    /// With the first adapter that has such.
    pub fn check_blocks(&self, table: &NameTable) -> Result<()> {
        let check = |e: &BlendEntry| e.strength.check_blocks(table);
        self.entries.iter().try_for_each(|e| check(e).map_err(|x| x.context(format!("adapter `{}`", e.name))))
    }

    /// True if both are of the same adapters in the same order.
    pub fn same_adapters(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| Arc::ptr_eq(&a.adapter, &b.adapter))
    }

    /// True if the same entries are limited to a part of the picture.
    pub fn same_regions(&self, other: &Self) -> bool {
        let limited = |blend: &Self| -> Vec<bool> {
            blend.entries.iter().map(|e| e.strength.region().is_some()).collect()
        };
        limited(self) == limited(other)
    }

    /// The entries that have a delta for `path`.
    pub(crate) fn on<'a>(&'a self, path: &'a LayerPath) -> impl Iterator<Item = (usize, &'a BlendEntry)> {
        self.entries.iter().enumerate().filter(move |(_, e)| e.adapter.layers.contains_key(path))
    }
}

impl BlendMode {
    const NAMES: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("live", Self::Live), ("fused", Self::Fused)];

    /// `auto`, `live` or `fused`.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, mode)| *mode == self).map_or("auto", |(name, _)| name)
    }
}

impl FromStr for BlendMode {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == s.trim());
        found.map(|(_, mode)| *mode).ok_or_else(|| {
            Error::unknown("way to apply adapters", s, Self::NAMES.iter().map(|(name, _)| *name))
        })
    }
}

impl fmt::Display for BlendMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
