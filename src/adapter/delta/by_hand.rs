//! What the tests of the algorithms share: formulas summed by hand.

use candle_core::{DType, Device, Tensor};

use super::Delta;
use crate::{
    error::Result,
    random::{Rng, Stream},
};

/// A tensor and its values, to be read by index.
pub(super) struct Known {
    pub tensor: Tensor,
    pub values: Vec<f64>,
    pub dims: Vec<usize>,
}

impl Known {
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        Ok(Self { tensor: tensor.clone(), values, dims: tensor.dims().to_vec() })
    }

    pub fn random(seed: u64, dims: &[usize]) -> Result<Self> {
        Self::of(&(Rng::new(7, Stream::Weights, seed).normal(dims, &Device::Cpu)? * 0.5)?)
    }

    /// Row-major, missing trailing indices 0.
    pub fn at(&self, index: &[usize]) -> f64 {
        let place = self
            .dims
            .iter()
            .enumerate()
            .fold(0, |place, (dim, size)| place * size + index.get(dim).copied().unwrap_or(0));
        self.values[place]
    }

    pub fn reshaped(&self, dims: &[usize]) -> Result<Tensor> {
        Ok(self.tensor.reshape(dims)?)
    }
}

/// The weight whose value at (o, i, k) is `f`, k running over the kernel.
pub(super) fn weight_of(shape: &[usize], f: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    let kernel: usize = shape[2..].iter().product();
    let at = |place: usize| f(place / (shape[1] * kernel), place / kernel % shape[1], place % kernel);
    (0..shape[0] * shape[1] * kernel).map(at).collect()
}

#[track_caller]
pub(super) fn assert_close(what: &str, found: &Tensor, expected: &[f64]) {
    let found = Known::of(found).expect("values").values;
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 2e-6 * largest, "{what}: {a} is not {b}");
    }
}

/// Checks, the weight, W' at two strengths, and that 0 is the base, bit for bit.
#[track_caller]
pub(super) fn assert_additive(what: &str, delta: &Delta, shape: &[usize], expected: &[f64]) {
    let test = || -> Result<()> {
        delta.check(shape)?;
        assert!(delta.is_additive());
        assert_close(what, &delta.weight(shape)?, expected);
        let base = Known::random(90, shape)?;
        for m in [1.0, -0.7] {
            let sum: Vec<f64> = base.values.iter().zip(expected).map(|(w, d)| w + m * d).collect();
            assert_close(what, &delta.apply(&base.tensor, m)?, &sum);
        }
        // Convolutions lie channels-last in the networks.
        if shape.len() == 4 {
            let last = base.tensor.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))?;
            let sum: Vec<f64> = base.values.iter().zip(expected).map(|(w, d)| w + d).collect();
            assert_close(what, &delta.apply(&last, 1.0)?, &sum);
        }
        assert_unchanged_at_zero(delta, &base.tensor)
    };
    test().unwrap_or_else(|e| panic!("{what}: {e}"));
}

pub(super) fn assert_unchanged_at_zero(delta: &Delta, base: &Tensor) -> Result<()> {
    let after: Vec<f32> = delta.apply(base, 0.0)?.flatten_all()?.to_vec1()?;
    assert_eq!(after, base.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

pub(super) const LINEAR: &[usize] = &[6, 4];
pub(super) const POINT: &[usize] = &[6, 4, 1, 1];
pub(super) const CONV: &[usize] = &[6, 4, 3, 2];

pub(super) type Matrix = Vec<Vec<f64>>;

pub(super) fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let cell = |i: usize, j: usize| (0..b.len()).map(|k| a[i][k] * b[k][j]).sum::<f64>();
    (0..a.len()).map(|i| (0..b[0].len()).map(|j| cell(i, j)).collect()).collect()
}

pub(super) fn identity(n: usize) -> Matrix {
    (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect()
}

/// a + scale · b.
pub(super) fn plus(a: &Matrix, scale: f64, b: &Matrix) -> Matrix {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + scale * b).collect()).collect()
}

/// (I + Q)(I - Q)⁻¹ as a long series, for Q small.
pub(super) fn rotation_of(q: &Matrix) -> Matrix {
    let (mut sum, mut power) = (identity(q.len()), identity(q.len()));
    for _ in 0..200 {
        power = product(&power, q);
        sum = plus(&sum, 2.0, &power);
    }
    sum
}

pub(super) fn skew(blocks: &Known, block: &[usize], b: usize, scale: f64) -> Matrix {
    let at = |i: usize, j: usize| blocks.at(&[block, &[i, j]].concat());
    (0..b).map(|i| (0..b).map(|j| scale * (at(i, j) - at(j, i))).collect()).collect()
}

/// `scale` of Q under a constraint on the norm of all blocks.
pub(super) fn capped(blocks: &Known, b: usize, limit: f64) -> f64 {
    let count = blocks.values.len() / (b * b);
    let flat =
        Known { tensor: blocks.tensor.clone(), values: blocks.values.clone(), dims: vec![count, b, b] };
    let squares: f64 = (0..count).flat_map(|n| skew(&flat, &[n], b, 1.0)).flatten().map(|x| x * x).sum();
    (limit / squares.sqrt()).min(1.0)
}
