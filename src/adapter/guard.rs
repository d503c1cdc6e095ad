//! The overcook guard: how much a blend changes each layer, which adapters pull the same way, and keeping the sum in
//! bounds.
//!
//! Everything follows from the inner products ⟨ΔWᵢ, ΔWⱼ⟩ (Frobenius) of the adapters on a layer. For low-rank deltas
//! they come from the factors, ⟨U₁D₁, U₂D₂⟩ = Σ (U₁ᵀU₂) ⊙ (D₁D₂ᵀ): r × r numbers, never a full ΔW. They are computed
//! once; any strengths then cost k² multiplications a layer.

mod report;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::Tensor;

pub use report::{ALIKE, BlendReport, BlockEnergy, LIMIT, Overlap, Warning};

use super::{
    Blend, Delta, Parts, Strength,
    delta::{f32_of, frobenius, inner},
    factors::Factors,
    parts,
};
use crate::{error::Result, nn::LayerPath};

/// The adapters' inner products on every layer they touch.
#[derive(Debug, Clone)]
pub struct Energies {
    names: Vec<String>,
    layers: Vec<LayerEnergy>,
}

/// One layer.
#[derive(Debug, Clone)]
struct LayerEnergy {
    path: LayerPath,
    /// ‖W‖.
    base: f64,
    /// Which entries of the blend have a delta here.
    entries: Vec<usize>,
    /// ⟨ΔWᵢ, ΔWⱼ⟩ at strength 1, row by row.
    gram: Vec<f64>,
}

impl Energies {
    /// Computes them for a blend's adapters; the strengths do not matter yet.
    ///
    /// # Errors
    /// If a delta does not fit its layer.
    pub fn of(blend: &Blend, model: &mut Parts<'_>) -> Result<Self> {
        let mut layers = Vec::new();
        model.visit(&mut |path, slot| {
            layers.extend(LayerEnergy::of(blend, path, parts::weight(&slot))?);
            Ok(())
        })?;
        Ok(Self { names: blend.entries.iter().map(|e| e.name.clone()).collect(), layers })
    }

    /// The strengths with a factor a layer that brings ‖Σ mᵢΔWᵢ‖ down to the smaller of two energies: √(Σ ‖mᵢΔWᵢ‖²), which
    /// the adapters would have if none pulled another one's way, and the largest ‖ΔWᵢ‖ of an adapter in use at weight 1
    /// (at its own weight, if that is more), which the network was trained to bear.
    ///
    /// One factor for all of a layer's adapters keeps the direction each pulls in and their proportions; it never
    /// exceeds 1, so that adapters that cancel are not blown up, and is 1 for an adapter alone.
    pub fn normalize(&self, strengths: &[Strength]) -> Vec<Strength> {
        let apart = Apart::of(strengths);
        let factor = |layer: &LayerEnergy| {
            let (sum, unrelated) = layer.energy(strengths, &apart);
            let most = unrelated.min(layer.bearable(strengths));
            (sum > most).then(|| (layer.path.clone(), (most / sum).sqrt()))
        };
        let factors: BTreeMap<LayerPath, f64> = self.layers.iter().filter_map(factor).collect();
        let factors = Arc::new(factors);
        strengths.iter().map(|s| s.with_factors(factors.clone())).collect()
    }
}

impl LayerEnergy {
    fn of(blend: &Blend, path: &LayerPath, base: &Tensor) -> Result<Option<Self>> {
        let (mut entries, mut changes) = (Vec::new(), Vec::new());
        for (entry, item) in blend.on(path) {
            let change = Change::of(&item.adapter.layers[path], base);
            let change = change.map_err(|e| e.context(format!("adapter `{}`, {path}", item.name)))?;
            // Some deltas change the bias alone.
            if let Some(change) = change {
                changes.push(change);
                entries.push(entry);
            }
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let k = changes.len();
        let mut gram = vec![0.0; k * k];
        for i in 0..k {
            for j in 0..=i {
                let inner = changes[i].inner(&changes[j])?;
                (gram[i * k + j], gram[j * k + i]) = (inner, inner);
            }
        }
        Ok(Some(Self { path: path.clone(), base: frobenius(base)?, entries, gram }))
    }

    /// ‖Σ mᵢΔWᵢ‖² and Σ ‖mᵢΔWᵢ‖², over the entries that meet at the place where that is most.
    fn energy(&self, strengths: &[Strength], apart: &Apart) -> (f64, f64) {
        let weights: Vec<f64> = self.entries.iter().map(|e| strengths[*e].at(&self.path)).collect();
        let k = weights.len();
        let at_place_of = |i: usize| {
            let here: Vec<usize> = (0..k).filter(|j| !apart.are(self.entries[i], self.entries[*j])).collect();
            let inner = |a: usize, b: usize| weights[a] * weights[b] * self.gram[a * k + b];
            let together: f64 =
                here.iter().flat_map(|a| here.iter().map(move |b| (*a, *b))).map(|(a, b)| inner(a, b)).sum();
            // Rounding may leave a hair below 0 where adapters cancel.
            (together.max(0.0), here.iter().map(|a| inner(*a, *a)).sum::<f64>())
        };
        (0..k).map(at_place_of).fold((0.0, 0.0), |most, here| if here.0 > most.0 { here } else { most })
    }

    /// The largest max(1, mᵢ²) ‖ΔWᵢ‖² of the adapters in use.
    fn bearable(&self, strengths: &[Strength]) -> f64 {
        let k = self.entries.len();
        let each = self.entries.iter().enumerate().map(|(i, entry)| {
            let weight = strengths[*entry].at(&self.path);
            if weight == 0.0 { 0.0 } else { weight.powi(2).max(1.0) * self.gram[i * k + i] }
        });
        each.fold(0.0, f64::max)
    }
}

/// Which entries never meet, because their regions do not.
#[derive(Debug)]
struct Apart(Vec<(usize, usize)>);

/// Share of a region that soft edges may have in common with another one.
const EDGE: f32 = 0.02;

impl Apart {
    fn of(strengths: &[Strength]) -> Self {
        let masks = |i: usize| strengths[i].region()?.masks()?.last_key_value().map(|(_, mask)| mask);
        let mut pairs = Vec::new();
        for i in 0..strengths.len() {
            for j in 0..i {
                if let (Some(a), Some(b)) = (masks(i), masks(j)) {
                    let common: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    let smaller = a.iter().sum::<f32>().min(b.iter().sum());
                    if common <= EDGE * smaller {
                        pairs.push((j, i));
                    }
                }
            }
        }
        Self(pairs)
    }

    fn are(&self, i: usize, j: usize) -> bool {
        self.0.contains(&(i.min(j), i.max(j)))
    }
}

/// ΔW as factors if it has them.
enum Change {
    Factors(Factors),
    /// (o, i·k).
    Full(Tensor),
}

impl Change {
    /// An algorithm that depends on the base weight counts as what it changes at strength 1.
    fn of(delta: &Delta, base: &Tensor) -> Result<Option<Self>> {
        if !delta.changes_weight() {
            return Ok(None);
        }
        Ok(Some(match delta.branch(base.dims())? {
            Some(branch) => Self::Factors(Factors::new(branch)?),
            None => {
                let change = if delta.is_additive() {
                    delta.weight(base.dims())?
                } else {
                    let base = f32_of(base)?;
                    (delta.apply(&base, 1.0)? - base)?
                };
                Self::Full(change.reshape((base.dim(0)?, ()))?)
            }
        }))
    }

    fn inner(&self, other: &Self) -> Result<f64> {
        match (self, other) {
            (Self::Factors(a), Self::Factors(b)) => a.inner(b),
            (Self::Factors(factors), Self::Full(full)) | (Self::Full(full), Self::Factors(factors)) => {
                factors.inner_with(full)
            }
            (Self::Full(a), Self::Full(b)) => inner(a, b),
        }
    }
}

#[cfg(test)]
mod tests;
