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

use candle_core::{DType, Device, Tensor};

use super::{
    Adapter, Branch, Delta, NameTable,
    delta::{HadamardFactor, KroneckerFactor, LoHa, LoKr},
};
use crate::{error::Result, nn::LayerPath};

/// Above this, an exact factorisation of a `LoHa` or `LoKr` is no longer one of low rank.
const MAX_RANK: usize = 1024;

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

/// ΔW = up · down, and what one side alone gives.
#[derive(Debug)]
pub(super) struct Factors {
    /// (o, r), with the scale.
    up: Tensor,
    /// (r, i·k).
    down: Tensor,
    /// (r, r): UᵀU and DDᵀ.
    grams: [Tensor; 2],
    /// ‖ΔW‖.
    norm: f64,
    /// ‖ΔWΔWᵀ‖, which is ‖ΔWᵀΔW‖ too.
    fourth: f64,
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
                    profile.energy += factors.norm * factors.norm;
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
            let weight = ours.norm * theirs.norm / whole;
            if weight.is_finite() && weight > 0.0 {
                let (subspace, cosine) = ours.compare(theirs)?;
                result.subspace += weight * subspace;
                result.cosine += weight * cosine;
            }
        }
        Ok(result)
    }
}

impl Factors {
    /// `None` for what has no low rank whatever the base weight is. Of a `DoRA` the direction before its lengths are
    /// set.
    pub fn of(delta: &Delta, shape: &[usize]) -> Result<Option<Self>> {
        let branch = match delta {
            Delta::Dora(dora) => return Self::of(&dora.inner, shape),
            Delta::Beside(beside) => return Self::of(&beside.inner, shape),
            Delta::LoHa(loha) => hadamard(loha)?,
            Delta::LoKr(lokr) => kronecker(lokr)?,
            _ => delta.branch(shape)?,
        };
        branch.map(Self::new).transpose()
    }

    fn new(Branch { down, up, scale }: Branch) -> Result<Self> {
        let down = down.flatten_from(1)?;
        let up = (up * scale)?;
        let grams = [up.t()?.matmul(&up)?, down.matmul(&down.t()?)?];
        let norm = dot(&grams[0], &grams[1])?.max(0.0).sqrt();
        let fourth = fourth(&grams[0], &grams[1])?.max(0.0).sqrt();
        Ok(Self { up, down, grams, norm, fourth })
    }

    /// ‖ΔW‖.
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// Subspace similarity and cosine.
    fn compare(&self, other: &Self) -> Result<(f64, f64)> {
        let outer = self.up.t()?.matmul(&other.up)?; // r r'
        let inner = self.down.matmul(&other.down.t()?)?; // r r'
        let [up, down] = &self.grams;
        let [other_up, other_down] = &other.grams;
        // ‖ΔWᵀΔW'‖² = tr(DDᵀ M D'D'ᵀ Mᵀ) with M = UᵀU', and the mirror image of it.
        let outputs = dot(&down.matmul(&outer)?, &outer.matmul(other_down)?)?;
        let inputs = dot(&up.matmul(&inner)?, &inner.matmul(other_up)?)?;
        let subspace = (outputs + inputs) / (2.0 * self.fourth * other.fourth);
        let cosine = dot(&outer, &inner)? / (self.norm * other.norm);
        Ok((subspace.clamp(0.0, 1.0), cosine.clamp(-1.0, 1.0)))
    }
}

/// tr(DDᵀ UᵀU DDᵀ UᵀU).
fn fourth(up: &Tensor, down: &Tensor) -> Result<f64> {
    dot(&down.matmul(up)?, &up.matmul(down)?)
}

/// Σ a ⊙ b, in f64.
fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok((a.to_dtype(DType::F64)? * b.to_dtype(DType::F64)?)?.sum_all()?.to_scalar::<f64>()?)
}

/// (A₁B₁) ⊙ (A₂B₂) is of rank r²: each row of the up factor is the product of A₁'s and A₂'s.
fn hadamard(loha: &LoHa) -> Result<Option<Branch>> {
    let (first, second) = (&loha.first, &loha.second);
    if first.core.is_some() || second.core.is_some() {
        return Ok(None);
    }
    let factors = |f: &HadamardFactor| -> Result<(Tensor, Tensor)> {
        Ok((f32_of(&f.a)?.flatten_from(1)?, f32_of(&f.b)?.flatten_from(1)?))
    };
    let ((a1, b1), (a2, b2)) = (factors(first)?, factors(second)?);
    let ((o, r1), (_, r2), n) = (a1.dims2()?, a2.dims2()?, b1.dim(1)?);
    if r1 * r2 > MAX_RANK {
        return Ok(None);
    }
    let up = a1.reshape((o, r1, 1))?.broadcast_mul(&a2.reshape((o, 1, r2))?)?.reshape((o, r1 * r2))?;
    let down = b1.reshape((r1, 1, n))?.broadcast_mul(&b2.reshape((1, r2, n))?)?.reshape((r1 * r2, n))?;
    let scale = loha.alpha.map_or(1.0, |alpha| alpha / loha.rank() as f64);
    Ok(Some(Branch { down, up, scale }))
}

/// (A₁B₁) ⊗ (A₂B₂) = (A₁ ⊗ A₂) (B₁ ⊗ B₂). A small matrix stored whole is its own product with 1.
fn kronecker(lokr: &LoKr) -> Result<Option<Branch>> {
    let factors = |f: &KroneckerFactor| -> Result<Option<(Tensor, Tensor)>> {
        Ok(match f {
            KroneckerFactor::Whole(whole) => {
                let whole = f32_of(whole)?.flatten_from(1)?;
                let one = Tensor::eye(whole.dim(0)?, DType::F32, &Device::Cpu)?;
                Some((one, whole))
            }
            KroneckerFactor::Product { a, b } => {
                Some((f32_of(a)?.flatten_from(1)?, f32_of(b)?.flatten_from(1)?))
            }
            KroneckerFactor::Tucker { .. } => None,
        })
    };
    let (Some((a1, b1)), Some((a2, b2))) = (factors(&lokr.first)?, factors(&lokr.second)?) else {
        return Ok(None);
    };
    if a1.dim(1)? * a2.dim(1)? > MAX_RANK {
        return Ok(None);
    }
    Ok(Some(Branch { down: kron(&b1, &b2)?, up: kron(&a1, &a2)?, scale: lokr.scale() }))
}

fn kron(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((p, q), (m, n)) = (a.dims2()?, b.dims2()?);
    let product = a.reshape((p, 1, q, 1))?.broadcast_mul(&b.reshape((1, m, 1, n))?)?;
    Ok(product.reshape((p * m, q * n))?)
}

fn f32_of(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        adapter::LowRank,
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
        dot(t, t)
    }

    /// The definition, with full matrices.
    fn by_full_deltas(a: &Delta, b: &Delta) -> Result<(f64, f64)> {
        let (a, b) = (a.weight(&SHAPE)?, b.weight(&SHAPE)?);
        let norm = |t: &Tensor| Ok::<_, crate::Error>(squares(&t.matmul(&t.t()?)?)?.sqrt());
        let outputs = squares(&a.t()?.matmul(&b)?)?;
        let inputs = squares(&a.matmul(&b.t()?)?)?;
        let subspace = (outputs + inputs) / (2.0 * norm(&a)? * norm(&b)?);
        Ok((subspace, dot(&a, &b)? / (squares(&a)? * squares(&b)?).sqrt()))
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
                let found = ours.compare(&Factors::of(b, &SHAPE)?.expect("low rank"))?;
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
