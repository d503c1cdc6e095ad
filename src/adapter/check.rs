//! Proof of an adapter's file against a model: every key applied or listed with its reason, and how much each layer is
//! changed.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};

use super::{
    Adapter, Delta, LoadOptions, LoadReport, NameTable,
    delta::{f32_of, frobenius},
    factors::Factors,
    format::{self, prefix, suffix},
    report::Reason,
};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
};

/// What came of a file.
#[derive(Debug)]
pub struct Check {
    /// Key by key.
    pub report: LoadReport,
    /// The adapter as it would be applied, with what does not fit left out; or why it cannot be.
    pub adapter: Result<Adapter>,
}

/// How much a layer is changed.
#[derive(Debug, Clone)]
pub struct LayerChange {
    /// Which.
    pub path: LayerPath,
    /// By what.
    pub algorithm: &'static str,
    /// r, if it has one.
    pub rank: Option<usize>,
    /// alpha as stored.
    pub alpha: Option<f64>,
    /// ‖ΔW‖ at strength 1; 0 for a change of the bias alone.
    pub change: f64,
    /// ‖W‖.
    pub base: f64,
}

impl LayerChange {
    /// ‖ΔW‖ / ‖W‖.
    pub fn relative(&self) -> f64 {
        if self.base > 0.0 { self.change / self.base } else { 0.0 }
    }
}

impl Check {
    /// Of a file (or a folder of PEFT's) for the model of `table`.
    ///
    /// # Errors
    /// If the file is malformed.
    pub fn of(path: &Path, table: &NameTable) -> Result<Self> {
        let mut report = format::report(path, table)?;
        name_nearest(&mut report, table);
        let options = LoadOptions { allow_unmatched: true, ..LoadOptions::default() };
        let adapter = Adapter::load(path, table, &options);
        if let Ok(adapter) = &adapter {
            report.warnings.clone_from(&adapter.report.warnings);
        }
        Ok(Self { report, adapter })
    }

    /// The share of the file's keys that would be applied, 0 to 1: none of a file that is refused.
    pub fn coverage(&self) -> f64 {
        if self.adapter.is_ok() { self.report.coverage() } else { 0.0 }
    }

    /// True if all of it would be applied.
    pub fn passed(&self) -> bool {
        self.adapter.is_ok() && self.report.unmatched.is_empty()
    }
}

/// Looks up what each unknown layer may have meant: reading does so for the first few only.
fn name_nearest(report: &mut LoadReport, table: &NameTable) {
    let module = |key: &str| suffix::split(key).map(|(module, _)| module.to_string());
    let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
    for unmatched in &report.unmatched {
        if let (Reason::UnknownLayer { nearest: None }, Some(module)) =
            (&unmatched.reason, module(&unmatched.key))
        {
            known.insert(module, None);
        }
    }
    let found: BTreeMap<String, Option<String>> =
        known.par_iter().map(|(module, _)| (module.clone(), table.nearest(&prefix::parse(module)))).collect();
    for unmatched in &mut report.unmatched {
        if let Reason::UnknownLayer { nearest: nearest @ None } = &mut unmatched.reason {
            *nearest = module(&unmatched.key).and_then(|module| found.get(&module).cloned().flatten());
        }
    }
}

/// The size of every layer's change relative to its weight, the largest first. `weight` reads a layer's base weight.
///
/// # Errors
/// If a weight cannot be read or a delta does not fit it.
pub fn changes(
    adapter: &Adapter,
    table: &NameTable,
    weight: &(dyn Fn(&LayerPath) -> Result<Tensor> + Sync),
) -> Result<Vec<LayerChange>> {
    let layers: Vec<(&LayerPath, &Delta)> = adapter.layers.iter().collect();
    let change = |(path, delta): &(&LayerPath, &Delta)| -> Result<LayerChange> {
        let located = |e: Error| e.context(path.to_string());
        let shape = table.shape(path).unwrap_or_default();
        let base = weight(path).and_then(|w| Ok(f32_of(&w)?.reshape(shape)?)).map_err(located)?;
        Ok(LayerChange {
            path: (*path).clone(),
            algorithm: delta.algorithm(),
            rank: delta.rank(),
            alpha: delta.alpha(),
            change: change(delta, &base).map_err(located)?,
            base: frobenius(&base)?,
        })
    };
    let mut changes: Vec<LayerChange> = layers.par_iter().map(change).collect::<Result<_>>()?;
    changes.sort_by(|a, b| b.relative().total_cmp(&a.relative()).then_with(|| a.path.cmp(&b.path)));
    Ok(changes)
}

/// ‖ΔW‖ from the factors where they say it all; else from what it makes of the base.
fn change(delta: &Delta, base: &Tensor) -> Result<f64> {
    if !delta.changes_weight() {
        return Ok(0.0);
    }
    if let Delta::LowRank(_) = delta
        && let Some(factors) = Factors::of(delta, base.dims())?
    {
        return Ok(factors.norm());
    }
    frobenius(&(delta.apply(base, 1.0)? - base)?)
}
