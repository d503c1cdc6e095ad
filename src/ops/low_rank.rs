//! The low-rank branches linear layers and convolutions carry.

use candle_core::{DType, Shape, Tensor};

use super::cpu::Values;
use crate::error::Result;

/// The stacked low-rank branches of a layer (LoRA, <https://arxiv.org/abs/2106.09685>): ΔW = B diag(s) A.
///
/// A and B may have another dtype than the activations (f32 beside bf16): they are converted, and so are their
/// gradients.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// A: (r, in), or (r, in, kh, kw) on a convolution.
    pub down: &'a Tensor,
    /// B: (out, r).
    pub up: &'a Tensor,
    /// s: (r), alpha / rank times the user's weight.
    pub scale: &'a Tensor,
}

/// A branch outside of the graph, contiguous and in the dtype of the computation.
#[derive(Debug)]
pub(super) struct Branch {
    pub down: Tensor,
    pub up: Tensor,
    pub scale: Tensor,
}

impl Branch {
    pub fn new(branch: LowRank<'_>, dtype: DType) -> Result<Self> {
        let cast = |t: &Tensor| t.detach().to_dtype(dtype)?.contiguous();
        Ok(Self { down: cast(branch.down)?, up: cast(branch.up)?, scale: cast(branch.scale)? })
    }

    pub fn rank(&self) -> usize {
        self.scale.elem_count()
    }

    pub fn values(&self) -> Result<BranchValues<'_>> {
        Ok(BranchValues {
            down: Values::of(&self.down)?,
            up: Values::of(&self.up)?,
            scale: Values::of(&self.scale)?,
        })
    }
}

/// The numbers of a branch.
pub(super) struct BranchValues<'a> {
    /// (r, in) or (r, in, kh, kw)
    pub down: Values<'a>,
    /// (out, r)
    pub up: Values<'a>,
    /// (r)
    pub scale: Values<'a>,
}

/// The weight and bias of a layer, which get no gradient.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

impl Frozen {
    /// In the dtype of the computation; the same tensors if they have it.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let bias = self.bias.as_ref().map(|b| b.to_dtype(dtype)?.contiguous()).transpose()?;
        Ok(Self { weight: self.weight.to_dtype(dtype)?, bias })
    }
}

/// Which gradients someone asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub x: bool,
    pub branch: bool,
}

impl Wanted {
    /// Multiplications a row (a pixel) of an affine map with a branch of rank r takes in the backward pass.
    pub fn products(self, inputs: usize, outputs: usize, rank: usize) -> usize {
        let input = usize::from(self.x) * (inputs * outputs + rank * inputs);
        input + rank * outputs + usize::from(self.branch) * rank * (inputs + outputs)
    }
}

/// Those that were computed.
#[derive(Debug, Default)]
pub(super) struct Gradients {
    pub x: Option<Tensor>,
    pub down: Option<Tensor>,
    pub up: Option<Tensor>,
}

impl Gradients {
    /// One per input, in the inputs' dtypes.
    pub fn in_dtypes(self, inputs: &[DType]) -> Result<Vec<Option<Tensor>>> {
        let grads = [self.x, self.down, self.up].into_iter().zip(inputs);
        Ok(grads.map(|(g, dtype)| g.map(|g| g.to_dtype(*dtype)).transpose()).collect::<Result<_, _>>()?)
    }
}

/// What the backward pass needs of a layer's input.
#[derive(Debug)]
pub(super) struct Kept {
    pub shape: Shape,
    pub dtype: DType,
    /// Its values, where a branch is trained: the frozen part's gradient does not depend on them.
    pub values: Option<Tensor>,
}

impl Kept {
    pub fn of(x: &Tensor, wanted: Wanted) -> Self {
        Self { shape: x.shape().clone(), dtype: x.dtype(), values: wanted.branch.then(|| x.detach()) }
    }
}

/// What a layer on `x` is computed in: f32 on the CPU, the activations' dtype elsewhere.
pub(super) fn compute_dtype(x: &Tensor) -> DType {
    if x.device().is_cpu() { DType::F32 } else { x.dtype() }
}

/// A weight as the CPU kernels take it: contiguous, f32, f16 or bf16. One that is so already is not copied.
pub(super) fn stored(weight: &Tensor) -> Result<Tensor> {
    let weight = weight.contiguous()?;
    match weight.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(weight),
        _ => Ok(weight.to_dtype(DType::F32)?),
    }
}
