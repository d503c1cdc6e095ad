//! `DoRA`: another delta, and the lengths the weight's rows or columns shall have with it.

use candle_core::{Device, Tensor};

use super::{Algorithm, Delta, Stored, math};
use crate::{
    error::{Error, Result},
    ops::cpu::Values,
};

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
            super::misfit(format!(
                "the DoRA magnitude has shape {dims:?}, expected one value for each of the {outputs} outputs or \
                 {inputs} inputs of the model's weight {shape:?}"
            ))
        })
    }
}

impl Dora {
    /// (1 - m) W + m g / ‖V‖ ⊙ V as plain tensor operations.
    fn combine(&self, base: &Tensor, v: &Tensor, strength: f64) -> Result<Tensor> {
        let keep = usize::from(self.axis == MagnitudeAxis::Input);
        let over: Vec<usize> = (0..v.dims().len()).filter(|dim| *dim != keep).collect();
        let lengths = v.sqr()?.sum_keepdim(over)?.sqrt()?.clamp(SHORTEST, f32::MAX)?;
        let magnitude = math::f32_on(&self.magnitude, base.device())?.reshape(lengths.shape())?;
        let goal = v.broadcast_mul(&(magnitude / lengths)?)?;
        Ok((base + ((goal - base)? * strength)?)?)
    }

    /// The same on the CPU, without a pass over all values for each operation.
    fn combine_on_cpu(&self, base: &Tensor, v: &Tensor, strength: f64) -> Result<Tensor> {
        let (base, v) = (base.contiguous()?, v.contiguous()?);
        let magnitude: Vec<f32> = math::f32_of(&self.magnitude)?.flatten_all()?.to_vec1()?;
        let (w, mut out) = (Values::of(&base)?, Values::of(&v)?.to_vec());
        let (m, columns) = (strength as f32, out.len() / base.dims()[0]);
        let kernel: usize = base.dims()[2..].iter().product();
        let factor = |g: &f32, squares: f32| m * g / squares.sqrt().max(SHORTEST);
        if self.axis == MagnitudeAxis::Output {
            let rows = out.chunks_exact_mut(columns).zip(w.chunks_exact(columns));
            for ((v, w), g) in rows.zip(&magnitude) {
                let c = factor(g, sum_of_squares(v));
                v.iter_mut().zip(w).for_each(|(v, w)| *v = (1.0 - m) * w + c * *v);
            }
        } else {
            let mut squares = vec![0f32; columns];
            for v in out.chunks_exact(columns) {
                squares.iter_mut().zip(v).for_each(|(sum, v)| *sum += v * v);
            }
            let inputs = magnitude.iter().zip(squares.chunks_exact(kernel));
            let factors = inputs.map(|(g, squares)| factor(g, squares.iter().sum()));
            let factors: Vec<f32> = factors.flat_map(|c| std::iter::repeat_n(c, kernel)).collect();
            for (v, w) in out.chunks_exact_mut(columns).zip(w.chunks_exact(columns)) {
                let values = v.iter_mut().zip(w).zip(&factors);
                values.for_each(|((v, w), c)| *v = (1.0 - m) * w + c * *v);
            }
        }
        Ok(Tensor::from_vec(out, base.shape(), &Device::Cpu)?)
    }
}

/// A row of zeros has no direction to scale; without a floor it would become NaN.
const SHORTEST: f32 = f32::MIN_POSITIVE;

/// In sixteen sums, which is both faster and more exact than one.
fn sum_of_squares(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
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
        if base.device().is_cpu() {
            self.combine_on_cpu(base, &v, strength)
        } else {
            self.combine(base, &v, strength)
        }
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
            return Err(super::misfit(format!(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        adapter::delta::{
            HadamardFactor, KroneckerFactor, LoHa, LoKr, LowRank,
            by_hand::{CONV, Known, LINEAR, assert_close, assert_unchanged_at_zero, weight_of},
        },
        random::{Rng, Stream},
    };

    /// The plain operations are what other devices compute.
    #[test]
    fn both_ways_of_combining_agree() -> Result<()> {
        let mut rng = Rng::new(1, Stream::Weights, 0);
        for shape in [&[6, 5][..], &[4, 37], &[6, 4, 3, 3]] {
            let (base, v) = (rng.normal(shape, &Device::Cpu)?, rng.normal(shape, &Device::Cpu)?);
            for (axis, length) in [(MagnitudeAxis::Output, shape[0]), (MagnitudeAxis::Input, shape[1])] {
                let magnitude = rng.normal(length, &Device::Cpu)?;
                let inner = Box::new(Delta::Full(crate::adapter::Full { weight: None, bias: None }));
                let dora = Dora { inner, magnitude, axis };
                for m in [1.0, -0.3] {
                    let difference = (dora.combine(&base, &v, m)? - dora.combine_on_cpu(&base, &v, m)?)?;
                    assert!(difference.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn dora_on_both_axes_over_anything_additive() -> Result<()> {
        let w = Known::random(1, CONV)?;
        let low_rank = Delta::LowRank(LowRank {
            down: Known::random(2, &[2, 4, 3, 2])?.tensor,
            up: Known::random(3, &[6, 2, 1, 1])?.tensor,
            mid: None,
            alpha: Some(1.0),
        });
        let loha = Delta::LoHa(LoHa {
            first: HadamardFactor {
                a: Known::random(4, &[6, 2])?.tensor,
                b: Known::random(5, &[2, 24])?.tensor,
                core: None,
            },
            second: HadamardFactor {
                a: Known::random(6, &[6, 2])?.tensor,
                b: Known::random(7, &[2, 24])?.tensor,
                core: None,
            },
            alpha: Some(1.0),
        });
        let lokr = Delta::LoKr(LoKr {
            first: KroneckerFactor::Whole(Known::random(8, &[2, 2])?.tensor),
            second: KroneckerFactor::Whole(Known::random(9, &[3, 2, 3, 2])?.tensor),
            alpha: None,
            whole_scale: None,
        });
        for inner in [low_rank, loha, lokr] {
            let v = Known::of(&(&w.tensor + inner.weight(CONV)?)?)?;
            for axis in [MagnitudeAxis::Output, MagnitudeAxis::Input] {
                let length = if axis == MagnitudeAxis::Output { 6 } else { 4 };
                let magnitude = Known::random(10, &[length])?;
                let channel = |o: usize, i: usize| if axis == MagnitudeAxis::Output { o } else { i };
                let mut squares = vec![0.0; length];
                for (place, value) in v.values.iter().enumerate() {
                    squares[channel(place / 24, place / 6 % 4)] += value * value;
                }
                for m in [1.0, 0.4] {
                    let expected = weight_of(CONV, |o, i, k| {
                        let at = [o, i, k / 2, k % 2];
                        let c = channel(o, i);
                        let goal = magnitude.at(&[c]) * v.at(&at) / squares[c].sqrt();
                        w.at(&at) + m * (goal - w.at(&at))
                    });
                    let delta = Delta::Dora(Dora {
                        inner: Box::new(inner.clone()),
                        magnitude: magnitude.tensor.clone(),
                        axis,
                    });
                    delta.check(CONV)?;
                    assert_close(delta.algorithm(), &delta.apply(&w.tensor, m)?, &expected);
                    assert_unchanged_at_zero(&delta, &w.tensor)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_magnitudes_axis_is_told_by_key_then_by_shape() -> Result<()> {
        use MagnitudeAxis::{Input, Output};
        let square: &[usize] = &[4, 4, 3, 3];
        for (dims, peft, shape, expected) in [
            (&[6, 1][..], false, LINEAR, Some(Output)),
            (&[1, 4], false, LINEAR, Some(Input)),
            (&[6, 1, 1, 1], false, CONV, Some(Output)),
            (&[1, 4, 1, 1], false, CONV, Some(Input)),
            // The same tensor under two names.
            (&[1, 4, 1, 1], false, square, Some(Input)),
            (&[1, 4, 1, 1], true, square, Some(Output)),
            (&[1, 6, 1, 1], true, CONV, Some(Output)),
            (&[6], false, LINEAR, Some(Output)),
            (&[4], false, LINEAR, Some(Input)),
            (&[4], true, &[4, 4], Some(Output)),
            (&[5], false, LINEAR, None),
            (&[1, 5], true, LINEAR, None),
            (&[2, 3], false, LINEAR, None),
        ] {
            assert_eq!(MagnitudeAxis::of(dims, peft, shape).ok(), expected, "{dims:?} {peft} {shape:?}");
        }
        Ok(())
    }
}
