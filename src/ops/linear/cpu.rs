//! Bias, product and branch.

use rayon::prelude::*;

use crate::ops::{
    cpu::{Mat, MatMut, Numbers, Threads, gemm, together},
    low_rank::BranchValues,
};

/// An affine map by rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine<'a> {
    /// (out, in)
    pub weight: Numbers<'a>,
    /// (out)
    pub bias: Option<&'a [f32]>,
    pub inputs: usize,
    pub outputs: usize,
}

/// y (m, out), and z = (x downᵀ) ⊙ s (m, r) if there is a branch.
pub(super) fn forward(
    x: Numbers<'_>,
    m: usize,
    affine: Affine<'_>,
    branch: Option<&BranchValues<'_>>,
) -> (Vec<f32>, Vec<f32>) {
    let Affine { inputs, outputs, .. } = affine;
    let mut y = biased(m, outputs, affine.bias);
    let x = Mat::of(x, m, inputs, inputs);
    let weight = Mat::of(affine.weight, outputs, inputs, inputs);
    gemm(MatMut::new(&mut y, m, outputs), affine.bias.is_some(), x, weight.t(), 1.0, Threads::All);
    let Some(BranchValues { down, up, scale }) = branch else {
        return (y, Vec::new());
    };
    let rank = scale.len();
    let mut z = vec![0.0; m * rank];
    gemm(MatMut::new(&mut z, m, rank), false, x, Mat::new(down, rank, inputs).t(), 1.0, Threads::All);
    scale_columns(&mut z, scale);
    let (rows, up) = (Mat::new(&z, m, rank), Mat::new(up, outputs, rank));
    gemm(MatMut::new(&mut y, m, outputs), true, rows, up.t(), 1.0, Threads::All);
    (y, z)
}

/// (m, out) to add to: the bias in every row, or room.
pub(in crate::ops) fn biased(m: usize, outputs: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![0.0; m * outputs];
    if let Some(bias) = bias {
        let rows = y.par_chunks_mut(outputs).with_min_len(together(outputs));
        rows.for_each(|y| y.copy_from_slice(bias));
    }
    y
}

/// (g up) ⊙ s: the gradient of x downᵀ, (m, r).
pub(in crate::ops) fn rank_gradient(
    g: Numbers<'_>,
    m: usize,
    outputs: usize,
    branch: &BranchValues<'_>,
) -> Vec<f32> {
    let rank = branch.scale.len();
    let mut gz = vec![0.0; m * rank];
    let (g, up) = (Mat::of(g, m, outputs, outputs), Mat::new(&branch.up, outputs, rank));
    gemm(MatMut::new(&mut gz, m, rank), false, g, up, 1.0, Threads::All);
    scale_columns(&mut gz, &branch.scale);
    gz
}

/// g weight + gz down: the gradient of x, (m, in).
pub(super) fn input_gradient(
    g: Numbers<'_>,
    m: usize,
    affine: Affine<'_>,
    branch: Option<(&[f32], &[f32])>,
) -> Vec<f32> {
    let Affine { inputs, outputs, weight, .. } = affine;
    let mut gx = vec![0.0; m * inputs];
    let (g, weight) = (Mat::of(g, m, outputs, outputs), Mat::of(weight, outputs, inputs, inputs));
    gemm(MatMut::new(&mut gx, m, inputs), false, g, weight, 1.0, Threads::All);
    if let Some((gz, down)) = branch {
        let rank = down.len() / inputs;
        let (gz, down) = (Mat::new(gz, m, rank), Mat::new(down, rank, inputs));
        gemm(MatMut::new(&mut gx, m, inputs), true, gz, down, 1.0, Threads::All);
    }
    gx
}

/// aᵀ b for a (m, p) and b (m, q): a weight gradient, (p, q).
pub(in crate::ops) fn outer(a: Numbers<'_>, b: Numbers<'_>, (m, p, q): (usize, usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0; p * q];
    gemm(MatMut::new(&mut out, p, q), false, Mat::of(a, m, p, p).t(), Mat::of(b, m, q, q), 1.0, Threads::All);
    out
}

/// z ⊙ s in every row.
pub(in crate::ops) fn scale_columns(z: &mut [f32], scale: &[f32]) {
    for z in z.chunks_exact_mut(scale.len()) {
        for (z, s) in z.iter_mut().zip(scale) {
            *z *= s;
        }
    }
}
