//! What an adapter's file holds, told by its header alone: no model is loaded and no factor is read, only alphas.

pub mod block;
pub mod family;
mod module;

use std::collections::{BTreeMap, BTreeSet};

pub use block::{Block, Kind};
pub use family::Detected;
pub use module::SurveyedModule;

use super::{
    embedding,
    format::{peft, prefix, suffix},
};
use crate::{error::Result, weights::reader::SafetensorsFile};

/// What a file holds.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The family it was made for and how that was told.
    pub family: Detected,
    /// What it is, if not an adapter for Stable Diffusion (or one in part): "Flux", "a ControlNet".
    pub foreign: Option<&'static str>,
    /// How names are spelled: "kohya", "diffusers", "PEFT" and so on.
    pub dialects: BTreeSet<&'static str>,
    /// Every layer it changes, sorted by name.
    pub modules: Vec<SurveyedModule>,
    /// Textual inversions that came in the same file.
    pub embeddings: Vec<BundledEmbedding>,
    /// Keys that end in no known parameter's name.
    pub unknown: Vec<String>,
    /// Odd but harmless things.
    pub warnings: Vec<String>,
}

/// A textual inversion inside an adapter's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundledEmbedding {
    /// What a prompt calls it. Text of the file's author: never a path.
    pub name: String,
    /// Each tensor's name (`clip_l`, `string_to_param.*`) and shape.
    pub vectors: Vec<(String, Vec<usize>)>,
}

/// The layers of one block together.
#[derive(Debug, Clone)]
pub struct BlockSummary {
    /// Where.
    pub block: Block,
    /// How many layers are changed.
    pub modules: usize,
    /// The ranks that occur, sorted.
    pub ranks: Vec<usize>,
    /// The alphas that occur, sorted; a layer without alpha counts as alpha = rank.
    pub alphas: Vec<f64>,
}

impl Survey {
    /// Reads the header, and the alphas, which are a few bytes each.
    ///
    /// # Errors
    /// If metadata that belongs to the adapter is damaged.
    pub fn of(file: &SafetensorsFile) -> Result<Self> {
        let mut survey = Self::default();
        let mut groups: BTreeMap<&str, module::Params<'_>> = BTreeMap::new();
        let mut embeddings: BTreeMap<&str, Vec<(String, Vec<usize>)>> = BTreeMap::new();
        for (key, entry) in &file.header().tensors {
            if key.starts_with(embedding::BUNDLE) {
                let (name, vector) = embedding::split(key);
                embeddings.entry(name).or_default().push((vector.to_string(), entry.shape.clone()));
            } else if let Some(what) = prefix::foreign(key) {
                survey.foreign = survey.foreign.or(Some(what));
            } else if prefix::is_bookkeeping(key) {
            } else if let Some((module, _)) =
                suffix::split_among(key, |k| file.header().tensors.contains_key(k))
            {
                groups.entry(module).or_default().insert(&key[module.len()..], entry);
            } else {
                survey.unknown.push(key.clone());
            }
        }
        let config = peft::Config::of(&super::Metadata(file.metadata().clone()))?;
        for (name, params) in groups {
            let parsed = prefix::parse(name);
            survey.dialects.insert(parsed.dialect);
            survey.modules.push(SurveyedModule::new(name, &parsed, &params, file, &config));
        }
        survey.embeddings =
            embeddings.into_iter().map(|(n, vectors)| BundledEmbedding { name: n.into(), vectors }).collect();
        survey.family = family::detect(&survey.modules, &survey.embeddings, file.metadata());
        survey.warnings.extend(survey.family.disagreement.clone());
        if file.header().tensors.is_empty() {
            survey.warnings.push("the file has no tensors".into());
        }
        Ok(survey)
    }

    /// How many layers each algorithm changes.
    pub fn algorithms(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for module in &self.modules {
            *counts.entry(module.algorithm.as_str()).or_default() += 1;
        }
        counts
    }

    /// How many layers of each kind are changed: what was trained.
    pub fn trained(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for module in &self.modules {
            *counts.entry(module.kind).or_default() += 1;
        }
        counts
    }

    /// Ranks and alphas block by block, in the order the picture goes through them.
    pub fn blocks(&self) -> Vec<BlockSummary> {
        let mut blocks: BTreeMap<Block, Vec<&SurveyedModule>> = BTreeMap::new();
        for module in &self.modules {
            blocks.entry(module.block).or_default().push(module);
        }
        let summary = |(block, modules): (Block, Vec<&SurveyedModule>)| {
            let mut ranks: Vec<usize> = modules.iter().filter_map(|m| m.rank).collect();
            ranks.sort_unstable();
            ranks.dedup();
            let alpha = |m: &&SurveyedModule| m.alpha.or(m.rank.map(|r| r as f64));
            let mut alphas: Vec<f64> = modules.iter().filter_map(alpha).collect();
            alphas.sort_by(f64::total_cmp);
            alphas.dedup();
            BlockSummary { block, modules: modules.len(), ranks, alphas }
        };
        blocks.into_iter().map(summary).collect()
    }
}

#[cfg(test)]
mod tests;
