//! LoRA and its relatives: a delta of two small factors, or three.

use candle_core::{Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::{
    error::{Error, Result},
    ops::cpu::{Mat, MatMut, Threads, Values, gemm},
};

/// ΔW = scale · up · down, both f32 on the CPU.
#[derive(Debug, Clone)]
pub struct Branch {
    /// (r, in) or (r, in, kh, kw).
    pub down: Tensor,
    /// (out, r).
    pub up: Tensor,
    /// alpha / r.
    pub scale: f64,
}

/// ΔW = alpha / r · up · down (LoRA, <https://arxiv.org/abs/2106.09685>); with a core, up · mid · down
/// (LyCORIS, <https://arxiv.org/abs/2309.14859>).
#[derive(Debug, Clone)]
pub struct LowRank {
    /// (r, in), (r, in, kh, kw), or (r, in, 1, 1) beside a core.
    pub down: Tensor,
    /// (out, r) or (out, r, 1, 1).
    pub up: Tensor,
    /// (r, r, kh, kw).
    pub mid: Option<Tensor>,
    /// `None` means alpha = r, as every trainer agrees.
    pub alpha: Option<f64>,
}

impl LowRank {
    /// r, which may differ from layer to layer.
    pub fn rank(&self) -> usize {
        self.down.dims().first().copied().unwrap_or(0)
    }

    /// alpha / r, or 1 without alpha.
    pub fn scale(&self) -> f64 {
        math::scale(self.alpha, self.rank())
    }

    fn beside(&self, shape: &[usize], device: &Device) -> Result<Branch> {
        let (r, down_shape) = (self.rank(), branch_shape(self.rank(), shape));
        let up = math::f32_on(&self.up, device)?.reshape((shape[0], r))?;
        let down = math::f32_on(&self.down, device)?;
        let down = match &self.mid {
            None => down,
            Some(mid) => math::core_times(&math::f32_on(mid, device)?, &down)?,
        };
        Ok(Branch { down: down.reshape(down_shape)?, up, scale: self.scale() })
    }

    fn check_base(&self, shape: &[usize]) -> Result<()> {
        let r = self.rank();
        let kernel = match &self.mid {
            None => 1,
            Some(mid) => mid.dims()[2..].iter().product::<usize>(),
        };
        let (up, down) = (self.up.elem_count(), self.down.elem_count() * kernel);
        let fits = up == shape[0] * r && down == shape[1..].iter().product::<usize>() * r;
        let same_kernel = match &self.mid {
            Some(mid) => kernel_of(mid.dims()) == kernel_of(shape),
            None => self.down.dims().len() < 4 || kernel_of(self.down.dims()) == kernel_of(shape),
        };
        if fits && same_kernel {
            return Ok(());
        }
        let mid = self.mid.as_ref().map(|m| format!(", mid {:?}", m.dims())).unwrap_or_default();
        Err(super::misfit(format!(
            "the factors (up {:?}{mid}, down {:?}) do not fit the model's weight {shape:?}",
            self.up.dims(),
            self.down.dims()
        )))
    }
}

impl Algorithm for LowRank {
    fn name(&self) -> &'static str {
        if self.mid.is_some() { "LoCon (Tucker)" } else { "LoRA" }
    }

    fn weight(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let Branch { down, up, scale } = self.beside(shape, device)?;
        let delta = up.matmul(&down.flatten_from(1)?)?; // o, i·k
        Ok((delta * scale)?.reshape(shape)?)
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let mut branch = self.beside(base.dims(), base.device())?;
        branch.scale *= strength;
        add_branches(base, &[branch])
    }

    fn branch(&self, shape: &[usize], device: &Device) -> Result<Option<Branch>> {
        self.beside(shape, device).map(Some)
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank())
    }

    fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let alpha = math::stored_alpha(self.alpha.unwrap_or(self.rank() as f64), &self.down)?;
        let mut all =
            vec![alpha, (".lora_down.weight", self.down.clone()), (".lora_up.weight", self.up.clone())];
        all.extend(self.mid.iter().map(|mid| (".lora_mid.weight", mid.clone())));
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::LowRank(Self {
            down: f(&self.down)?,
            up: f(&self.up)?,
            mid: self.mid.as_ref().map(f).transpose()?,
            alpha: self.alpha,
        }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        let r = self.rank();
        for (name, tensor) in [("down", &self.down), ("up", &self.up)] {
            if tensor.dims().len() < 2 {
                return Err(Error::invalid(format!(
                    "the {name} factor has shape {:?}, expected two to four dimensions",
                    tensor.dims()
                )));
            }
        }
        let up_rank = self.up.dims()[1];
        if up_rank != r {
            return Err(Error::invalid(format!(
                "the rank is {r} in the down factor and {up_rank} in the up factor ({:?}, {:?})",
                self.down.dims(),
                self.up.dims()
            )));
        }
        if let Some(mid) = &self.mid {
            let mid_shape = mid.dims();
            if mid_shape.len() != 4 || mid_shape[..2] != [r, r] {
                return Err(Error::invalid(format!(
                    "the core has shape {mid_shape:?}, expected [{r}, {r}, kh, kw]"
                )));
            }
        }
        self.check_base(shape)?;
        math::check_alpha(self.alpha, r)
    }
}

/// The shape a branch's `down` has beside a base weight of `shape`.
pub(crate) fn branch_shape(rank: usize, shape: &[usize]) -> Vec<usize> {
    std::iter::once(rank).chain(shape[1..].iter().copied()).collect()
}

fn kernel_of(dims: &[usize]) -> &[usize] {
    match dims {
        [_, _, 1, 1] => &[],
        [_, _, kernel @ ..] => kernel,
        _ => &[],
    }
}

/// W + Σ scale · up · down, in one product.
///
/// # Errors
/// If a branch does not fit.
pub(crate) fn add_branches(base: &Tensor, branches: &[Branch]) -> Result<Tensor> {
    if branches.is_empty() {
        return Ok(base.clone());
    }
    let mut ups = Vec::new();
    for branch in branches {
        ups.push((&branch.up * branch.scale)?);
    }
    let downs: Vec<&Tensor> = branches.iter().map(|branch| &branch.down).collect();
    let (up, down) = (Tensor::cat(&ups, 1)?, Tensor::cat(&downs, 0)?);
    if !base.device().is_cpu() {
        return Ok((base + up.matmul(&down.flatten_from(1)?)?.reshape(base.shape())?)?);
    }
    // Convolutions are kept channels-last: the product is made in the order the values lie in.
    let spatial = base.dims().len() == 4 && !base.is_contiguous();
    let as_stored = |t: &Tensor| if spatial { t.permute((0, 2, 3, 1)) } else { Ok(t.clone()) };
    let (stored, down, up) =
        (as_stored(base)?.contiguous()?, as_stored(&down)?.contiguous()?, up.contiguous()?);
    let mut sum = Values::of(&stored)?.to_vec();
    let (o, r) = up.dims2()?;
    let columns = sum.len() / o;
    let (up, down) = (Values::of(&up)?, Values::of(&down)?);
    let out = MatMut::new(&mut sum, o, columns);
    gemm(out, true, Mat::new(&up, o, r), Mat::new(&down, r, columns), 1.0, Threads::One);
    let sum = Tensor::from_vec(sum, stored.shape(), &Device::Cpu)?;
    Ok(if spatial { sum.permute((0, 3, 1, 2))? } else { sum })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{CONV, Known, LINEAR, POINT, assert_additive, weight_of};

    #[test]
    fn low_rank_in_every_storage() -> Result<()> {
        for (shape, r) in [(LINEAR, 3), (POINT, 2), (CONV, 3), (CONV, 9)] {
            let (o, i, kernel) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
            let (down, up) = (Known::random(1, &[r, i, kernel])?, Known::random(2, &[o, r])?);
            let expected = weight_of(shape, |o, i, k| {
                1.5 / r as f64 * (0..r).map(|a| up.at(&[o, a]) * down.at(&[a, i, k])).sum::<f64>()
            });
            let mut downs = vec![down.reshaped(&[r, i * kernel])?];
            if shape.len() == 4 {
                downs.push(down.reshaped(&[r, i, shape[2], shape[3]])?);
            }
            if kernel == 1 {
                downs.push(down.reshaped(&[r, i, 1, 1])?);
            }
            for down in &downs {
                for up in [up.tensor.clone(), up.reshaped(&[o, r, 1, 1])?] {
                    let delta =
                        Delta::LowRank(LowRank { down: down.clone(), up, mid: None, alpha: Some(1.5) });
                    assert_additive("LoRA", &delta, shape, &expected);
                }
            }
        }
        let (down, mid, up) = (
            Known::random(3, &[2, 4, 1, 1])?,
            Known::random(4, &[2, 2, 3, 2])?,
            Known::random(5, &[6, 2, 1, 1])?,
        );
        let expected = weight_of(CONV, |o, i, k| {
            let mut sum = 0.0;
            for a in 0..2 {
                for b in 0..2 {
                    sum += up.at(&[o, a]) * mid.at(&[a, b, k / 2, k % 2]) * down.at(&[b, i]);
                }
            }
            sum
        });
        let delta =
            Delta::LowRank(LowRank { down: down.tensor, up: up.tensor, mid: Some(mid.tensor), alpha: None });
        assert_additive("LoCon", &delta, CONV, &expected);
        Ok(())
    }
}
