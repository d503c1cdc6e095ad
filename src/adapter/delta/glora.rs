//! `GLoRA`: a low-rank delta plus a low-rank change of the layer's input.

use candle_core::{Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::error::{Error, Result};

/// W' = W + m · alpha / r · (b₁ b₂ + W a₁ a₂) (<https://arxiv.org/abs/2306.07967>), W a₁ contracting over inputs.
///
/// The tensors are in the present layout; the older one has a₁ and a₂, and b₁ and b₂, exchanged.
#[derive(Debug, Clone)]
pub struct Glora {
    /// (in, r), also as (in, r, 1, 1).
    pub a1: Tensor,
    /// (r, in), also as (r, in, 1, 1).
    pub a2: Tensor,
    /// (out, r), also as (out, r, 1, 1).
    pub b1: Tensor,
    /// (r, in · kh · kw), also as (r, in, kh, kw); (r, in) beside a core.
    pub b2: Tensor,
    /// A Tucker core for b: (r, r, kh, kw).
    pub core: Option<Tensor>,
    /// `None` means alpha = r.
    pub alpha: Option<f64>,
}

impl Glora {
    /// The tensors of either layout as a delta of the present one. Both fit only where r, inputs and outputs are one
    /// number, and then the present one is meant.
    ///
    /// # Errors
    /// If they fit neither.
    pub fn of_either_layout(self, shape: &[usize]) -> Result<Self> {
        if self.check(shape).is_ok() {
            return Ok(self);
        }
        let Self { a1, a2, b1, b2, core, alpha } = self.clone();
        let turned = Self { a1: a2, a2: a1, b1: b2, b2: b1, core, alpha };
        if turned.check(shape).is_ok() {
            return Ok(turned);
        }
        let dims = |t: &Tensor| (math::first_dim(t), *t.dims().get(1).unwrap_or(&0));
        let [a1, a2, b1, b2] = [&self.a1, &self.a2, &self.b1, &self.b2].map(dims);
        // One that would fit another weight is refused with that weight's shape.
        if b2.0 == b1.1 && b1.1 == a1.1 && a1.1 == a2.0 {
            return Ok(self);
        }
        Err(Error::invalid(format!(
            "the GLoRA factors (a1 {:?}, a2 {:?}, b1 {:?}, b2 {:?}) share no rank in either layout",
            self.a1.dims(),
            self.a2.dims(),
            self.b1.dims(),
            self.b2.dims()
        )))
    }

    fn rank_of(&self) -> usize {
        math::first_dim(&self.a2)
    }

    fn b(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let b1 = math::f32_on(&self.b1, device)?.flatten_from(1)?;
        let b2 = math::f32_on(&self.b2, device)?;
        let product = match &self.core {
            None => b1.matmul(&b2.flatten_from(1)?)?,
            Some(core) => math::tucker(&math::f32_on(core, device)?, &b1, &b2)?,
        };
        Ok(product.reshape(shape)?)
    }
}

impl Algorithm for Glora {
    fn name(&self) -> &'static str {
        "GLoRA"
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let (shape, device) = (base.dims(), base.device());
        let a1 = math::f32_on(&self.a1, device)?.flatten_from(1)?; // i r
        let a2 = math::f32_on(&self.a2, device)?.flatten_from(1)?; // r i
        let kernel: usize = shape.iter().skip(2).product();
        let rows = base.reshape((shape[0], shape[1], kernel))?.transpose(1, 2)?; // o k i
        let rows = rows.contiguous()?.reshape((shape[0] * kernel, shape[1]))?;
        let change = rows.matmul(&a1)?.matmul(&a2)?.reshape((shape[0], kernel, shape[1]))?;
        let change = change.transpose(1, 2)?.contiguous()?.reshape(shape)?;
        let delta =
            ((change + self.b(shape, device)?)? * (math::scale(self.alpha, self.rank_of()) * strength))?;
        Ok((base + delta)?)
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank_of())
    }

    fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let alpha = self.alpha.unwrap_or(self.rank_of() as f64);
        let mut all = vec![
            math::stored_alpha(alpha, &self.a2)?,
            (".a1.weight", self.a1.clone()),
            (".a2.weight", self.a2.clone()),
            (".b1.weight", self.b1.clone()),
            (".b2.weight", self.b2.clone()),
        ];
        all.extend(self.core.iter().map(|core| (".bm.weight", core.clone())));
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::Glora(Self {
            a1: f(&self.a1)?,
            a2: f(&self.a2)?,
            b1: f(&self.b1)?,
            b2: f(&self.b2)?,
            core: self.core.as_ref().map(f).transpose()?,
            alpha: self.alpha,
        }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        let (r, values) = (self.rank_of(), |t: &Tensor| t.dims().iter().skip(1).product::<usize>());
        let (inputs, kernel): (usize, usize) = (*shape.get(1).unwrap_or(&0), shape.iter().skip(2).product());
        let core_fits = self.core.as_ref().is_none_or(|core| {
            core.dims().len() == 4
                && core.dims()[0] == values(&self.b1)
                && core.dims()[1] == math::first_dim(&self.b2)
                && core.dims()[2..] == *shape.get(2..).unwrap_or_default()
        });
        let reads = if self.core.is_some() { inputs } else { inputs * kernel };
        let fits = (math::first_dim(&self.a1), values(&self.a1)) == (inputs, r)
            && values(&self.a2) == inputs
            && math::first_dim(&self.b1) == shape[0]
            && (self.core.is_some() || values(&self.b1) == math::first_dim(&self.b2))
            && values(&self.b2) == reads
            && core_fits;
        if fits {
            return math::check_alpha(self.alpha, r);
        }
        let core = self.core.as_ref().map(|c| format!(", bm {:?}", c.dims())).unwrap_or_default();
        Err(super::misfit(format!(
            "the GLoRA factors (a1 {:?}, a2 {:?}, b1 {:?}, b2 {:?}{core}) do not fit the model's weight {shape:?}",
            self.a1.dims(),
            self.a2.dims(),
            self.b1.dims(),
            self.b2.dims()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{
        CONV, Known, LINEAR, assert_close, assert_unchanged_at_zero, weight_of,
    };

    #[test]
    fn glora_in_both_layouts() -> Result<()> {
        for shape in [LINEAR, CONV] {
            let (o, i, kernel, r) = (shape[0], shape[1], shape[2..].iter().product::<usize>(), 2);
            let w = Known::random(1, &[o, i, kernel])?;
            let (a1, a2) = (Known::random(2, &[i, r])?, Known::random(3, &[r, i])?);
            let (b1, b2) = (Known::random(4, &[o, r])?, Known::random(5, &[r, i, kernel])?);
            let expected = |m: f64| {
                weight_of(shape, |o, j, k| {
                    let mut sum = 0.0;
                    for p in 0..r {
                        sum += b1.at(&[o, p]) * b2.at(&[p, j, k]);
                        sum +=
                            (0..i).map(|x| w.at(&[o, x, k]) * a1.at(&[x, p])).sum::<f64>() * a2.at(&[p, j]);
                    }
                    w.at(&[o, j, k]) + m * 1.5 * sum
                })
            };
            let base = w.reshaped(shape)?;
            let b2_stored = b2.reshaped(&[&[r, i], &shape[2..]].concat())?;
            let new = Glora {
                a1: a1.tensor.clone(),
                a2: a2.tensor.clone(),
                b1: b1.tensor.clone(),
                b2: b2_stored,
                core: None,
                alpha: Some(3.0),
            };
            let old = Glora {
                a1: new.a2.clone(),
                a2: new.a1.clone(),
                b1: new.b2.clone(),
                b2: new.b1.clone(),
                ..new.clone()
            };
            for glora in [new, old] {
                let delta = Delta::Glora(glora.of_either_layout(shape)?);
                delta.check(shape)?;
                assert!(delta.weight(shape).is_err_and(|e| e.hint().is_some()));
                for m in [1.0, -0.6] {
                    assert_close("GLoRA", &delta.apply(&base, m)?, &expected(m));
                }
                assert_unchanged_at_zero(&delta, &base)?;
            }
        }
        Ok(())
    }
}
