//! Large 3×3 convolutions go through [`winograd`], the others are implicit matrix products: a tile of output pixels at a time, its neighbourhoods are laid out as rows
//! (runs of contiguous channels) in a buffer that fits the cache, then multiplied by the kernel.
//!
//! Kernels are taken as (out, kh · kw · in), channels last.

use rayon::prelude::*;

use super::{
    Sizes,
    winograd::{self, Kernel, Term},
};
use crate::ops::{
    cpu::{Mat, MatMut, Threads, gemm, products_together, together},
    linear::cpu::scale_columns,
    low_rank::BranchValues,
};

/// y (b h' w', out) and z = conv(x, down) ⊙ s (b h' w', r).
pub(super) fn forward(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    branch: Option<&BranchValues<'_>>,
    s: Sizes,
) -> (Vec<f32>, Vec<f32>) {
    let out = weight.len() / s.window();
    if !winograd::pays(s, out) {
        return gathered(x, weight, bias, branch, s);
    }
    let mut y = vec![0.0; s.pixels() * out];
    if let Some(bias) = bias {
        y.par_chunks_mut(out).with_min_len(together(out)).for_each(|y| y.copy_from_slice(bias));
    }
    let term = Term { input: x, sizes: s, kernel: Kernel::new(weight, s.c) };
    let Some(BranchValues { down, up, scale }) = branch else {
        winograd::add(&[term], &mut y, None);
        return (y, Vec::new());
    };
    let rank = scale.len();
    let mut z = vec![0.0; s.pixels() * rank];
    winograd::add(&[term], &mut y, Some((&Kernel::new(down, s.c), &mut z)));
    scale_columns(&mut z, scale);
    let (y_rows, z_rows) = (MatMut::new(&mut y, s.pixels(), out), Mat::new(&z, s.pixels(), rank));
    gemm(y_rows, true, z_rows, Mat::new(up, out, rank).t(), 1.0, Threads::All);
    (y, z)
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

/// The direct sum, tile by tile.
fn gathered(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    branch: Option<&BranchValues<'_>>,
    s: Sizes,
) -> (Vec<f32>, Vec<f32>) {
    let window = s.window();
    let (out, rank) = (weight.len() / window, branch.map_or(1, |b| b.scale.len()));
    let branch = branch.map(|b| (&*b.down, &*b.up, &*b.scale));
    // At least one value a pixel, so that the tiles of y and z are as many.
    let (mut y, mut z) = (vec![0.0; s.pixels() * out], vec![0.0; s.pixels() * rank]);
    let (tile, threads) = s.tiling();
    let tiles = y.par_chunks_mut(tile * out).zip(z.par_chunks_mut(tile * rank));
    let tiles = tiles.with_min_len(products_together(tile * window * out));
    tiles.enumerate().for_each_init(Vec::new, |columns, (i, (y, z))| {
        let rows = y.len() / out;
        gather(x, s, i * tile, rows, columns);
        let columns = Mat::new(columns, rows, window);
        if let Some(bias) = bias {
            y.chunks_exact_mut(out).for_each(|y| y.copy_from_slice(bias));
        }
        gemm(
            MatMut::new(y, rows, out),
            bias.is_some(),
            columns,
            Mat::new(weight, out, window).t(),
            1.0,
            threads,
        );
        if let Some((down, up, scale)) = branch {
            gemm(MatMut::new(z, rows, rank), false, columns, Mat::new(down, rank, window).t(), 1.0, threads);
            scale_columns(z, scale);
            let (z, up) = (Mat::new(z, rows, rank), Mat::new(up, out, rank));
            gemm(MatMut::new(y, rows, out), true, z, up.t(), 1.0, threads);
        }
    });
    (y, z)
}

/// Σ over `terms` (gradient, kernel) of the gradient of x, (b h w, in).
pub(super) fn input_gradient(terms: &[(&[f32], &[f32])], s: Sizes) -> Vec<f32> {
    if s.stride != 1 {
        return scattered_gradient(terms, s);
    }
    let outs: Vec<usize> = terms.iter().map(|(_, weight)| weight.len() / s.window()).collect();
    if !winograd::pays(s.transposed(outs.first().copied().unwrap_or_default()), s.c) {
        return gathered_gradient(terms, s);
    }
    let mut gx = vec![0.0; s.b * s.h * s.w * s.c];
    let terms: Vec<Term<'_>> = terms
        .iter()
        .zip(&outs)
        .map(|((input, weight), out)| Term {
            input,
            sizes: s.transposed(*out),
            kernel: Kernel::backward(weight, s.c),
        })
        .collect();
    winograd::add(&terms, &mut gx, None);
    gx
}

/// Stride 1: a convolution of the gradient with the flipped kernel.
fn gathered_gradient(terms: &[(&[f32], &[f32])], s: Sizes) -> Vec<f32> {
    let terms: Vec<(&[f32], Sizes, Vec<f32>)> = terms
        .iter()
        .map(|(g, weight)| {
            let out = weight.len() / s.window();
            (*g, s.transposed(out), flipped(weight, out, s))
        })
        .collect();
    let mut gx = vec![0.0; s.b * s.h * s.w * s.c];
    // All terms share a tile; the first is the widest.
    let (tile, threads) = terms.first().map_or((1, Threads::One), |(_, s, _)| s.tiling());
    let window = terms.first().map_or(1, |(_, s, _)| s.window());
    let tiles = gx.par_chunks_mut(tile * s.c).with_min_len(products_together(tile * window * s.c));
    tiles.enumerate().for_each_init(Vec::new, |columns, (i, gx)| {
        let rows = gx.len() / s.c;
        for (term, (g, sizes, weight)) in terms.iter().enumerate() {
            gather(g, *sizes, i * tile, rows, columns);
            let (columns, weight) =
                (Mat::new(columns, rows, sizes.window()), Mat::new(weight, sizes.window(), s.c));
            gemm(MatMut::new(gx, rows, s.c), term > 0, columns, weight, 1.0, threads);
        }
    });
    gx
}

/// The kernel (out, kh, kw, in) as (kh, kw, out, in), turned by 180 degrees.
fn flipped(weight: &[f32], out: usize, s: Sizes) -> Vec<f32> {
    let taps = s.kh * s.kw;
    let mut packed = vec![0.0; weight.len()];
    packed.par_chunks_mut(out * s.c).enumerate().for_each(|(tap, packed)| {
        let source = taps - 1 - tap;
        for (o, packed) in packed.chunks_exact_mut(s.c).enumerate() {
            packed.copy_from_slice(&weight[(o * taps + source) * s.c..][..s.c]);
        }
    });
    packed
}

/// Any stride: the gradients of all neighbourhoods, added where they came from. Pictures in parallel.
fn scattered_gradient(terms: &[(&[f32], &[f32])], s: Sizes) -> Vec<f32> {
    let (window, area) = (s.window(), s.out_h * s.out_w);
    let mut gx = vec![0.0; s.b * s.h * s.w * s.c];
    let threads = if s.b > 1 { Threads::One } else { Threads::All };
    let (tile, _) = s.tiling();
    gx.par_chunks_mut(s.h * s.w * s.c).enumerate().for_each_init(
        Vec::new,
        |columns: &mut Vec<f32>, (b, gx)| {
            for first in (0..area).step_by(tile) {
                let rows = tile.min(area - first);
                columns.resize(rows * window, 0.0);
                for (term, (g, weight)) in terms.iter().enumerate() {
                    let out = weight.len() / window;
                    let g = Mat::new(&g[(b * area + first) * out..], rows, out);
                    let weight = Mat::new(weight, out, window);
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
    let (tile, _) = s.tiling();
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
fn gather(x: &[f32], s: Sizes, first: usize, rows: usize, columns: &mut Vec<f32>) {
    let (window, area) = (s.window(), s.out_h * s.out_w);
    columns.resize(rows * window, 0.0);
    for (row, columns) in columns.chunks_exact_mut(window).enumerate() {
        let pixel = first + row;
        let x = &x[pixel / area * s.h * s.w * s.c..];
        let mut filled = 0;
        s.each_run(pixel % area, |at, run| {
            columns[filled..run.start].fill(0.0);
            filled = run.end;
            columns[run.clone()].copy_from_slice(&x[at..at + run.len()]);
        });
        columns[filled..].fill(0.0);
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

    /// Output pixels of a tile, and who computes it. Tiles depend on the shape only.
    fn tiling(&self) -> (usize, Threads) {
        /// Values of the neighbourhoods of a tile: half a megabyte.
        const BUFFER: usize = 1 << 17;
        let tile = (BUFFER / self.window()).clamp(64, 256).next_multiple_of(16);
        let enough = self.pixels() / tile >= rayon::current_num_threads();
        (tile, if enough { Threads::One } else { Threads::All })
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
    fn each_run(&self, pixel: usize, mut f: impl FnMut(usize, std::ops::Range<usize>)) {
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
