//! Rows in parallel, each read twice while it is in the cache.

use rayon::prelude::*;

use crate::ops::cpu::{CHUNK, math, simd, together};

/// Rows of d values, normalised, scaled and shifted.
pub(super) fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let d = weight.len();
    let mut y = vec![0.0; x.len()];
    let rows = (CHUNK / d).max(1);
    y.par_chunks_mut(rows * d)
        .zip(x.par_chunks(rows * d))
        .for_each(|(y, x)| rows_forward(x, weight, bias, eps, y));
    y
}

/// The gradient of the rows; mean and variance are computed again.
pub(super) fn backward(x: &[f32], weight: &[f32], g: &[f32], eps: f32) -> Vec<f32> {
    let d = weight.len();
    let mut gx = vec![0.0; x.len()];
    let rows = (CHUNK / d).max(1);
    let operands = x.par_chunks(rows * d).zip(g.par_chunks(rows * d));
    let tasks = gx.par_chunks_mut(rows * d).zip(operands).with_min_len(together(rows * d));
    tasks.for_each(|(gx, (x, g))| rows_backward(x, weight, g, eps, gx));
    gx
}

/// Mean and 1 / standard deviation of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = math::sum(x) / n;
    let var = math::sum2(x, x, |v, _| (v - mean) * (v - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

simd! {
    fn rows_forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let d = weight.len();
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let (mean, rstd) = moments(x, eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * rstd * w + b;
            }
        }
    }

    /// gx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)), with ĝ = g w and x̂ the normalised row.
    fn rows_backward(x: &[f32], weight: &[f32], g: &[f32], eps: f32, gx: &mut [f32]) {
        let d = weight.len();
        let n = d as f32;
        for ((gx, x), g) in gx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(g.chunks_exact(d)) {
            let (mean, rstd) = moments(x, eps);
            for ((gx, &g), &w) in gx.iter_mut().zip(g).zip(weight) {
                *gx = g * w;
            }
            let mean_g = math::sum(gx) / n;
            let mean_gx = math::sum2(gx, x, |g, x| g * (x - mean) * rstd) / n;
            for (gx, &x) in gx.iter_mut().zip(x) {
                *gx = rstd * (*gx - mean_g - (x - mean) * rstd * mean_gx);
            }
        }
    }
}
