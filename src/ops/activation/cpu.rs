//! One pass over memory each, in parallel.

use rayon::prelude::*;

use super::Pointwise;
use crate::ops::cpu::{CHUNK, math, simd, together};

/// f(x).
pub(super) fn forward(kind: Pointwise, x: &[f32]) -> Vec<f32> {
    let run = match kind {
        Pointwise::Silu => silu,
        Pointwise::Gelu => gelu,
        Pointwise::QuickGelu => quick_gelu,
    };
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .with_min_len(together(CHUNK))
        .for_each(|(y, x)| run(x, y));
    y
}

/// g · f'(x).
pub(super) fn backward(kind: Pointwise, x: &[f32], g: &[f32]) -> Vec<f32> {
    let run = match kind {
        Pointwise::Silu => silu_backward,
        Pointwise::Gelu => gelu_backward,
        Pointwise::QuickGelu => quick_gelu_backward,
    };
    let mut gx = vec![0.0; x.len()];
    let operands = x.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
    gx.par_chunks_mut(CHUNK)
        .zip(operands)
        .with_min_len(together(CHUNK))
        .for_each(|(gx, (x, g))| run(x, g, gx));
    gx
}

/// Rows of 2 d values to rows of d.
pub(super) fn geglu(x: &[f32], d: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / 2];
    let rows = rows_per_task(d);
    let tasks = y.par_chunks_mut(rows * d).zip(x.par_chunks(rows * 2 * d)).with_min_len(together(rows * d));
    tasks.for_each(|(y, x)| geglu_rows(x, d, y));
    y
}

/// The gradient of rows of 2 d values from that of rows of d.
pub(super) fn geglu_backward(x: &[f32], g: &[f32], d: usize) -> Vec<f32> {
    let mut gx = vec![0.0; x.len()];
    let rows = rows_per_task(d);
    let operands = x.par_chunks(rows * 2 * d).zip(g.par_chunks(rows * d));
    let tasks = gx.par_chunks_mut(rows * 2 * d).zip(operands).with_min_len(together(rows * 2 * d));
    tasks.for_each(|(gx, (x, g))| geglu_rows_backward(x, g, d, gx));
    gx
}

fn rows_per_task(d: usize) -> usize {
    (CHUNK / d.max(1)).max(1)
}

simd! {
    fn silu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * math::sigmoid::<FMA>(x);
        }
    }

    fn silu_backward(x: &[f32], g: &[f32], gx: &mut [f32]) {
        for ((gx, &x), &g) in gx.iter_mut().zip(x).zip(g) {
            let s = math::sigmoid::<FMA>(x);
            *gx = g * s * (1.0 + x * (1.0 - s));
        }
    }

    fn quick_gelu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * math::sigmoid::<FMA>(1.702 * x);
        }
    }

    fn quick_gelu_backward(x: &[f32], g: &[f32], gx: &mut [f32]) {
        for ((gx, &x), &g) in gx.iter_mut().zip(x).zip(g) {
            let s = math::sigmoid::<FMA>(1.702 * x);
            *gx = g * s * (1.0 + 1.702 * x * (1.0 - s));
        }
    }

    fn gelu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * math::normal::<FMA>(x).0;
        }
    }

    fn gelu_backward(x: &[f32], g: &[f32], gx: &mut [f32]) {
        for ((gx, &x), &g) in gx.iter_mut().zip(x).zip(g) {
            let (cdf, pdf) = math::normal::<FMA>(x);
            *gx = g * (cdf + x * pdf);
        }
    }

    fn geglu_rows(x: &[f32], d: usize, y: &mut [f32]) {
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(2 * d)) {
            let (a, b) = x.split_at(d);
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = a * b * math::normal::<FMA>(b).0;
            }
        }
    }

    fn geglu_rows_backward(x: &[f32], g: &[f32], d: usize, gx: &mut [f32]) {
        for ((gx, x), g) in gx.chunks_exact_mut(2 * d).zip(x.chunks_exact(2 * d)).zip(g.chunks_exact(d)) {
            let ((a, b), (ga, gb)) = (x.split_at(d), gx.split_at_mut(d));
            for ((((ga, gb), &a), &b), &g) in ga.iter_mut().zip(gb).zip(a).zip(b).zip(g) {
                let (cdf, pdf) = math::normal::<FMA>(b);
                *ga = g * b * cdf;
                *gb = g * a * (cdf + b * pdf);
            }
        }
    }
}
