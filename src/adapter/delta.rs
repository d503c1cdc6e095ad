//! What an adapter changes on one layer, and the weight that makes.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// The change on one layer, as stored. W' = W + m · ΔW at the user's strength m.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Delta {
    /// LoRA, LoCon, DyLoRA: two factors, or three with a Tucker core.
    LowRank(LowRank),
}

impl Delta {
    /// What users call the algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::LowRank(LowRank { mid: Some(_), .. }) => "LoCon (Tucker)",
            Self::LowRank(_) => "LoRA",
        }
    }

    /// ΔW in f32 at strength 1, in the base weight's shape, on the CPU.
    ///
    /// # Errors
    /// If the factors do not fit `shape`.
    pub fn weight(&self, shape: &[usize]) -> Result<Tensor> {
        match self {
            Self::LowRank(low_rank) => low_rank.weight(shape),
        }
    }

    /// The delta as a branch beside the layer, if it is one whatever the base weight is.
    ///
    /// # Errors
    /// If the factors do not fit `shape`.
    pub fn branch(&self, shape: &[usize]) -> Result<Option<Branch>> {
        match self {
            Self::LowRank(low_rank) => low_rank.branch(shape).map(Some),
        }
    }

    /// Checks the tensors against each other and against the base weight's shape, and that every number is finite.
    ///
    /// # Errors
    /// With what was expected and found, naming neither key nor file.
    pub fn check(&self, shape: &[usize]) -> Result<()> {
        match self {
            Self::LowRank(low_rank) => low_rank.check(shape),
        }
    }
}

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

/// alpha / r beyond these is a damaged file, not a choice.
const MAX_SCALE: f64 = 1e4;

impl LowRank {
    /// r, which may differ from layer to layer.
    pub fn rank(&self) -> usize {
        self.down.dims().first().copied().unwrap_or(0)
    }

    /// alpha / r, or 1 without alpha.
    pub fn scale(&self) -> f64 {
        self.alpha.map_or(1.0, |alpha| alpha / self.rank() as f64)
    }

    fn weight(&self, shape: &[usize]) -> Result<Tensor> {
        let Branch { down, up, scale } = self.branch(shape)?;
        let delta = up.matmul(&down.flatten_from(1)?)?; // o, i·k
        Ok((delta * scale)?.reshape(shape)?)
    }

    fn branch(&self, shape: &[usize]) -> Result<Branch> {
        let (r, down_shape) = (self.rank(), branch_shape(self.rank(), shape));
        let up = f32_of(&self.up)?.reshape((shape[0], r))?;
        let down = match &self.mid {
            None => f32_of(&self.down)?,
            Some(mid) => core_times_down(&f32_of(mid)?, &f32_of(&self.down)?)?,
        };
        Ok(Branch { down: down.reshape(down_shape)?, up, scale: self.scale() })
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        let r = self.rank();
        for tensor in [Some(&self.down), Some(&self.up), self.mid.as_ref()].into_iter().flatten() {
            let rank = tensor.dims().len();
            if !(2..=4).contains(&rank) || tensor.elem_count() == 0 {
                return Err(Error::invalid(format!(
                    "a factor has shape {:?}, expected two to four dimensions, none of them 0",
                    tensor.dims()
                )));
            }
            if !tensor.dtype().is_float() {
                return Err(Error::invalid(format!(
                    "a factor is stored as {:?}, expected floats",
                    tensor.dtype()
                )));
            }
        }
        let up_rank = self.up.dims()[1];
        if up_rank != r {
            return Err(Error::invalid(format!(
                "the rank is {r} in the down factor and {up_rank} in the up factor"
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
        self.check_numbers()
    }

    fn check_base(&self, shape: &[usize]) -> Result<()> {
        let r = self.rank();
        let kernel = match &self.mid {
            None => 1,
            Some(mid) => mid.dims()[2..].iter().product::<usize>(),
        };
        let (up, down) = (self.up.elem_count(), self.down.elem_count() * kernel);
        let fits = up == shape[0] * r && down == shape[1..].iter().product::<usize>() * r;
        let same_kernel = self.down.dims().len() < 4
            || self.mid.is_some()
            || kernel_of(self.down.dims()) == kernel_of(shape);
        if fits && same_kernel {
            return Ok(());
        }
        let mid = self.mid.as_ref().map(|m| format!(", mid {:?}", m.dims())).unwrap_or_default();
        Err(Error::invalid(format!(
            "the factors (up {:?}{mid}, down {:?}) do not fit the model's weight {shape:?}",
            self.up.dims(),
            self.down.dims()
        )))
    }

    fn check_numbers(&self) -> Result<()> {
        for (name, tensor) in [("down", Some(&self.down)), ("up", Some(&self.up)), ("mid", self.mid.as_ref())]
        {
            if let Some(tensor) = tensor
                && !all_finite(tensor)?
            {
                return Err(Error::invalid(format!("the {name} factor holds NaN or infinity"))
                    .with_hint("the training run that wrote this file diverged; use an earlier save of it"));
            }
        }
        if let Some(alpha) = self.alpha
            && !(alpha.is_finite() && alpha >= 0.0 && self.scale() <= MAX_SCALE)
        {
            return Err(Error::invalid(format!("alpha is {alpha} at rank {}", self.rank())));
        }
        Ok(())
    }
}

/// The shape a branch's `down` has beside a base weight of `shape`.
pub(crate) fn branch_shape(rank: usize, shape: &[usize]) -> Vec<usize> {
    std::iter::once(rank).chain(shape[1..].iter().copied()).collect()
}

/// down'[a, i, ·] = Σ_b mid[a, b, ·] down[b, i]: a Tucker delta is a plain one with this down factor.
fn core_times_down(mid: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (r, _, kh, kw) = mid.dims4()?;
    let down = down.flatten_from(1)?; // b i
    let mid = mid.permute((0, 2, 3, 1))?.reshape((r * kh * kw, r))?; // a·k b
    let product = mid.contiguous()?.matmul(&down)?; // a·k i
    Ok(product.reshape((r, kh, kw, ()))?.permute((0, 3, 1, 2))?.contiguous()?)
}

fn kernel_of(dims: &[usize]) -> &[usize] {
    match dims {
        [_, _, 1, 1] => &[],
        [_, _, kernel @ ..] => kernel,
        _ => &[],
    }
}

/// f32 on the CPU, whatever it was.
pub(crate) fn f32_of(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F32)?)
}

/// True without NaN and infinity.
pub(crate) fn all_finite(tensor: &Tensor) -> Result<bool> {
    Ok(f32_of(tensor)?.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()))
}
