//! 3×3 convolutions with enough tiles go through [`winograd`]; the others are matrix products with the neighbourhoods of
//! the output pixels as columns, which are laid out as the product takes them and nowhere stored.
//!
//! Kernels are taken as (out, kh · kw · in), channels last.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Sizes,
    winograd::{self, Input, Kernel, Output},
};
use crate::ops::{
    cpu::{
        LANES, Lane, Mat, MatMut, Numbers, Pair, PanelsOf, Threads, dot, gemm, gemm_pairs, gemm_with,
        pack_columns, together,
    },
    linear::cpu::{biased, scale_columns},
    low_rank::BranchValues,
};

/// Whether the forward pass of a kernel with `out` channels reads x as it is stored. Transforms want f32.
pub(super) fn is_direct(s: Sizes, out: usize) -> bool {
    winograd::choose(s, out).is_none()
}

/// Whether the gradient of x reads that of y as it is stored.
pub(super) fn is_gradient_direct(s: Sizes, out: usize) -> bool {
    s.stride != 1 || is_direct(s.transposed(out), s.c)
}

/// y (b h' w', out) and z = conv(x, down) ⊙ s (b h' w', r).
pub(super) fn forward(
    x: Numbers<'_>,
    weight: Numbers<'_>,
    bias: Option<&[f32]>,
    branch: Option<&BranchValues<'_>>,
    s: Sizes,
) -> (Vec<f32>, Vec<f32>) {
    let (out, pixels) = (weight.len() / s.window(), s.pixels());
    let mut y = biased(pixels, out, bias);
    let rank = branch.map_or(0, |b| b.scale.len());
    let mut z = vec![0.0; pixels * rank];
    if let Some(variant) = winograd::choose(s, out) {
        let mut outputs =
            vec![Output { values: &mut y, channels: out, kernels: vec![Kernel::Forward(weight)] }];
        if let Some(branch) = branch {
            let kernels = vec![Kernel::Forward(Numbers::F32(&branch.down))];
            outputs.push(Output { values: &mut z, channels: rank, kernels });
        }
        winograd::add(variant, &[Input { values: &x.wide(), sizes: s }], &mut outputs);
    } else {
        direct(x, weight, &mut y, bias.is_some(), s);
        if let Some(branch) = branch {
            direct(x, Numbers::F32(&branch.down), &mut z, false, s);
        }
    }
    if let Some(BranchValues { up, scale, .. }) = branch {
        scale_columns(&mut z, scale);
        let (rows, up) = (Mat::new(&z, pixels, rank), Mat::new(up, out, rank).t());
        gemm(MatMut::new(&mut y, pixels, out), true, rows, up, 1.0, Threads::All);
    }
    (y, z)
}

/// The direct sum, to y (b h' w', out).
fn direct(x: Numbers<'_>, weight: Numbers<'_>, y: &mut [f32], keep: bool, s: Sizes) {
    let (window, pixels) = (s.window(), s.pixels());
    let out = weight.len() / window;
    let (y, kernel) = (MatMut::new(y, pixels, out).t(), Mat::of(weight, out, window, window));
    match (x, weight, dot()) {
        // Pairs of channels.
        (Numbers::Bf16(x), Numbers::Bf16(_), Some(dot)) if s.c.is_multiple_of(2) => {
            gemm_pairs(dot, y, kernel, (keep, 1.0), Threads::All, |part, columns, panels| {
                pack_neighbourhoods::<Pair>(x, s, part, columns, panels);
            });
        }
        _ => {
            let x = x.wide();
            gemm_with(y, keep, kernel, 1.0, Threads::All, |part, columns, panels| {
                pack_neighbourhoods::<f32>(&x, s, part, columns, panels);
            });
        }
    }
}

/// A part of the neighbourhoods of some output pixels, as columns.
fn pack_neighbourhoods<L: Lane>(
    x: &[L::Number],
    s: Sizes,
    part: Range<usize>,
    pixels: Range<usize>,
    panels: &mut PanelsOf<L>,
) {
    let starts = pixels.clone().step_by(LANES);
    for (first, panel) in starts.zip(panels.clear(part.len(), pixels.len())) {
        let mut at = part.start;
        while at < part.end {
            // The part of one tap: contiguous channels of one pixel each.
            let (tap, channel) = (at / s.c, at % s.c);
            let count = (s.c - channel).min(part.end - at);
            let sources = std::array::from_fn(|lane| {
                let pixel = Some(first + lane).filter(|pixel| *pixel < pixels.end)?;
                Some(s.seen(pixel, tap)? * s.c + channel)
            });
            pack_columns(x, &sources, count, &mut panel[(at - part.start) / L::NUMBERS * LANES..]);
            at += count;
        }
    }
}

/// (out, in, taps) to (out, taps, in).
pub(super) fn channels_last(weight: &[f32], c: usize, taps: usize) -> Vec<f32> {
    let mut turned = vec![0.0; weight.len()];
    let rows =
        turned.par_chunks_mut(c * taps).zip(weight.par_chunks(c * taps)).with_min_len(together(c * taps));
    rows.for_each(|(turned, weight)| {
        for (tap, turned) in turned.chunks_exact_mut(c).enumerate() {
            turned.iter_mut().zip(weight[tap..].iter().step_by(taps)).for_each(|(t, w)| *t = *w);
        }
    });
    turned
}

/// Σ over `terms` (gradient, kernel) of the gradient of x, (b h w, in).
pub(super) fn input_gradient(terms: &[(Numbers<'_>, Numbers<'_>)], s: Sizes) -> Vec<f32> {
    if s.stride != 1 {
        return scattered_gradient(terms, s);
    }
    let outs: Vec<usize> = terms.iter().map(|(_, weight)| weight.len() / s.window()).collect();
    let mut gx = vec![0.0; s.b * s.h * s.w * s.c];
    let first = outs.first().copied().unwrap_or_default();
    if let Some(variant) = winograd::choose(s.transposed(first), s.c) {
        let wide: Vec<_> = terms.iter().map(|(g, _)| g.wide()).collect();
        let inputs: Vec<Input<'_>> =
            wide.iter().zip(&outs).map(|(g, out)| Input { values: g, sizes: s.transposed(*out) }).collect();
        let kernels = terms.iter().map(|(_, weight)| Kernel::Backward(*weight)).collect();
        winograd::add(variant, &inputs, &mut [Output { values: &mut gx, channels: s.c, kernels }]);
        return gx;
    }
    for (i, ((g, weight), out)) in terms.iter().zip(outs).enumerate() {
        direct_gradient(*g, *weight, &mut gx, i > 0, (s, out));
    }
    gx
}

/// Stride 1: a convolution of the gradient with the kernel turned by 180 degrees.
fn direct_gradient(
    g: Numbers<'_>,
    weight: Numbers<'_>,
    gx: &mut [f32],
    keep: bool,
    (s, out): (Sizes, usize),
) {
    let (turned, taps) = (s.transposed(out), s.kh * s.kw);
    let (pixels, depth) = (turned.pixels(), taps * out);
    let gx = MatMut::new(gx, pixels, s.c);
    // The kernel's row for a line of k: where it starts.
    let start = |line: usize| (line % out * taps + taps - 1 - line / out) * s.c;
    let row = |line, columns: &Range<usize>| start(line) + columns.start..start(line) + columns.end;
    // Pictures that come here are small, or the gradient's channels are few.
    match (g, weight, dot()) {
        (Numbers::Bf16(g), Numbers::Bf16(weight), Some(dot)) => {
            let mut rows = Vec::new();
            gather(g, turned, 0, pixels, &mut rows);
            let rows = Mat::of(Numbers::Bf16(&rows), pixels, depth, depth);
            gemm_pairs(dot, gx, rows, (keep, 1.0), Threads::All, |part, columns, panels| {
                panels.fill_rows(part.len(), columns.len(), |line| &weight[row(part.start + line, &columns)]);
            });
        }
        _ => {
            let mut rows = Vec::new();
            gather(&g.wide(), turned, 0, pixels, &mut rows);
            let rows = Mat::new(&rows, pixels, depth);
            gemm_with(gx, keep, rows, 1.0, Threads::All, |part, columns, panels| {
                panels.fill_rows(part.len(), columns.len(), |line| {
                    weight.part(row(part.start + line, &columns))
                });
            });
        }
    }
}

/// Any stride: the gradients of all neighbourhoods, added where they came from. Pictures in parallel.
fn scattered_gradient(terms: &[(Numbers<'_>, Numbers<'_>)], s: Sizes) -> Vec<f32> {
    let (window, area) = (s.window(), s.out_h * s.out_w);
    let mut gx = vec![0.0; s.b * s.h * s.w * s.c];
    let threads = if s.b > 1 { Threads::One } else { Threads::All };
    let tile = s.tile();
    gx.par_chunks_mut(s.h * s.w * s.c).enumerate().for_each_init(
        Vec::new,
        |columns: &mut Vec<f32>, (b, gx)| {
            for first in (0..area).step_by(tile) {
                let rows = tile.min(area - first);
                columns.resize(rows * window, 0.0);
                for (term, (g, weight)) in terms.iter().enumerate() {
                    let out = weight.len() / window;
                    let start = (b * area + first) * out;
                    let g = Mat::of(g.part(start..start + rows * out), rows, out, out);
                    let weight = Mat::of(*weight, out, window, window);
                    gemm(MatMut::new(columns, rows, window), term > 0, g, weight, 1.0, threads);
                }
                for (row, columns) in columns.chunks_exact(window).enumerate() {
                    s.each_run(first + row, |at, run| {
                        let target = &mut gx[at..at + run.len()];
                        target.iter_mut().zip(&columns[run]).for_each(|(t, c)| *t += c);
                    });
                }
            }
        },
    );
    gx
}

/// gzᵀ · neighbourhoods of x: the gradient of the branch's kernel, (r, kh · kw · in).
pub(super) fn down_gradient(x: &[f32], gz: &[f32], rank: usize, s: Sizes) -> Vec<f32> {
    /// Partial sums; a constant, so that the result does not depend on the thread count.
    const PARTS: usize = 16;
    let window = s.window();
    let tile = s.tile();
    let tiles = s.pixels().div_ceil(tile);
    let each = tiles.div_ceil(PARTS);
    let parts: Vec<Vec<f32>> = (0..tiles.div_ceil(each))
        .into_par_iter()
        .map_init(Vec::new, |columns, part| {
            let mut sum = vec![0.0; rank * window];
            for i in part * each..((part + 1) * each).min(tiles) {
                let rows = tile.min(s.pixels() - i * tile);
                gather(x, s, i * tile, rows, columns);
                let gz = Mat::new(&gz[i * tile * rank..], rows, rank);
                let columns = Mat::new(columns, rows, window);
                gemm(MatMut::new(&mut sum, rank, window), true, gz.t(), columns, 1.0, Threads::One);
            }
            sum
        })
        .collect();
    let mut sum = vec![0.0; rank * window];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    sum
}

/// The neighbourhoods of `rows` output pixels from `first` on, one row each; zeros outside of the picture.
fn gather<T: Copy + Default>(x: &[T], s: Sizes, first: usize, rows: usize, columns: &mut Vec<T>) {
    let (window, area) = (s.window(), s.out_h * s.out_w);
    columns.resize(rows * window, T::default());
    for (row, columns) in columns.chunks_exact_mut(window).enumerate() {
        let pixel = first + row;
        let x = &x[pixel / area * s.h * s.w * s.c..];
        let mut filled = 0;
        s.each_run(pixel % area, |at, run| {
            columns[filled..run.start].fill(T::default());
            filled = run.end;
            columns[run.clone()].copy_from_slice(&x[at..at + run.len()]);
        });
        columns[filled..].fill(T::default());
    }
}

impl Sizes {
    /// Values in one neighbourhood.
    fn window(&self) -> usize {
        self.kh * self.kw * self.c
    }

    /// Output pixels of all pictures.
    fn pixels(&self) -> usize {
        self.b * self.out_h * self.out_w
    }

    /// Output pixels whose neighbourhoods are laid out together. It depends on the shape only.
    fn tile(&self) -> usize {
        /// Values: half a megabyte.
        const BUFFER: usize = 1 << 17;
        (BUFFER / self.window()).clamp(64, 256).next_multiple_of(16)
    }

    /// The pixel of the input a tap of an output pixel sees; none in the padding.
    #[inline(always)]
    fn seen(&self, pixel: usize, tap: usize) -> Option<usize> {
        let area = self.out_h * self.out_w;
        let (b, oy, ox) = (pixel / area, pixel % area / self.out_w, pixel % self.out_w);
        let row = (oy * self.stride + tap / self.kw).checked_sub(self.pad_top).filter(|row| *row < self.h)?;
        let column = (ox * self.stride + tap % self.kw).checked_sub(self.pad_left).filter(|c| *c < self.w)?;
        Some((b * self.h + row) * self.w + column)
    }

    /// The convolution of the output's gradient (`out` channels) that gives the input's, for stride 1.
    fn transposed(&self, out: usize) -> Self {
        Self {
            h: self.out_h,
            w: self.out_w,
            c: out,
            pad_top: self.kh - 1 - self.pad_top,
            pad_left: self.kw - 1 - self.pad_left,
            out_h: self.h,
            out_w: self.w,
            ..*self
        }
    }

    /// Calls `f` with the runs of contiguous values in the neighbourhood of an output pixel: where they are in the
    /// picture and in the neighbourhood.
    #[inline(always)]
    fn each_run(&self, pixel: usize, mut f: impl FnMut(usize, Range<usize>)) {
        let (oy, ox) = (pixel / self.out_w, pixel % self.out_w);
        let (top, left) = (oy * self.stride, ox * self.stride); // in the padded picture
        let skipped = self.pad_left.saturating_sub(left).min(self.kw);
        let column = left + skipped - self.pad_left.min(left + skipped);
        let end = self.kw.min((self.w + self.pad_left).saturating_sub(left));
        if end <= skipped {
            return;
        }
        for ky in 0..self.kh {
            let Some(row) = (top + ky).checked_sub(self.pad_top).filter(|row| *row < self.h) else {
                continue;
            };
            let start = (ky * self.kw + skipped) * self.c;
            f((row * self.w + column) * self.c, start..start + (end - skipped) * self.c);
        }
    }
}
