//! One pass over memory each, in parallel.

use rayon::prelude::*;

use crate::ops::cpu::{CHUNK, simd, together};

pub(super) fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut sum = vec![0.0; a.len()];
    let operands = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    let tasks = sum.par_chunks_mut(CHUNK).zip(operands).with_min_len(together(CHUNK));
    tasks.for_each(|(sum, (a, b))| add_values(a, b, sum));
    sum
}

/// Pictures of `area` pixels of c values, and c values for each.
pub(super) fn add_per_picture(x: &[f32], t: &[f32], (area, c): (usize, usize)) -> Vec<f32> {
    let mut sum = vec![0.0; x.len()];
    let tasks = sum.par_chunks_mut(c).zip(x.par_chunks(c)).with_min_len(together(c));
    tasks.enumerate().for_each(|(pixel, (sum, x))| add_values(x, &t[pixel / area * c..][..c], sum));
    sum
}

/// Rows of c values before rows of d.
pub(super) fn concat_rows(a: &[f32], b: &[f32], (c, d): (usize, usize)) -> Vec<f32> {
    let mut joined = vec![0.0; a.len() + b.len()];
    let operands = a.par_chunks(c).zip(b.par_chunks(d));
    let tasks = joined.par_chunks_mut(c + d).zip(operands).with_min_len(together(c + d));
    tasks.for_each(|(joined, (a, b))| {
        joined[..c].copy_from_slice(a);
        joined[c..].copy_from_slice(b);
    });
    joined
}

simd! {
    fn add_values(a: &[f32], b: &[f32], sum: &mut [f32]) {
        for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
            *sum = a + b;
        }
    }
}
