//! `LoHa`: the product, value by value, of two low-rank matrices.

use candle_core::{Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::error::Result;

/// ΔW = alpha / r · M₁ ⊙ M₂ (FedPara, <https://arxiv.org/abs/2108.06098>; LyCORIS, <https://arxiv.org/abs/2309.14859>).
#[derive(Debug, Clone)]
pub struct LoHa {
    /// M₁.
    pub first: HadamardFactor,
    /// M₂.
    pub second: HadamardFactor,
    /// `None` means alpha = r.
    pub alpha: Option<f64>,
}

/// One of the two matrices: a · b, or with a core M[o, i, ·] = Σ core[p, q, ·] a[p, o] b[q, i].
#[derive(Debug, Clone)]
pub struct HadamardFactor {
    /// (out, r), also as (out, r, 1, 1); (r, out) beside a core.
    pub a: Tensor,
    /// (r, in · kh · kw), also as (r, in, kh, kw); (r, in) beside a core.
    pub b: Tensor,
    /// (r, r, kh, kw).
    pub core: Option<Tensor>,
}

/// The parameters of the two matrices: a, b, core.
const NAMES: [[&str; 3]; 2] =
    [[".hada_w1_a", ".hada_w1_b", ".hada_t1"], [".hada_w2_a", ".hada_w2_b", ".hada_t2"]];

impl LoHa {
    /// r, as the scale has it.
    pub fn rank(&self) -> usize {
        math::first_dim(&self.first.b)
    }
}

impl Algorithm for LoHa {
    fn name(&self) -> &'static str {
        if self.first.core.is_some() { "LoHa (Tucker)" } else { "LoHa" }
    }

    fn weight(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let product = (self.first.matrix(shape, device)? * self.second.matrix(shape, device)?)?;
        Ok((product * math::scale(self.alpha, self.rank()))?)
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank())
    }

    fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let alpha = self.alpha.unwrap_or(self.rank() as f64);
        let mut all = vec![math::stored_alpha(alpha, &self.first.b)?];
        for (factor, [a, b, core]) in [&self.first, &self.second].into_iter().zip(NAMES) {
            all.extend([(a, factor.a.clone()), (b, factor.b.clone())]);
            all.extend(factor.core.iter().map(|t| (core, t.clone())));
        }
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::LoHa(Self { first: self.first.map(f)?, second: self.second.map(f)?, alpha: self.alpha }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        self.first.check(NAMES[0], shape)?;
        self.second.check(NAMES[1], shape)?;
        math::check_alpha(self.alpha, self.rank())
    }
}

impl HadamardFactor {
    fn matrix(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let (a, b) = (math::f32_on(&self.a, device)?, math::f32_on(&self.b, device)?);
        let product = match &self.core {
            None => a.flatten_from(1)?.matmul(&b.flatten_from(1)?)?,
            Some(core) => math::tucker(&math::f32_on(core, device)?, &a.flatten_from(1)?.t()?, &b)?,
        };
        Ok(product.reshape(shape)?)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { a: f(&self.a)?, b: f(&self.b)?, core: self.core.as_ref().map(f).transpose()? })
    }

    fn check(&self, [a_name, b_name, core_name]: [&str; 3], shape: &[usize]) -> Result<()> {
        let (a, b) = (self.a.dims(), self.b.dims());
        let values = |dims: &[usize]| dims.iter().skip(1).product::<usize>();
        let core = self.core.as_ref().map(Tensor::dims);
        let fits = match core {
            None => a.len() > 1 && a[0] == shape[0] && values(a) == b[0] && values(b) == values(shape),
            Some(core) => {
                core.len() == 4
                    && (core[0], core[1]) == (a[0], b[0])
                    && (values(a), values(b)) == (shape[0], *shape.get(1).unwrap_or(&1))
                    && core[2..] == *shape.get(2..).unwrap_or_default()
            }
        };
        if fits {
            return Ok(());
        }
        let core = core.map(|c| format!(", `{core_name}` {c:?}")).unwrap_or_default();
        Err(super::misfit(format!(
            "the factors (`{a_name}` {a:?}, `{b_name}` {b:?}{core}) do not fit the model's weight {shape:?}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{CONV, Known, LINEAR, assert_additive, weight_of};

    #[test]
    fn loha_plain_and_with_cores() -> Result<()> {
        for (shape, four) in [(LINEAR, false), (CONV, false), (CONV, true)] {
            let (o, i, kernel, r) = (shape[0], shape[1], shape[2..].iter().product::<usize>(), 3);
            let a = [Known::random(1, &[o, r])?, Known::random(2, &[o, r])?];
            let b = [Known::random(3, &[r, i, kernel])?, Known::random(4, &[r, i, kernel])?];
            let expected = weight_of(shape, |o, i, k| {
                let part = |n: usize| (0..r).map(|p| a[n].at(&[o, p]) * b[n].at(&[p, i, k])).sum::<f64>();
                2.0 / 3.0 * part(0) * part(1)
            });
            let factor = |n: usize| -> Result<HadamardFactor> {
                let (a_dims, b_dims) = if four {
                    (vec![o, r, 1, 1], vec![r, i, shape[2], shape[3]])
                } else {
                    (vec![o, r], vec![r, i * kernel])
                };
                Ok(HadamardFactor { a: a[n].reshaped(&a_dims)?, b: b[n].reshaped(&b_dims)?, core: None })
            };
            let delta = Delta::LoHa(LoHa { first: factor(0)?, second: factor(1)?, alpha: Some(2.0) });
            assert_additive("LoHa", &delta, shape, &expected);
        }
        let a = [Known::random(1, &[3, 6])?, Known::random(2, &[3, 6])?];
        let b = [Known::random(3, &[3, 4])?, Known::random(4, &[3, 4])?];
        let t = [Known::random(5, &[3, 3, 3, 2])?, Known::random(6, &[3, 3, 3, 2])?];
        let expected = weight_of(CONV, |o, i, k| {
            let part = |n: usize| {
                let mut sum = 0.0;
                for p in 0..3 {
                    for q in 0..3 {
                        sum += t[n].at(&[p, q, k / 2, k % 2]) * a[n].at(&[p, o]) * b[n].at(&[q, i]);
                    }
                }
                sum
            };
            part(0) * part(1)
        });
        let factor = |n: usize| HadamardFactor {
            a: a[n].tensor.clone(),
            b: b[n].tensor.clone(),
            core: Some(t[n].tensor.clone()),
        };
        let delta = Delta::LoHa(LoHa { first: factor(0), second: factor(1), alpha: None });
        assert_additive("LoHa (Tucker)", &delta, CONV, &expected);
        Ok(())
    }
}
