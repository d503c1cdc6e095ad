//! What an adapter changes on one layer, and the weight that makes. One algorithm a file.

mod beside;
mod boft;
#[cfg(test)]
mod by_hand;
mod dora;
mod full;
mod glora;
mod ia3;
mod loha;
mod lokr;
mod low_rank;
mod math;
mod norm;
mod oft;
mod oft_v2;
mod rotation;

use candle_core::{Device, Tensor};

pub use beside::{Beside, Sparse};
pub use boft::Boft;
pub use dora::{Dora, MagnitudeAxis};
pub use full::Full;
pub use glora::Glora;
pub use ia3::Ia3;
pub use loha::{HadamardFactor, LoHa};
pub use lokr::{KroneckerFactor, LoKr};
pub use low_rank::{Branch, LowRank};
pub(crate) use low_rank::{add_branches, branch_shape};
pub(crate) use math::{all_finite, check_tensor, f32_of, f32_of_base, frobenius, inner, numbers};
pub use norm::Norm;
pub use oft::{Oft, OftForm};
pub use oft_v2::{OftSeries, OftV2};

use crate::error::{Error, Result};

/// The change on one layer, as stored. W' = W + m · ΔW at the user's strength m, unless the algorithm says otherwise.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Delta {
    /// LoRA, LoCon, DyLoRA: two factors, or three with a Tucker core.
    LowRank(LowRank),
    /// The product, value by value, of two low-rank matrices.
    LoHa(LoHa),
    /// A Kronecker product.
    LoKr(LoKr),
    /// A low-rank delta plus a low-rank change of the input.
    Glora(Glora),
    /// A factor for each input or output.
    Ia3(Ia3),
    /// Rotations of blocks of outputs.
    Oft(Oft),
    /// Rotations of outputs at growing distances.
    Boft(Boft),
    /// Rotations of blocks of inputs.
    OftV2(OftV2),
    /// The difference itself, on weight, bias or both.
    Full(Full),
    /// A change of a normalisation.
    Norm(Norm),
    /// Another delta, and the lengths the weight's rows or columns shall have with it.
    Dora(Dora),
    /// Another delta, plus a sparse rest or a change of the bias.
    Beside(Beside),
}

/// A parameter by its suffix in LyCORIS' and kohya's files, such as `.lora_down.weight`.
pub type Stored = (&'static str, Tensor);

/// What the algorithms answer to. Weights come and go in f32, on the base weight's device.
trait Algorithm {
    fn name(&self) -> &'static str;

    fn is_additive(&self) -> bool {
        true
    }

    /// ΔW of additive algorithms.
    fn weight(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let _ = (shape, device);
        Err(depends_on_base(self.name()))
    }

    /// W' for m other than 0.
    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let delta = self.weight(base.dims(), base.device())?;
        Ok((base + (delta * strength)?)?)
    }

    fn changes_weight(&self) -> bool {
        true
    }

    fn bias(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn apply_bias(&self, base: Option<&Tensor>, strength: f64) -> Result<Option<Tensor>> {
        let Some(delta) = self.bias()?.filter(|_| strength != 0.0) else { return Ok(None) };
        let delta = (delta * strength)?;
        let Some(base) = base else { return Ok(Some(delta)) };
        Ok(Some((math::f32_on(base, base.device())? + delta.to_device(base.device())?)?))
    }

    fn branch(&self, shape: &[usize], device: &Device) -> Result<Option<Branch>> {
        let _ = (shape, device);
        Ok(None)
    }

    fn rank(&self) -> Option<usize> {
        None
    }

    fn alpha(&self) -> Option<f64> {
        None
    }

    fn tensors(&self) -> Result<Vec<Stored>>;

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta>;

    /// Shapes and scalars; the tensors by themselves have been checked.
    fn check(&self, shape: &[usize]) -> Result<()>;
}

impl Delta {
    fn as_algorithm(&self) -> &dyn Algorithm {
        match self {
            Self::LowRank(a) => a,
            Self::LoHa(a) => a,
            Self::LoKr(a) => a,
            Self::Glora(a) => a,
            Self::Ia3(a) => a,
            Self::Oft(a) => a,
            Self::Boft(a) => a,
            Self::OftV2(a) => a,
            Self::Full(a) => a,
            Self::Norm(a) => a,
            Self::Dora(a) => a,
            Self::Beside(a) => a,
        }
    }

    /// What users call the algorithm.
    pub fn algorithm(&self) -> &'static str {
        self.as_algorithm().name()
    }

    /// True if W' = W + m · ΔW with a ΔW that does not depend on W.
    pub fn is_additive(&self) -> bool {
        self.as_algorithm().is_additive()
    }

    /// ΔW in f32 at strength 1, in the base weight's shape, on the CPU.
    ///
    /// # Errors
    /// If the delta depends on the base weight, or its tensors do not fit `shape`.
    pub fn weight(&self, shape: &[usize]) -> Result<Tensor> {
        self.as_algorithm().weight(shape, &Device::Cpu)
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
        self.as_algorithm().apply(&base, strength)
    }

    /// Δb in f32 at strength 1, on the CPU, of a delta that adds to the bias.
    ///
    /// # Errors
    /// If the tensor cannot be read.
    pub fn bias(&self) -> Result<Option<Tensor>> {
        self.as_algorithm().bias()
    }

    /// b' in f32 at the user's strength, on the base bias' device; `None` where nothing changes. A layer without a bias
    /// gets one, on the CPU.
    ///
    /// # Errors
    /// If the delta's length is not the base bias'.
    pub fn apply_bias(&self, base: Option<&Tensor>, strength: f64) -> Result<Option<Tensor>> {
        self.as_algorithm().apply_bias(base, strength)
    }

    /// False for deltas of the bias alone.
    pub fn changes_weight(&self) -> bool {
        self.as_algorithm().changes_weight()
    }

    /// The weight's change as a branch beside the layer, if it is one of low rank whatever the base weight is.
    ///
    /// # Errors
    /// If the factors do not fit `shape`.
    pub fn branch(&self, shape: &[usize]) -> Result<Option<Branch>> {
        self.as_algorithm().branch(shape, &Device::Cpu)
    }

    pub(crate) fn branch_on(&self, shape: &[usize], device: &Device) -> Result<Option<Branch>> {
        self.as_algorithm().branch(shape, device)
    }

    /// True for deltas that may change the bias.
    pub fn changes_bias(&self) -> bool {
        match self {
            Self::Full(full) => full.bias.is_some(),
            Self::Norm(norm) => norm.0.bias.is_some(),
            Self::Ia3(ia3) => ia3.scales_bias && !ia3.on_input,
            Self::Dora(dora) => dora.inner.changes_bias(),
            Self::Beside(beside) => beside.bias.is_some() || beside.inner.changes_bias(),
            _ => false,
        }
    }

    /// r, of algorithms that have one. It may differ from layer to layer.
    pub fn rank(&self) -> Option<usize> {
        self.as_algorithm().rank()
    }

    /// alpha as stored; `None` where it is missing, which means r, or where the algorithm has none.
    pub fn alpha(&self) -> Option<f64> {
        self.as_algorithm().alpha()
    }

    /// The parameters as LyCORIS and kohya name them, alpha (always written) first.
    ///
    /// # Errors
    /// If a scalar cannot be made.
    pub fn tensors(&self) -> Result<Vec<Stored>> {
        self.as_algorithm().tensors()
    }

    /// The same delta with each of its float tensors changed by `f`: to another dtype, another device.
    ///
    /// # Errors
    /// Whatever `f` returns.
    pub fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        self.as_algorithm().map(f)
    }

    /// Checks the tensors against each other and against the base weight's shape, and that every number is finite.
    ///
    /// # Errors
    /// With what was expected and found, naming neither module nor file.
    pub fn check(&self, shape: &[usize]) -> Result<()> {
        for (suffix, tensor) in self.tensors()? {
            check_tensor(suffix, &tensor, math::SETTINGS.contains(&suffix))?;
        }
        self.check_shapes(shape)
    }

    /// [`Delta::check`] without looking at each number again.
    ///
    /// # Errors
    /// As [`Delta::check`].
    pub(crate) fn check_shapes(&self, shape: &[usize]) -> Result<()> {
        let for_vectors = matches!(self, Self::Full(_) | Self::Norm(_));
        if shape.is_empty() || (shape.len() == 1 && !for_vectors) {
            return Err(Error::invalid(format!(
                "{} for a normalisation, whose weight is {shape:?}",
                self.algorithm()
            )));
        }
        self.as_algorithm().check(shape)
    }
}

/// What to do about an adapter whose shapes are another model's.
pub(super) const OTHER_FAMILY: &str = "choose a model of the adapter's family with `--model`";

/// The refusal of tensors that do not go with the model's weight.
fn misfit(message: String) -> Error {
    Error::invalid(message).with_hint(OTHER_FAMILY)
}

/// The refusal of algorithms that need W to say what they add to it.
fn depends_on_base(algorithm: &str) -> Error {
    Error::invalid(format!("{algorithm} depends on the base weight, so it has no delta of its own"))
        .with_hint("fuse it into a model instead")
}
