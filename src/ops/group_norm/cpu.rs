//! Two passes over a picture each way: sums per channel (in blocks of pixels, in parallel), then the values.

use rayon::prelude::*;

use super::GroupNorm;
use crate::ops::cpu::{CHUNK, math, simd, together};

/// Mean and 1 / standard deviation of each (picture, group).
pub(super) type Moments = Vec<(f32, f32)>;

/// Pictures of `area` pixels of c channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pictures<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub area: usize,
}

impl Pictures<'_> {
    fn channels(&self) -> usize {
        self.weight.len()
    }

    /// Values of one picture.
    fn size(&self) -> usize {
        self.area * self.channels()
    }

    /// Values of one block of pixels: blocks depend on the shape only, so sums do not depend on the thread count.
    fn block(&self) -> usize {
        (CHUNK / self.channels()).max(1) * self.channels()
    }
}

/// The normalised pictures and what the backward pass needs of them.
pub(super) fn forward(p: Pictures<'_>, norm: GroupNorm) -> (Vec<f32>, Moments) {
    let (c, size, block) = (p.channels(), p.size(), p.block());
    let pictures = p.x.par_chunks(size).with_min_len(together(size));
    let moments: Moments = pictures.map(|x| picture_moments(x, c, block, norm)).collect::<Vec<_>>().concat();
    let mut y = vec![0.0; p.x.len()];
    let pictures = y.par_chunks_mut(size).zip(p.x.par_chunks(size)).with_min_len(together(size));
    pictures.enumerate().for_each(|(i, (y, x))| {
        let (scale, shift) = affine(p, norm, &moments[i * norm.groups..]);
        let run = if norm.then_silu { normalise_silu } else { normalise };
        let blocks = y.par_chunks_mut(block).zip(x.par_chunks(block)).with_min_len(together(block));
        blocks.for_each(|(y, x)| run(x, &scale, &shift, y));
    });
    (y, moments)
}

/// The gradient of the pictures.
///
/// With u = a x + d per channel, y = silu(u) or u, ĝ = g y'(u) w and x̂ normalised:
/// gx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)), means over the group.
pub(super) fn backward(p: Pictures<'_>, norm: GroupNorm, moments: &Moments, g: &[f32]) -> Vec<f32> {
    let (c, size, block) = (p.channels(), p.size(), p.block());
    let mut gx = vec![0.0; p.x.len()];
    let operands = p.x.par_chunks(size).zip(g.par_chunks(size));
    let pictures = gx.par_chunks_mut(size).zip(operands).with_min_len(together(size));
    pictures.enumerate().for_each(|(i, (gx, (x, g)))| {
        let moments = &moments[i * norm.groups..(i + 1) * norm.groups];
        let (scale, shift) = affine(p, norm, moments);
        let blocks = x.par_chunks(block).zip(g.par_chunks(block));
        let sums: Vec<Sums> = gx
            .par_chunks_mut(block)
            .zip(blocks)
            .with_min_len(together(block))
            .map(|(gx, (x, g))| {
                let mut sums = Sums::new(c);
                gx.copy_from_slice(g);
                if norm.then_silu {
                    times_silu_slope(x, &scale, &shift, gx);
                }
                add_sums(gx, x, &mut sums.g, &mut sums.gx);
                sums
            })
            .collect();
        let (slope, curve, offset) = gradient_terms(p, moments, &sums);
        let blocks = gx.par_chunks_mut(block).zip(x.par_chunks(block)).with_min_len(together(block));
        blocks.for_each(|(gx, x)| finish_gradient(x, &slope, &curve, &offset, gx));
    });
    gx
}

/// Per channel: u = scale · x + shift.
fn affine(p: Pictures<'_>, norm: GroupNorm, moments: &[(f32, f32)]) -> (Vec<f32>, Vec<f32>) {
    let each = p.channels() / norm.groups;
    let scale: Vec<f32> = p.weight.iter().enumerate().map(|(c, w)| w * moments[c / each].1).collect();
    let shift =
        p.bias.iter().zip(&scale).enumerate().map(|(c, (b, s))| b - moments[c / each].0 * s).collect();
    (scale, shift)
}

/// Σ g and Σ g x per channel.
struct Sums {
    g: Vec<f32>,
    gx: Vec<f32>,
}

impl Sums {
    fn new(c: usize) -> Self {
        Self { g: vec![0.0; c], gx: vec![0.0; c] }
    }
}

/// Per channel: gx = slope · g + curve · x + offset.
fn gradient_terms(p: Pictures<'_>, moments: &[(f32, f32)], sums: &[Sums]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (c, groups) = (p.channels(), moments.len());
    let each = c / groups;
    let (mut slope, mut curve, mut offset) = (vec![0.0; c], vec![0.0; c], vec![0.0; c]);
    for (group, (mean, rstd)) in moments.iter().enumerate() {
        let channels = group * each..(group + 1) * each;
        let (mut sum_g, mut sum_gx) = (0.0f64, 0.0f64);
        for s in sums {
            for i in channels.clone() {
                let w = f64::from(p.weight[i]);
                sum_g += w * f64::from(s.g[i]);
                sum_gx += w * f64::from(s.gx[i]);
            }
        }
        let (n, mean, rstd) = ((each * p.area) as f64, f64::from(*mean), f64::from(*rstd));
        let mean_g = sum_g / n;
        let mean_gxhat = (sum_gx - mean * sum_g) * rstd / n;
        for i in channels {
            slope[i] = (rstd * f64::from(p.weight[i])) as f32;
            curve[i] = (-rstd * rstd * mean_gxhat) as f32;
            offset[i] = (rstd * (mean * rstd * mean_gxhat - mean_g)) as f32;
        }
    }
    (slope, curve, offset)
}

/// Means and squared deviations of blocks, merged exactly (Chan et al.): one pass over memory, no cancellation.
fn picture_moments(x: &[f32], c: usize, block: usize, norm: GroupNorm) -> Moments {
    let blocks: Vec<(f64, Vec<f32>, Vec<f32>)> = x
        .par_chunks(block)
        .with_min_len(together(block))
        .map(|x| {
            let pixels = (x.len() / c) as f32;
            let (mut mean, mut squares) = (vec![0.0; c], vec![0.0; c]);
            add(x, &mut mean);
            mean.iter_mut().for_each(|m| *m /= pixels);
            add_deviation(x, &mean, &mut squares);
            (f64::from(pixels), mean, squares)
        })
        .collect();
    let each = c / norm.groups;
    let group = |group: usize| {
        let (mut n, mut mean, mut squares) = (0.0f64, 0.0f64, 0.0f64);
        for (pixels, means, deviations) in &blocks {
            for i in group * each..(group + 1) * each {
                let (m, s) = (f64::from(means[i]), f64::from(deviations[i]));
                let total = n + pixels;
                let delta = m - mean;
                squares += s + delta * delta * n * pixels / total;
                mean += delta * pixels / total;
                n = total;
            }
        }
        (mean as f32, (1.0 / (squares / n + norm.eps).sqrt()) as f32)
    };
    (0..norm.groups).map(group).collect()
}

// Blocks of whole pixels; the other slices hold one value per channel.
simd! {
    fn add(x: &[f32], total: &mut [f32]) {
        for x in x.chunks_exact(total.len()) {
            for (t, x) in total.iter_mut().zip(x) {
                *t += x;
            }
        }
    }

    fn add_deviation(x: &[f32], mean: &[f32], squares: &mut [f32]) {
        for x in x.chunks_exact(mean.len()) {
            for ((s, x), m) in squares.iter_mut().zip(x).zip(mean) {
                *s += (x - m) * (x - m);
            }
        }
    }

    fn normalise(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        for (y, x) in y.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
            for (((y, x), a), d) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = a * x + d;
            }
        }
    }

    fn normalise_silu(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        for (y, x) in y.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
            for (((y, x), a), d) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                let u = a * x + d;
                *y = u * math::sigmoid::<FMA>(u);
            }
        }
    }

    fn times_silu_slope(x: &[f32], scale: &[f32], shift: &[f32], g: &mut [f32]) {
        for (g, x) in g.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
            for (((g, x), a), d) in g.iter_mut().zip(x).zip(scale).zip(shift) {
                let u = a * x + d;
                let s = math::sigmoid::<FMA>(u);
                *g *= s * (1.0 + u * (1.0 - s));
            }
        }
    }

    fn add_sums(g: &[f32], x: &[f32], sum_g: &mut [f32], sum_gx: &mut [f32]) {
        for (g, x) in g.chunks_exact(sum_g.len()).zip(x.chunks_exact(sum_g.len())) {
            for (((g, x), sg), sgx) in g.iter().zip(x).zip(sum_g.iter_mut()).zip(sum_gx.iter_mut()) {
                *sg += g;
                *sgx += g * x;
            }
        }
    }

    fn finish_gradient(x: &[f32], slope: &[f32], curve: &[f32], offset: &[f32], g: &mut [f32]) {
        for (g, x) in g.chunks_exact_mut(slope.len()).zip(x.chunks_exact(slope.len())) {
            for ((((g, x), s), k), o) in g.iter_mut().zip(x).zip(slope).zip(curve).zip(offset) {
                *g = s * *g + k * x + o;
            }
        }
    }
}
