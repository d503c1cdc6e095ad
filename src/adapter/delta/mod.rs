//! What an adapter changes on one layer, and the weight that makes. One algorithm a file.

mod full;
mod low_rank;
mod math;

use candle_core::{Device, Tensor};

pub use full::Full;
pub(crate) use low_rank::branch_shape;
pub use low_rank::{Branch, LowRank};
pub(crate) use math::all_finite;

use crate::error::{Error, Result};

/// The change on one layer, as stored. W' = W + m · ΔW at the user's strength m, unless the algorithm says otherwise.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Delta {
    /// LoRA, LoCon, DyLoRA: two factors, or three with a Tucker core.
    LowRank(LowRank),
    /// The difference itself, on weight, bias or both.
    Full(Full),
}

/// A parameter by its suffix in LyCORIS' and kohya's files, such as `.lora_down.weight`.
pub type Stored = (&'static str, Tensor);

impl Delta {
    /// What users call the algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::LowRank(low_rank) => low_rank.algorithm(),
            Self::Full(_) => "full",
        }
    }

    /// True if W' = W + m · ΔW with a ΔW that does not depend on W.
    pub fn is_additive(&self) -> bool {
        match self {
            Self::LowRank(_) | Self::Full(_) => true,
        }
    }

    /// ΔW in f32 at strength 1, in the base weight's shape, on the CPU.
    ///
    /// # Errors
    /// If the delta depends on the base weight, or its tensors do not fit `shape`.
    pub fn weight(&self, shape: &[usize]) -> Result<Tensor> {
        self.weight_on(shape, &Device::Cpu)
    }

    fn weight_on(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        match self {
            Self::LowRank(low_rank) => low_rank.weight(shape, device),
            Self::Full(full) => full.weight(shape, device),
        }
    }

    /// W' in f32 at the user's strength, on the base weight's device. At strength 0 it is the base.
    ///
    /// # Errors
    /// If the tensors do not fit the base weight.
    pub fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let base = math::f32_on(base, base.device())?;
        if strength == 0.0 || !self.changes_weight() {
            return Ok(base);
        }
        match self {
            Self::LowRank(low_rank) => low_rank.apply(&base, strength),
            Self::Full(_) => {
                let delta = self.weight_on(base.dims(), base.device())?;
                Ok((base + (delta * strength)?)?)
            }
        }
    }

    /// Δb in f32 at strength 1, on the CPU, of a delta that adds to the bias.
    ///
    /// # Errors
    /// If the tensor cannot be read.
    pub fn bias(&self) -> Result<Option<Tensor>> {
        match self {
            Self::LowRank(_) => Ok(None),
            Self::Full(full) => full.bias.as_ref().map(math::f32_of).transpose(),
        }
    }

    /// b' in f32 at the user's strength, on the base bias' device; `None` where nothing changes. A layer without a bias
    /// gets one, on the CPU.
    ///
    /// # Errors
    /// If the delta's length is not the base bias'.
    pub fn apply_bias(&self, base: Option<&Tensor>, strength: f64) -> Result<Option<Tensor>> {
        let Some(delta) = self.bias()?.filter(|_| strength != 0.0) else { return Ok(None) };
        let delta = (delta * strength)?;
        let Some(base) = base else { return Ok(Some(delta)) };
        Ok(Some((math::f32_on(base, base.device())? + delta.to_device(base.device())?)?))
    }

    /// False for deltas of the bias alone.
    pub fn changes_weight(&self) -> bool {
        match self {
            Self::LowRank(_) => true,
            Self::Full(full) => full.weight.is_some(),
        }
    }

    /// The weight's change as a branch beside the layer, if it is one of low rank whatever the base weight is.
    ///
    /// # Errors
    /// If the factors do not fit `shape`.
    pub fn branch(&self, shape: &[usize]) -> Result<Option<Branch>> {
        match self {
            Self::LowRank(low_rank) => low_rank.branch(shape, &Device::Cpu).map(Some),
            Self::Full(_) => Ok(None),
        }
    }

    /// r, of algorithms that have one. It may differ from layer to layer.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank(low_rank) => Some(low_rank.rank()),
            Self::Full(_) => None,
        }
    }

    /// alpha as stored; `None` where it is missing, which means r, or where the algorithm has none.
    pub fn alpha(&self) -> Option<f64> {
        match self {
            Self::LowRank(low_rank) => low_rank.alpha,
            Self::Full(_) => None,
        }
    }

    /// The parameters as LyCORIS and kohya name them, alpha (always written) first.
    ///
    /// # Errors
    /// If a scalar cannot be made.
    pub fn tensors(&self) -> Result<Vec<Stored>> {
        match self {
            Self::LowRank(low_rank) => low_rank.tensors(),
            Self::Full(full) => Ok(full.tensors()),
        }
    }

    /// The same delta with each of its tensors changed by `f`: to another dtype, another device.
    ///
    /// # Errors
    /// Whatever `f` returns.
    pub fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::LowRank(low_rank) => Self::LowRank(low_rank.map(f)?),
            Self::Full(full) => Self::Full(full.map(f)?),
        })
    }

    /// Checks the tensors against each other and against the base weight's shape, and that every number is finite.
    ///
    /// # Errors
    /// With what was expected and found, naming neither key nor file.
    pub fn check(&self, shape: &[usize]) -> Result<()> {
        for (suffix, tensor) in self.tensors()? {
            math::check_tensor(suffix, &tensor)?;
        }
        match self {
            Self::LowRank(low_rank) => low_rank.check(shape),
            Self::Full(full) => full.check(shape),
        }
    }
}

/// The refusal of algorithms that need W to say what they add to it.
#[allow(dead_code, reason = "its users follow")]
fn depends_on_base(algorithm: &str) -> Error {
    Error::invalid(format!("{algorithm} multiplies the base weight, so it has no delta of its own"))
        .with_hint("fuse it into a model instead")
}
