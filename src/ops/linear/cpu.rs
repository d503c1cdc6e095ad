//! Rows in parallel tiles: bias, product and branch while the tile is in the cache.

use rayon::prelude::*;

use crate::ops::{
    cpu::{Mat, MatMut, Threads, gemm, products_together},
    low_rank::BranchValues,
};

/// Rows of a tile. Tiles depend on the shape only, so results do not depend on the thread count.
const TILE: usize = 128;

/// An affine map by rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine<'a> {
    /// (out, in)
    pub weight: &'a [f32],
    /// (out)
    pub bias: Option<&'a [f32]>,
    pub inputs: usize,
    pub outputs: usize,
}

/// y (m, out), and z = (x downᵀ) ⊙ s (m, r) if there is a branch.
pub(super) fn forward(
    x: &[f32],
    m: usize,
    affine: Affine<'_>,
    branch: Option<&BranchValues<'_>>,
) -> (Vec<f32>, Vec<f32>) {
    let Affine { inputs, outputs, .. } = affine;
    // At least one value a row, so that the tiles of y and z are as many.
    let rank = branch.map_or(1, |b| b.scale.len());
    let (mut y, mut z) = (vec![0.0; m * outputs], vec![0.0; m * rank]);
    let threads = threads(m);
    let branch = branch.map(|b| (&*b.down, &*b.up, &*b.scale));
    let tiles = y.par_chunks_mut(TILE * outputs).zip(z.par_chunks_mut(TILE * rank));
    let tiles = tiles.with_min_len(products_together(TILE * inputs * outputs));
    tiles.enumerate().for_each(|(tile, (y, z))| {
        let rows = y.len() / outputs;
        let x = Mat::new(&x[tile * TILE * inputs..], rows, inputs);
        if let Some(bias) = affine.bias {
            y.chunks_exact_mut(outputs).for_each(|y| y.copy_from_slice(bias));
        }
        let weight = Mat::new(affine.weight, outputs, inputs);
        gemm(MatMut::new(y, rows, outputs), affine.bias.is_some(), x, weight.t(), 1.0, threads);
        if let Some((down, up, scale)) = branch {
            gemm(MatMut::new(z, rows, rank), false, x, Mat::new(down, rank, inputs).t(), 1.0, threads);
            scale_columns(z, scale);
            let (z, up) = (Mat::new(z, rows, rank), Mat::new(up, outputs, rank));
            gemm(MatMut::new(y, rows, outputs), true, z, up.t(), 1.0, threads);
        }
    });
    (y, z)
}

/// (g up) ⊙ s: the gradient of x downᵀ, (m, r).
pub(in crate::ops) fn rank_gradient(
    g: &[f32],
    m: usize,
    outputs: usize,
    branch: &BranchValues<'_>,
) -> Vec<f32> {
    let rank = branch.scale.len();
    let mut gz = vec![0.0; m * rank];
    let (g, up) = (Mat::new(g, m, outputs), Mat::new(&branch.up, outputs, rank));
    gemm(MatMut::new(&mut gz, m, rank), false, g, up, 1.0, Threads::All);
    scale_columns(&mut gz, &branch.scale);
    gz
}

/// g weight + gz down: the gradient of x, (m, in).
pub(super) fn input_gradient(
    g: &[f32],
    m: usize,
    affine: Affine<'_>,
    branch: Option<(&[f32], &[f32])>,
) -> Vec<f32> {
    let Affine { inputs, outputs, weight, .. } = affine;
    let mut gx = vec![0.0; m * inputs];
    let threads = threads(m);
    let tiles = gx.par_chunks_mut(TILE * inputs).with_min_len(products_together(TILE * inputs * outputs));
    tiles.enumerate().for_each(|(tile, gx)| {
        let rows = gx.len() / inputs;
        let g = Mat::new(&g[tile * TILE * outputs..], rows, outputs);
        gemm(MatMut::new(gx, rows, inputs), false, g, Mat::new(weight, outputs, inputs), 1.0, threads);
        if let Some((gz, down)) = branch {
            let rank = down.len() / inputs;
            let gz = Mat::new(&gz[tile * TILE * rank..], rows, rank);
            gemm(MatMut::new(gx, rows, inputs), true, gz, Mat::new(down, rank, inputs), 1.0, threads);
        }
    });
    gx
}

/// aᵀ b for a (m, p) and b (m, q): a weight gradient, (p, q).
pub(in crate::ops) fn outer(a: &[f32], b: &[f32], (m, p, q): (usize, usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0; p * q];
    gemm(MatMut::new(&mut out, p, q), false, Mat::new(a, m, p).t(), Mat::new(b, m, q), 1.0, Threads::All);
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

/// A single tile is shared among the threads; several are dealt out.
fn threads(m: usize) -> Threads {
    if m > TILE { Threads::One } else { Threads::All }
}
