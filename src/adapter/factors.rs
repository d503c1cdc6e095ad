//! ΔW as a product of two thin matrices, wherever it is one whatever the base weight: norms and inner products of
//! changes for O(r² (in + out)), without ever making one.

use candle_core::{DType, Device, Tensor};

use super::delta::{Branch, Delta, HadamardFactor, KroneckerFactor, LoHa, LoKr, f32_of, inner};
use crate::error::Result;

/// Above this, an exact factorisation of a `LoHa` or `LoKr` is no longer one of low rank.
const MAX_RANK: usize = 1024;

/// ΔW = up · down, and what one side alone gives.
#[derive(Debug)]
pub(super) struct Factors {
    /// (o, r), with the scale.
    up: Tensor,
    /// (r, i·k).
    down: Tensor,
    /// (r, r): UᵀU and DDᵀ.
    pub grams: [Tensor; 2],
    norm: f64,
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

    pub fn new(Branch { down, up, scale }: Branch) -> Result<Self> {
        let down = down.flatten_from(1)?;
        let up = (up * scale)?;
        let grams = [up.t()?.matmul(&up)?, down.matmul(&down.t()?)?];
        let norm = inner(&grams[0], &grams[1])?.max(0.0).sqrt();
        Ok(Self { up, down, grams, norm })
    }

    /// ‖ΔW‖.
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// (r, r'): UᵀU' and DD'ᵀ.
    pub fn cross(&self, other: &Self) -> Result<[Tensor; 2]> {
        Ok([self.up.t()?.matmul(&other.up)?, self.down.matmul(&other.down.t()?)?])
    }

    /// ⟨ΔW, ΔW'⟩.
    pub fn inner(&self, other: &Self) -> Result<f64> {
        let [outer, inside] = self.cross(other)?;
        inner(&outer, &inside)
    }

    /// ⟨ΔW, M⟩ with a whole matrix (o, i·k).
    pub fn inner_with(&self, whole: &Tensor) -> Result<f64> {
        inner(&self.up.t()?.matmul(whole)?, &self.down)
    }
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
