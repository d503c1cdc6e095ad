//! How alike two adapters are, from their factors: never from a full ΔW.
//!
//! On a layer both change, with ΔW = Σ σᵢ uᵢ vᵢᵀ and ΔW' likewise, the **subspace similarity** is the mean squared cosine
//! between their directions, each pair weighted by both energies:
//!
//! ```text
//! s_out = Σᵢⱼ σᵢ² σ'ⱼ² (uᵢ·u'ⱼ)² / √(Σσᵢ⁴ Σσ'ⱼ⁴) = ‖ΔWᵀΔW'‖² / (‖ΔWΔWᵀ‖ ‖ΔW'ΔW'ᵀ‖)
//! ```
//!
//! s_in the same with v, and s = (s_out + s_in) / 2: 1 for the same subspaces with the same energies, 0 for orthogonal
//! ones, whatever the signs. (It is the RV coefficient of the two; plain principal angles would call every pair of high
//! rank alike.) The **cosine** is ⟨ΔW, ΔW'⟩ / (‖ΔW‖ ‖ΔW'‖): 1 for the same change, 0 for unrelated, -1 for opposite.
//!
//! Over layers both are means weighted by ‖ΔW‖ ‖ΔW'‖ / √(Σ‖ΔW‖² Σ‖ΔW'‖²), so that a layer only one of the two changes
//! counts as 0. With ΔW = U D everything follows from r × r matrices: UᵀU, DDᵀ, UᵀU', DD'ᵀ. O(r² (in + out)) a layer.

use std::collections::BTreeMap;

use super::{Adapter, NameTable, delta::inner, factors::Factors};
use crate::{error::Result, nn::LayerPath};

/// An adapter's layers as factors.
#[derive(Debug, Default)]
pub struct Profile {
    layers: BTreeMap<LayerPath, Factors>,
    /// Σ‖ΔW‖².
    energy: f64,
    /// Changed layers that have no low rank, or depend on the base weight: not compared.
    pub left_out: usize,
}

/// How alike two adapters are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Similarity {
    /// 0 to 1.
    pub subspace: f64,
    /// -1 to 1.
    pub cosine: f64,
    /// Layers that both change.
    pub shared: usize,
}

impl Profile {
    /// Of an adapter for the model of `table`.
    ///
    /// # Errors
    /// If a delta does not fit its layer.
    pub fn of(adapter: &Adapter, table: &NameTable) -> Result<Self> {
        let mut profile = Self::default();
        for (path, delta) in &adapter.layers {
            let factors = match table.shape(path) {
                Some(shape) if shape.len() > 1 => Factors::of(delta, shape)?,
                _ => None,
            };
            match factors {
                Some(factors) => {
                    profile.energy += factors.norm().powi(2);
                    profile.layers.insert(path.clone(), factors);
                }
                None => profile.left_out += 1,
            }
        }
        Ok(profile)
    }

    /// True if there is nothing to compare.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Compares two adapters for one model.
    ///
    /// # Errors
    /// If a layer has another size in the other.
    pub fn similarity(&self, other: &Self) -> Result<Similarity> {
        let mut result = Similarity::default();
        let whole = (self.energy * other.energy).sqrt();
        for (path, ours) in &self.layers {
            let Some(theirs) = other.layers.get(path) else { continue };
            result.shared += 1;
            let weight = ours.norm() * theirs.norm() / whole;
            if weight.is_finite() && weight > 0.0 {
                let (subspace, cosine) = compare(ours, theirs)?;
                result.subspace += weight * subspace;
                result.cosine += weight * cosine;
            }
        }
        Ok(result)
    }
}

/// Subspace similarity and cosine.
fn compare(ours: &Factors, theirs: &Factors) -> Result<(f64, f64)> {
    let [outer, inside] = ours.cross(theirs)?; // r r'
    let ([up, down], [other_up, other_down]) = (&ours.grams, &theirs.grams);
    // ‖ΔWᵀΔW'‖² = tr(DDᵀ M D'D'ᵀ Mᵀ) with M = UᵀU', and the mirror image of it.
    let outputs = inner(&down.matmul(&outer)?, &outer.matmul(other_down)?)?;
    let inputs = inner(&up.matmul(&inside)?, &inside.matmul(other_up)?)?;
    let subspace = (outputs + inputs) / (2.0 * fourth(ours)? * fourth(theirs)?);
    let cosine = inner(&outer, &inside)? / (ours.norm() * theirs.norm());
    Ok((subspace.clamp(0.0, 1.0), cosine.clamp(-1.0, 1.0)))
}

/// ‖ΔWΔWᵀ‖, which is ‖ΔWᵀΔW‖ too: the root of tr(DDᵀ UᵀU DDᵀ UᵀU).
fn fourth(factors: &Factors) -> Result<f64> {
    let [up, down] = &factors.grams;
    Ok(inner(&down.matmul(up)?, &up.matmul(down)?)?.max(0.0).sqrt())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::{
        adapter::{
            Delta, LowRank,
            delta::{HadamardFactor, KroneckerFactor, LoHa, LoKr},
        },
        nn::Part,
        random::{Rng, Stream},
    };

    const SHAPE: [usize; 2] = [12, 9];

    fn random(shape: &[usize], seed: u64) -> Result<Tensor> {
        Rng::new(seed, Stream::Weights, 0).normal(shape, &Device::Cpu)
    }

    fn low_rank(rank: usize, seed: u64) -> Result<Delta> {
        let (down, up) = (random(&[rank, 9], seed)?, random(&[12, rank], seed + 1)?);
        Ok(Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(1.0) }))
    }

    fn squares(t: &Tensor) -> Result<f64> {
        inner(t, t)
    }

    /// The definition, with full matrices.
    fn by_full_deltas(a: &Delta, b: &Delta) -> Result<(f64, f64)> {
        let (a, b) = (a.weight(&SHAPE)?, b.weight(&SHAPE)?);
        let norm = |t: &Tensor| Ok::<_, crate::Error>(squares(&t.matmul(&t.t()?)?)?.sqrt());
        let outputs = squares(&a.t()?.matmul(&b)?)?;
        let inputs = squares(&a.matmul(&b.t()?)?)?;
        let subspace = (outputs + inputs) / (2.0 * norm(&a)? * norm(&b)?);
        Ok((subspace, inner(&a, &b)? / (squares(&a)? * squares(&b)?).sqrt()))
    }

    #[test]
    fn factors_give_what_full_deltas_give() -> Result<()> {
        let loha = |seed: u64| -> Result<Delta> {
            let factor = |s: u64| -> Result<HadamardFactor> {
                Ok(HadamardFactor { a: random(&[12, 2], s)?, b: random(&[2, 9], s + 1)?, core: None })
            };
            Ok(Delta::LoHa(LoHa { first: factor(seed)?, second: factor(seed + 2)?, alpha: Some(3.0) }))
        };
        let lokr = Delta::LoKr(LoKr {
            first: KroneckerFactor::Whole(random(&[3, 3], 40)?),
            second: KroneckerFactor::Product { a: random(&[4, 2], 41)?, b: random(&[2, 3], 42)? },
            alpha: Some(1.0),
            whole_scale: None,
        });
        let deltas = [low_rank(3, 1)?, low_rank(5, 3)?, loha(10)?, loha(20)?, lokr];
        for a in &deltas {
            let ours = Factors::of(a, &SHAPE)?.expect("low rank");
            assert!((ours.norm() / squares(&a.weight(&SHAPE)?)?.sqrt() - 1.0).abs() < 1e-5);
            for b in &deltas {
                let found = compare(&ours, &Factors::of(b, &SHAPE)?.expect("low rank"))?;
                let expected = by_full_deltas(a, b)?;
                let far = (found.0 - expected.0).abs().max((found.1 - expected.1).abs());
                assert!(far < 1e-5, "{} and {}: {found:?}, {expected:?}", a.algorithm(), b.algorithm());
            }
        }
        Ok(())
    }

    #[test]
    fn layers_of_one_only_count_as_unlike() -> Result<()> {
        let path = |name: &str| LayerPath { part: Part::Unet, name: name.into() };
        let table = NameTable::from_shapes(["a", "b"].map(|n| (path(n), SHAPE.to_vec())).into());
        let profile = |names: &[&str], sign: f64| -> Result<Profile> {
            let layer = |name: &&str| {
                let Delta::LowRank(LowRank { down, up, .. }) = low_rank(3, 1)? else { unreachable!() };
                let up = (up * sign)?;
                Ok((path(name), Delta::LowRank(LowRank { down, up, mid: None, alpha: None })))
            };
            let layers = names.iter().map(layer).collect::<Result<_>>()?;
            Profile::of(&Adapter { layers, ..Adapter::default() }, &table)
        };
        let (both, one) = (profile(&["a", "b"], 1.0)?, profile(&["a"], -2.0)?);
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found}");
        let same = both.similarity(&both)?;
        close(same.subspace, 1.0);
        close(same.cosine, 1.0);
        let half = both.similarity(&one)?;
        assert_eq!(half.shared, 1);
        close(half.subspace, 0.5f64.sqrt());
        close(half.cosine, -0.5f64.sqrt());
        assert_eq!(both.similarity(&Profile::default())?, Similarity::default());
        Ok(())
    }
}
