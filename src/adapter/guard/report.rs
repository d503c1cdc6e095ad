//! What the guard says of a blend.

use std::fmt;

use super::{Apart, Energies, LayerEnergy};
use crate::{
    adapter::Strength,
    nn::{LayerPath, Part},
};

/// An adapter is trained and judged at weight 1. A blend that changes a block this many times as much as the strongest
/// of its adapters does at weight 1 is outside of what any of them was made for. Two unrelated adapters at full weight
/// come to √2 and stay below.
pub const LIMIT: f64 = 1.5;
/// Adapters whose changes have this cosine add up rather than mix: of two at full weight, the sum has √3 times the
/// energy of one.
pub const ALIKE: f64 = 0.5;

/// How much a blend changes a model.
#[derive(Debug, Clone, Default)]
pub struct BlendReport {
    /// The adapters, in the blend's order.
    pub names: Vec<String>,
    /// The blocks some adapter touches, in the network's order.
    pub blocks: Vec<BlockEnergy>,
    /// Pairs of adapters, over all layers both touch.
    pub overlaps: Vec<Overlap>,
    /// What is wrong.
    pub warnings: Vec<Warning>,
}

/// A block: its layers' changes, each root of the sum of squares, relative to the base weights' ‖W‖.
#[derive(Debug, Clone)]
pub struct BlockEnergy {
    /// `te`, `down.0`, `mid`, `up.2`, `rest`.
    pub block: String,
    /// ‖mᵢΔWᵢ‖ / ‖W‖ of each adapter.
    pub each: Vec<f64>,
    /// ‖Σ mᵢΔWᵢ‖ / ‖W‖.
    pub total: f64,
    /// √(Σ ‖mᵢΔWᵢ‖²) / ‖W‖: the total if the adapters were unrelated.
    pub unrelated: f64,
    /// maxᵢ ‖ΔWᵢ‖ / ‖W‖ at weight 1 of the adapters in use: what the strongest was made for.
    pub reach: f64,
}

/// How alike two adapters' changes are.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlap {
    /// Indices into [`BlendReport::names`].
    pub pair: (usize, usize),
    /// Σ⟨ΔWᵢ, ΔWⱼ⟩ / (‖ΔWᵢ‖ ‖ΔWⱼ‖) with the signs of the weights: 1 the same change, 0 unrelated, -1 opposite.
    pub cosine: f64,
    /// The block where they are most alike.
    pub block: String,
}

/// Why a blend may look overcooked.
#[derive(Debug, Clone, PartialEq)]
pub enum Warning {
    /// A block changes more than [`LIMIT`] times as much as its strongest adapter does at weight 1.
    TooMuch {
        /// The block.
        block: String,
        /// How many times.
        times: f64,
        /// The adapters that do it, the strongest first, with their share of the energy.
        culprits: Vec<(String, f64)>,
    },
    /// Two adapters add up ([`ALIKE`]).
    Alike {
        /// The adapters.
        pair: (String, String),
        /// Their cosine.
        cosine: f64,
        /// Where most of all.
        block: String,
    },
}

impl BlendReport {
    /// True if nothing is wrong.
    pub fn is_fine(&self) -> bool {
        self.warnings.is_empty()
    }
}

impl Energies {
    /// What a blend with these strengths does. For strengths that change over the steps, those of one moment:
    /// [`Strength::at_peak`] for the worst.
    pub fn report(&self, strengths: &[Strength]) -> BlendReport {
        let apart = Apart::of(strengths);
        let mut blocks: Vec<(Block<'_>, String)> = Vec::new();
        for layer in &self.layers {
            let name = block_of(&layer.path);
            match blocks.iter_mut().find(|(_, known)| *known == name) {
                Some((block, _)) => block.layers.push(layer),
                None => blocks.push((Block { layers: vec![layer] }, name)),
            }
        }
        let n = self.names.len();
        let energies: Vec<BlockEnergy> =
            blocks.iter().map(|(block, name)| block.energy(name, strengths, &apart)).collect();
        let whole = Block { layers: self.layers.iter().collect() };
        let mut overlaps = Vec::new();
        for pair in (0..n).flat_map(|j| (0..j).map(move |i| (i, j))).filter(|(i, j)| !apart.are(*i, *j)) {
            let Some(cosine) = whole.cosine(pair, strengths) else { continue };
            let most = blocks.iter().filter_map(|(block, name)| Some((block.cosine(pair, strengths)?, name)));
            let most = most.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
            let block = most.map(|(_, name)| name.clone()).unwrap_or_default();
            overlaps.push(Overlap { pair, cosine, block });
        }
        let mut report =
            BlendReport { names: self.names.clone(), blocks: energies, overlaps, warnings: vec![] };
        report.warnings = self.warnings(&report, &blocks, strengths);
        report
    }

    fn warnings(
        &self,
        report: &BlendReport,
        blocks: &[(Block<'_>, String)],
        strengths: &[Strength],
    ) -> Vec<Warning> {
        let too_much =
            report.blocks.iter().zip(blocks).filter(|(energy, _)| energy.total > LIMIT * energy.reach);
        let too_much = too_much.map(|(energy, (block, _))| {
            let mut culprits: Vec<(String, f64)> =
                self.names.iter().cloned().zip(block.shares(self.names.len(), strengths)).collect();
            culprits.retain(|(_, share)| *share >= 0.5 / self.names.len() as f64);
            culprits.sort_by(|a, b| b.1.total_cmp(&a.1));
            let times = energy.total / energy.reach;
            Warning::TooMuch { block: energy.block.clone(), times, culprits }
        });
        let alike = report.overlaps.iter().filter(|o| o.cosine >= ALIKE).map(|o| Warning::Alike {
            pair: (self.names[o.pair.0].clone(), self.names[o.pair.1].clone()),
            cosine: o.cosine,
            block: o.block.clone(),
        });
        too_much.chain(alike).collect()
    }
}

/// Layers looked at together.
struct Block<'a> {
    layers: Vec<&'a LayerEnergy>,
}

impl Block<'_> {
    fn energy(&self, name: &str, strengths: &[Strength], apart: &Apart) -> BlockEnergy {
        let mut each = vec![0.0; strengths.len()];
        let mut reach = each.clone();
        let (mut base, mut total, mut unrelated) = (0.0, 0.0, 0.0);
        for layer in &self.layers {
            let k = layer.entries.len();
            for (i, entry) in layer.entries.iter().enumerate() {
                let own = layer.gram[i * k + i];
                let weight = strengths[*entry].at(&layer.path);
                each[*entry] += weight * weight * own;
                reach[*entry] += if weight == 0.0 { 0.0 } else { own };
            }
            let (together, alone) = layer.energy(strengths, apart);
            total += together;
            unrelated += alone;
            base += layer.base * layer.base;
        }
        let relative = |energy: f64| (energy / base.max(f64::MIN_POSITIVE)).sqrt();
        BlockEnergy {
            block: name.to_owned(),
            each: each.into_iter().map(relative).collect(),
            total: relative(total),
            unrelated: relative(unrelated),
            reach: relative(reach.into_iter().fold(0.0, f64::max)),
        }
    }

    /// `None` if one of the two does nothing here.
    fn cosine(&self, (a, b): (usize, usize), strengths: &[Strength]) -> Option<f64> {
        let (mut inner, mut energy) = (0.0, [0.0; 2]);
        for layer in &self.layers {
            let position = |entry| layer.entries.iter().position(|e| *e == entry);
            let k = layer.entries.len();
            let weight = |entry: usize| strengths[entry].at(&layer.path);
            let of = |i: Option<usize>, j: Option<usize>| Some(layer.gram[i? * k + j?]);
            for (slot, entry) in energy.iter_mut().zip([a, b]) {
                let i = position(entry);
                *slot += weight(entry).powi(2) * of(i, i).unwrap_or(0.0);
            }
            inner += weight(a) * weight(b) * of(position(a), position(b)).unwrap_or(0.0);
        }
        (energy[0] > 0.0 && energy[1] > 0.0).then(|| inner / (energy[0] * energy[1]).sqrt())
    }

    /// mᵢ ⟨ΔWᵢ, Σ mⱼΔWⱼ⟩ of each adapter as a share of ‖Σ mⱼΔWⱼ‖²: they add up to 1.
    fn shares(&self, n: usize, strengths: &[Strength]) -> Vec<f64> {
        let mut shares = vec![0.0; n];
        for layer in &self.layers {
            let k = layer.entries.len();
            let weights: Vec<f64> = layer.entries.iter().map(|e| strengths[*e].at(&layer.path)).collect();
            for (i, entry) in layer.entries.iter().enumerate() {
                let row = &layer.gram[i * k..(i + 1) * k];
                shares[*entry] += weights[i] * row.iter().zip(&weights).map(|(g, w)| g * w).sum::<f64>();
            }
        }
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|s| if sum > 0.0 { s / sum } else { 0.0 }).collect()
    }
}

/// What users call the block a layer is in.
fn block_of(path: &LayerPath) -> String {
    match path.part {
        Part::TextEncoder => return "te".into(),
        Part::TextEncoder2 => return "te2".into(),
        Part::Unet => {}
    }
    let mut words = path.name.split('.');
    match (words.next(), words.next()) {
        (Some("down_blocks"), Some(i)) => format!("down.{i}"),
        (Some("mid_block"), _) => "mid".into(),
        (Some("up_blocks"), Some(i)) => format!("up.{i}"),
        _ => "rest".into(),
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMuch { block, times, culprits } => {
                let culprits: Vec<String> =
                    culprits.iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0)).collect();
                write!(
                    f,
                    "{block} changes {times:.1} times as much as by its strongest adapter at weight 1 ({})",
                    culprits.join(", ")
                )
            }
            Self::Alike { pair: (a, b), cosine, block } => {
                write!(f, "{a} and {b} pull the same way (cosine {cosine:.2}, most in {block}): they add up")
            }
        }
    }
}
