//! `DoRA`: another delta, and the lengths the weight's rows or columns shall have with it.

use candle_core::{Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::error::{Error, Result};

/// W₁ = g ⊙ V / ‖V‖ with V = W + ΔW (<https://arxiv.org/abs/2402.09353>), and W' = W + m · (W₁ - W).
///
/// Between 0 and 1 tools differ; this is Comfy's and A1111's rule. Several of them on a layer do not add: each is applied
/// to the weight the one before left.
#[derive(Debug, Clone)]
pub struct Dora {
    /// What makes ΔW.
    pub inner: Box<Delta>,
    /// g, with one value a row (or column) of W in any shape.
    pub magnitude: Tensor,
    /// Which lengths g gives.
    pub axis: MagnitudeAxis,
}

/// What a magnitude has one value for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MagnitudeAxis {
    /// Each output: PEFT, LyCORIS today.
    Output,
    /// Each input: `OneTrainer`, LyCORIS before.
    Input,
}

impl MagnitudeAxis {
    /// By the writer's shape. `dora_scale` says its axis by the dimension that is not 1; PEFT's
    /// `lora_magnitude_vector` is always one value an output, though convolutions store it as (1, out, 1, 1).
    ///
    /// # Errors
    /// If the length is neither the outputs' nor the inputs'.
    pub fn of(dims: &[usize], peft: bool, shape: &[usize]) -> Result<Self> {
        let (outputs, inputs) = (shape[0], *shape.get(1).unwrap_or(&0));
        let length: usize = dims.iter().product();
        let input_shaped = dims.len() > 1 && dims[0] == 1 && length == dims[1];
        let output_shaped = dims.len() > 1 && length == dims[0];
        let axis = match dims.len() {
            _ if peft && length == outputs => Some(Self::Output),
            1 if length == outputs => Some(Self::Output),
            1 if length == inputs => Some(Self::Input),
            _ if output_shaped && length == outputs => Some(Self::Output),
            _ if input_shaped && length == inputs => Some(Self::Input),
            _ => None,
        };
        axis.ok_or_else(|| {
            Error::invalid(format!(
                "the DoRA magnitude has shape {dims:?}, expected one value for each of the {outputs} outputs or \
                 {inputs} inputs of the model's weight {shape:?}"
            ))
        })
    }
}

impl Dora {
    /// ‖V‖ over all but the axis, in a shape that broadcasts.
    fn lengths(&self, v: &Tensor) -> Result<Tensor> {
        let keep = usize::from(self.axis == MagnitudeAxis::Input);
        let over: Vec<usize> = (0..v.dims().len()).filter(|dim| *dim != keep).collect();
        // A row of zeros has no direction to scale; without the floor it would become NaN.
        Ok(v.sqr()?.sum_keepdim(over)?.sqrt()?.clamp(f32::MIN_POSITIVE, f32::MAX)?)
    }
}

impl Algorithm for Dora {
    fn name(&self) -> &'static str {
        match (&*self.inner, self.axis) {
            (Delta::LoHa(_), _) => "DoRA over LoHa",
            (Delta::LoKr(_), _) => "DoRA over LoKr",
            (_, MagnitudeAxis::Output) => "DoRA",
            (_, MagnitudeAxis::Input) => "DoRA (input axis)",
        }
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let v = self.inner.apply(base, 1.0)?;
        let lengths = self.lengths(&v)?;
        let magnitude = math::f32_on(&self.magnitude, base.device())?.reshape(lengths.shape())?;
        let goal = v.broadcast_mul(&(magnitude / lengths)?)?;
        Ok((base + ((goal - base)? * strength)?)?)
    }

    fn bias(&self) -> Result<Option<Tensor>> {
        self.inner.bias()
    }

    fn rank(&self) -> Option<usize> {
        self.inner.rank()
    }

    fn alpha(&self) -> Option<f64> {
        self.inner.alpha()
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let mut all = self.inner.tensors()?;
        let length = self.magnitude.elem_count();
        let spatial = all.iter().any(|(_, t)| t.dims().len() == 4);
        let shape = match (self.axis, spatial) {
            (MagnitudeAxis::Output, false) => vec![length, 1],
            (MagnitudeAxis::Output, true) => vec![length, 1, 1, 1],
            (MagnitudeAxis::Input, false) => vec![1, length],
            (MagnitudeAxis::Input, true) => vec![1, length, 1, 1],
        };
        all.push((".dora_scale", self.magnitude.reshape(shape)?));
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        let inner = Box::new(self.inner.map(f)?);
        Ok(Delta::Dora(Self { inner, magnitude: f(&self.magnitude)?, axis: self.axis }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        if !self.inner.is_additive() {
            return Err(Error::invalid(format!("a DoRA magnitude over {}", self.inner.algorithm())));
        }
        let expected = shape.get(usize::from(self.axis == MagnitudeAxis::Input)).copied().unwrap_or(0);
        if self.magnitude.elem_count() != expected {
            return Err(Error::invalid(format!(
                "the DoRA magnitude has shape {:?}, expected {expected} values for the model's weight {shape:?}",
                self.magnitude.dims()
            )));
        }
        self.inner.check_shapes(shape)
    }

    fn weight(&self, _: &[usize], _: &Device) -> Result<Tensor> {
        Err(super::depends_on_base(self.name()))
    }
}
