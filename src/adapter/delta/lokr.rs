//! `LoKr`: the Kronecker product of a small and a larger matrix.

use candle_core::{DType, Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::error::{Error, Result};

/// ΔW[o₁·O₂ + o₂, i₁·I₂ + i₂, ·] = s · W₁[o₁, i₁] · W₂[o₂, i₂, ·] (LyCORIS, <https://arxiv.org/abs/2309.14859>).
///
/// s = alpha / r, r being the rank W₂ is factored at, else the one W₁ is. With both stored whole there is no r: s is 1
/// and alpha is ignored, as LyCORIS, `OneTrainer`, Comfy and A1111 agree; `whole_scale` is for files that mean another.
#[derive(Debug, Clone)]
pub struct LoKr {
    /// W₁: (O₁, I₁).
    pub first: KroneckerFactor,
    /// W₂: (O₂, I₂) or (O₂, I₂, kh, kw).
    pub second: KroneckerFactor,
    /// `None` means alpha = r.
    pub alpha: Option<f64>,
    /// s where both factors are stored whole; `None` means 1.
    pub whole_scale: Option<f64>,
}

/// A factor, whole or itself factored.
#[derive(Debug, Clone)]
pub enum KroneckerFactor {
    /// As it is.
    Whole(Tensor),
    /// a · b: (rows, r) and (r, columns).
    Product {
        /// (rows, r).
        a: Tensor,
        /// (r, columns), also as (r, in, kh, kw).
        b: Tensor,
    },
    /// Σ core[p, q, ·] a[p, o] b[q, i].
    Tucker {
        /// (r, out).
        a: Tensor,
        /// (r, in).
        b: Tensor,
        /// (r, r, kh, kw).
        core: Tensor,
    },
}

use KroneckerFactor::{Product, Tucker, Whole};

impl LoKr {
    /// r as the scale has it; `None` with both factors whole.
    pub fn rank(&self) -> Option<usize> {
        self.second.rank().or_else(|| self.first.rank())
    }

    /// s.
    pub fn scale(&self) -> f64 {
        self.rank().map_or(self.whole_scale.unwrap_or(1.0), |rank| math::scale(self.alpha, rank))
    }
}

impl Algorithm for LoKr {
    fn name(&self) -> &'static str {
        match (&self.first, &self.second) {
            (_, Tucker { .. }) => "LoKr (Tucker)",
            (Whole(_), Whole(_)) => "LoKr (full)",
            _ => "LoKr",
        }
    }

    fn weight(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let kernel: usize = shape.iter().skip(2).product();
        let first = self.first.matrix(device)?; // o1 i1
        let (o1, i1) = first.dims2()?;
        let (o2, i2) = (shape[0] / o1, shape[1] / i1);
        let second = self.second.matrix(device)?.reshape((1, o2, 1, i2 * kernel))?;
        let first = (first * self.scale())?.reshape((o1, 1, i1, 1))?;
        Ok(first.broadcast_mul(&second)?.reshape(shape)?) // o1 o2 i1 i2·k
    }

    fn rank(&self) -> Option<usize> {
        self.rank()
    }

    fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let alpha = self.alpha.or_else(|| self.rank().map(|r| r as f64)).unwrap_or(1.0);
        let mut all = vec![math::stored_alpha(alpha, self.second.like())?];
        // Readers take two whole factors for unscaled, so another scale goes into the first.
        let scale = self.whole_scale.filter(|_| self.rank().is_none()).unwrap_or(1.0);
        let first = match &self.first {
            Whole(w) if scale != 1.0 => Whole((w.to_dtype(DType::F32)? * scale)?),
            other => other.clone(),
        };
        for (factor, [whole, a_name, b_name, core_name]) in [&first, &self.second].into_iter().zip(NAMES) {
            match factor {
                Whole(w) => all.push((whole, w.clone())),
                Product { a, b } => all.extend([(a_name, a.clone()), (b_name, b.clone())]),
                Tucker { a, b, core } => {
                    all.extend([(a_name, a.clone()), (b_name, b.clone()), (core_name, core.clone())]);
                }
            }
        }
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        let (first, second) = (self.first.map(f)?, self.second.map(f)?);
        Ok(Delta::LoKr(Self { first, second, alpha: self.alpha, whole_scale: self.whole_scale }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        if !matches!(shape.len(), 2 | 4) {
            return Err(super::misfit(format!("LoKr does not fit the model's weight {shape:?}")));
        }
        self.first.check(NAMES[0])?;
        self.second.check(NAMES[1])?;
        let kernel: usize = shape.iter().skip(2).product();
        let ((o1, n1), (o2, n2)) = (self.first.size(), self.second.size());
        // n2 is I₂ · kh · kw.
        let kernel_fits = self.second.kernel().is_none_or(|k| *k == *shape.get(2..).unwrap_or_default());
        if o1 * o2 != shape[0] || n1 * n2 != shape[1] * kernel || n2 % kernel != 0 || !kernel_fits {
            return Err(super::misfit(format!(
                "the factors ({o1} × {n1} and {o2} × {n2}) make {} × {}, the model's weight is {shape:?}",
                o1 * o2,
                n1 * n2
            )));
        }
        match self.rank() {
            Some(rank) => math::check_alpha(self.alpha, rank),
            // alpha is ignored, and "full rank" presets store absurd ones.
            None => math::check_scale(self.scale()),
        }
    }
}

/// The parameters of the two factors: whole, a, b, core.
const NAMES: [[&str; 4]; 2] = [
    [".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_t1"],
    [".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"],
];

impl KroneckerFactor {
    fn rank(&self) -> Option<usize> {
        match self {
            Whole(_) => None,
            Product { b, .. } | Tucker { b, .. } => Some(math::first_dim(b)),
        }
    }

    fn like(&self) -> &Tensor {
        match self {
            Whole(t) | Product { a: t, .. } | Tucker { a: t, .. } => t,
        }
    }

    /// Rows, and values a row.
    fn size(&self) -> (usize, usize) {
        let values = |t: &Tensor| t.dims().iter().skip(1).product::<usize>();
        match self {
            Whole(w) => (math::first_dim(w), values(w)),
            Product { a, b } => (math::first_dim(a), values(b)),
            Tucker { a, b, core } => (values(a), values(b) * core.dims().iter().skip(2).product::<usize>()),
        }
    }

    /// The kernel, where the stored shape tells.
    fn kernel(&self) -> Option<&[usize]> {
        match self {
            Whole(t) | Product { b: t, .. } | Tucker { core: t, .. } => match t.dims() {
                [_, _, 1, 1] => None,
                [_, _, kernel @ ..] if kernel.len() == 2 => Some(kernel),
                _ => None,
            },
        }
    }

    /// (rows, values a row).
    fn matrix(&self, device: &Device) -> Result<Tensor> {
        let on = |t: &Tensor| math::f32_on(t, device);
        let whole = match self {
            Whole(w) => on(w)?,
            Product { a, b } => on(a)?.flatten_from(1)?.matmul(&on(b)?.flatten_from(1)?)?,
            Tucker { a, b, core } => math::tucker(&on(core)?, &on(a)?.flatten_from(1)?.t()?, &on(b)?)?,
        };
        Ok(whole.flatten_from(1)?)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Whole(w) => Whole(f(w)?),
            Product { a, b } => Product { a: f(a)?, b: f(b)? },
            Tucker { a, b, core } => Tucker { a: f(a)?, b: f(b)?, core: f(core)? },
        })
    }

    fn check(&self, [whole, a_name, b_name, core_name]: [&str; 4]) -> Result<()> {
        let matrix = |name: &str, t: &Tensor| match t.dims().len() {
            2..=4 => Ok(()),
            _ => Err(Error::invalid(format!("`{name}` has shape {:?}, expected a matrix", t.dims()))),
        };
        match self {
            Whole(w) => matrix(whole, w),
            Product { a, b } => {
                matrix(a_name, a)?;
                matrix(b_name, b)?;
                let inner: usize = a.dims()[1..].iter().product();
                math::same_rank((a_name, inner), (b_name, b.dims()[0]))
            }
            Tucker { a, b, core } => {
                matrix(a_name, a)?;
                matrix(b_name, b)?;
                if core.dims().len() != 4 {
                    return Err(Error::invalid(format!(
                        "`{core_name}` has shape {:?}, expected [r, r, kh, kw]",
                        core.dims()
                    )));
                }
                math::same_rank((a_name, a.dims()[0]), (core_name, core.dims()[0]))?;
                math::same_rank((b_name, b.dims()[0]), (core_name, core.dims()[1]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{CONV, Known, assert_additive, weight_of};

    #[test]
    fn lokr_in_every_form_and_its_scale() -> Result<()> {
        use KroneckerFactor::{Product, Tucker, Whole};
        // (2 × 2) ⊗ (3 × 2) = 6 × 4
        let (a, b) = (Known::random(1, &[2, 2])?, Known::random(2, &[2, 2])?);
        let w1_product = |o: usize, i: usize| (0..2).map(|p| a.at(&[o, p]) * b.at(&[p, i])).sum::<f64>();
        let whole1 = Known::random(3, &[2, 2])?;
        let (c, d) = (Known::random(4, &[3, 1])?, Known::random(5, &[1, 2, 6])?);
        let whole2 = Known::random(6, &[3, 2, 3, 2])?;
        let (ta, tb, tc) =
            (Known::random(7, &[1, 3])?, Known::random(8, &[1, 2])?, Known::random(9, &[1, 1, 3, 2])?);
        let kron = |w1: &dyn Fn(usize, usize) -> f64, w2: &dyn Fn(usize, usize, usize) -> f64, s: f64| {
            weight_of(CONV, |o, i, k| s * w1(o / 3, i / 2) * w2(o % 3, i % 2, k))
        };
        let product = |x: &Known, y: &Known| Product { a: x.tensor.clone(), b: y.tensor.clone() };
        let d_flat = Known::of(&d.reshaped(&[1, 12])?)?;
        let w2_product = |o: usize, i: usize, k: usize| c.at(&[o, 0]) * d.at(&[0, i, k]);
        let w2_whole = |o: usize, i: usize, k: usize| whole2.at(&[o, i, k / 2, k % 2]);
        let w2_tucker =
            |o: usize, i: usize, k: usize| tc.at(&[0, 0, k / 2, k % 2]) * ta.at(&[0, o]) * tb.at(&[0, i]);
        let tucker = || Tucker { a: ta.tensor.clone(), b: tb.tensor.clone(), core: tc.tensor.clone() };
        let w1_whole = |o: usize, i: usize| whole1.at(&[o, i]);
        let make = |first: KroneckerFactor, second: KroneckerFactor| LoKr {
            first,
            second,
            alpha: Some(0.5),
            whole_scale: None,
        };
        for (what, lokr, expected) in [
            (
                "both whole: 1",
                make(Whole(whole1.tensor.clone()), Whole(whole2.tensor.clone())),
                kron(&w1_whole, &w2_whole, 1.0),
            ),
            (
                "second factored: alpha / its rank",
                make(Whole(whole1.tensor.clone()), product(&c, &d_flat)),
                kron(&w1_whole, &w2_product, 0.5),
            ),
            (
                "both factored: the second's rank",
                make(product(&a, &b), product(&c, &d_flat)),
                kron(&w1_product, &w2_product, 0.5),
            ),
            (
                "first factored: alpha / its rank",
                make(product(&a, &b), Whole(whole2.tensor.clone())),
                kron(&w1_product, &w2_whole, 0.25),
            ),
            ("Tucker", make(Whole(whole1.tensor.clone()), tucker()), kron(&w1_whole, &w2_tucker, 0.5)),
        ] {
            assert_additive(what, &Delta::LoKr(lokr), CONV, &expected);
        }
        let other = LoKr {
            whole_scale: Some(0.125),
            ..make(Whole(whole1.tensor.clone()), Whole(whole2.tensor.clone()))
        };
        assert_additive("override", &Delta::LoKr(other), CONV, &kron(&w1_whole, &w2_whole, 0.125));
        Ok(())
    }
}
