//! 3×3 convolutions at stride 1 with a quarter of the multiplications: F(4×4, 3×3)
//! (Lavin and Gray, <https://arxiv.org/abs/1509.09308>).
//!
//! A 6×6 neighbourhood d and a kernel k give 4×4 outputs Aᵀ[(G k Gᵀ) ⊙ (Bᵀ d B)]A. Summing over channels makes the
//! product in the middle 36 matrix products. In f32 the result differs from a direct sum by a few 1e-6 of its scale.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::Sizes;
use crate::ops::cpu::{Mat, MatMut, Threads, gemm, products_together, simd, together};

/// Values of one transformed neighbourhood.
const POINTS: usize = 36;
/// Pixels a tile is wide and high.
const TILE: usize = 4;
/// Channels transformed at a time.
const LANES: usize = 16;
/// Tiles of a task: enough rows for an efficient product, few enough for the cache.
const TASK: usize = 48;

/// Whether this is worth it for `out` channels: small pictures are mostly padding, and few tiles do not repay
/// transforming the kernel.
pub(super) fn pays(s: Sizes, out: usize) -> bool {
    let tiles = s.b * s.out_h.div_ceil(TILE) * s.out_w.div_ceil(TILE);
    let direct = 9 * s.b * s.out_h * s.out_w;
    // Transforming the kernel takes as long as about forty tiles.
    let ours = POINTS * (tiles + tiles / 2 + 40);
    (s.kh, s.kw, s.stride) == (3, 3, 1) && s.c >= LANES && out >= LANES && ours < direct
}

/// One convolution of a sum: an input (b, h, w, c) and its kernel.
pub(super) struct Term<'a> {
    pub input: &'a [f32],
    pub sizes: Sizes,
    pub kernel: Kernel,
}

/// A transformed kernel, (out, 36, c), or (c, 36, out) for the backward pass.
pub(super) struct Kernel {
    points: Vec<f32>,
    out: usize,
    c: usize,
    backward: bool,
}

impl Kernel {
    /// From (out, 3, 3, c).
    pub fn new(weight: &[f32], c: usize) -> Self {
        let out = weight.len() / (9 * c);
        Self { points: transform_kernel(weight, c, [0, 1, 2, 3, 4, 5, 6, 7, 8]), out, c, backward: false }
    }

    /// The kernel that takes the gradient of the output of (out, 3, 3, c) to that of the input.
    pub fn backward(weight: &[f32], c: usize) -> Self {
        let out = weight.len() / (9 * c);
        Self {
            points: transform_kernel(weight, c, [8, 7, 6, 5, 4, 3, 2, 1, 0]),
            out: c,
            c: out,
            backward: true,
        }
    }

    /// (c, out) at one of the 36 points.
    fn at(&self, point: usize) -> Mat<'_> {
        let (rows, width) = if self.backward { (self.c, self.out) } else { (self.out, self.c) };
        let values = Mat::strided(&self.points[point * width..], rows, width, POINTS * width);
        if self.backward { values } else { values.t() }
    }
}

/// Memory of transformed kernels, used again: fresh pages cost more than the transform.
static SPARE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

impl Drop for Kernel {
    fn drop(&mut self) {
        /// A forward pass with a branch needs two, a backward pass too.
        const KEPT: usize = 4;
        /// Values; larger ones are given back.
        const LARGEST: usize = 1 << 24;
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < KEPT && self.points.capacity() <= LARGEST {
            spare.push(std::mem::take(&mut self.points));
        }
    }
}

/// Adds the sum of the convolutions to y (b, h', w', out), whose sizes they share; `side` is a second kernel on the input
/// of the first term, and where its output (b, h', w', r) is added.
pub(super) fn add(terms: &[Term<'_>], y: &mut [f32], side: Option<(&Kernel, &mut [f32])>) {
    let Some(first) = terms.first() else {
        return;
    };
    let (s, out) = (first.sizes, first.kernel.out);
    let pixels = s.b * s.out_h * s.out_w;
    let mut unused = Vec::new();
    let (side, z) = match side {
        Some((kernel, z)) => (Some(kernel), z),
        None => {
            // One value a pixel, so that y and z split alike.
            unused.resize(pixels, 0.0);
            (None, unused.as_mut_slice())
        }
    };
    let job = Job { terms, side };
    let rank = side.map_or(1, |kernel| kernel.out);
    let across = s.out_w.div_ceil(TILE);
    let per_picture = across * s.out_h.div_ceil(TILE);
    let area = s.out_h * s.out_w;
    if per_picture >= TASK {
        // Some rows of tiles of one picture.
        let rows = TASK.div_ceil(across) * TILE;
        let pictures = y.par_chunks_mut(area * out).zip(z.par_chunks_mut(area * rank));
        pictures.enumerate().for_each(|(b, (y, z))| {
            let parts = y.par_chunks_mut(rows * s.out_w * out).zip(z.par_chunks_mut(rows * s.out_w * rank));
            parts.enumerate().for_each_init(Buffers::default, |buffers, (i, (y, z))| {
                let tiles = tiles_of(b..b + 1, i * rows..(i * rows + y.len() / (s.out_w * out)), s);
                buffers.run(&job, &tiles, y, z);
            });
        });
    } else {
        let pictures = TASK / per_picture.max(1);
        let tasks = y.par_chunks_mut(pictures * area * out).zip(z.par_chunks_mut(pictures * area * rank));
        let tasks = tasks.with_min_len(products_together(POINTS * pictures * per_picture * s.c * out));
        tasks.enumerate().for_each_init(Buffers::default, |buffers, (i, (y, z))| {
            let first = i * pictures;
            let tiles = tiles_of(first..first + y.len() / (area * out), 0..s.out_h, s);
            buffers.run(&job, &tiles, y, z);
        });
    }
}

/// What every task does.
struct Job<'a> {
    terms: &'a [Term<'a>],
    side: Option<&'a Kernel>,
}

/// A tile of output pixels.
#[derive(Debug, Clone, Copy)]
struct Tile {
    picture: usize,
    top: usize,
    left: usize,
    /// The first value of its first pixel in the task's part of y, in pixels.
    at: usize,
    rows: usize,
    columns: usize,
}

fn tiles_of(pictures: std::ops::Range<usize>, rows: std::ops::Range<usize>, s: Sizes) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let height = rows.len();
    for (i, picture) in pictures.enumerate() {
        for top in rows.clone().step_by(TILE) {
            for left in (0..s.out_w).step_by(TILE) {
                let at = (i * height + top - rows.start) * s.out_w + left;
                let (rows, columns) = (TILE.min(rows.end - top), TILE.min(s.out_w - left));
                tiles.push(Tile { picture, top, left, at, rows, columns });
            }
        }
    }
    tiles
}

#[derive(Default)]
struct Buffers {
    /// Transformed neighbourhoods, (36, tiles, c).
    inputs: Vec<f32>,
    /// Transformed outputs, (36, tiles, out).
    outputs: Vec<f32>,
}

impl Buffers {
    fn run(&mut self, job: &Job<'_>, tiles: &[Tile], y: &mut [f32], z: &mut [f32]) {
        for (i, term) in job.terms.iter().enumerate() {
            self.inputs.resize(POINTS * tiles.len() * term.kernel.c, 0.0);
            transform_inputs(term.input, term.sizes, tiles, &mut self.inputs);
            if let (0, Some(side)) = (i, job.side) {
                self.multiply(side, tiles.len(), false);
                add_outputs(&self.outputs, side.out, term.sizes.out_w, tiles, z);
            }
            self.multiply(&term.kernel, tiles.len(), i > 0);
        }
        if let Some(first) = job.terms.first() {
            add_outputs(&self.outputs, first.kernel.out, first.sizes.out_w, tiles, y);
        }
    }

    fn multiply(&mut self, kernel: &Kernel, tiles: usize, keep: bool) {
        let (c, out) = (kernel.c, kernel.out);
        self.outputs.resize(POINTS * tiles * out, 0.0);
        let inputs = self.inputs.chunks_exact(tiles * c);
        for (point, (input, output)) in inputs.zip(self.outputs.chunks_exact_mut(tiles * out)).enumerate() {
            let (output, input) = (MatMut::new(output, tiles, out), Mat::new(input, tiles, c));
            gemm(output, keep, input, kernel.at(point), 1.0, Threads::One);
        }
    }
}

/// G k Gᵀ for every pair of channels: (out, 9, c) to (out, 36, c), taps taken in the order given.
fn transform_kernel(weight: &[f32], c: usize, taps: [usize; 9]) -> Vec<f32> {
    let mut points = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    points.resize(weight.len() / 9 * POINTS, 0.0);
    let tasks =
        points.par_chunks_mut(POINTS * c).zip(weight.par_chunks(9 * c)).with_min_len(together(POINTS * c));
    tasks.for_each(|(points, weight)| transform_kernel_row(weight, c, &taps, points));
    points
}

#[inline(always)]
fn kernel_points(k: [f32; 3]) -> [f32; 6] {
    let (even, odd) = (k[0] + k[2], k[1]);
    let (wide, half) = (k[0] / 24.0 + k[2] / 6.0, k[1] / 12.0);
    [k[0] / 4.0, (-even - odd) / 6.0, (odd - even) / 6.0, wide + half, wide - half, k[2]]
}

#[inline(always)]
fn input_points(d: [f32; 6]) -> [f32; 6] {
    let (a, b) = (d[4] - 4.0 * d[2], d[3] - 4.0 * d[1]);
    let (e, f) = (d[4] - d[2], 2.0 * (d[3] - d[1]));
    [4.0 * d[0] - 5.0 * d[2] + d[4], a + b, a - b, e + f, e - f, 4.0 * d[1] - 5.0 * d[3] + d[5]]
}

#[inline(always)]
fn output_values(m: [f32; 6]) -> [f32; 4] {
    let (p, q, r, s) = (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]);
    [m[0] + p + r, q + 2.0 * s, p + 4.0 * r, q + 8.0 * s + m[5]]
}

simd! {
    /// (9, c) to (36, c).
    fn transform_kernel_row(weight: &[f32], c: usize, taps: &[usize; 9], points: &mut [f32]) {
        let mut k = [[0.0f32; LANES]; 9];
        let mut t = [[0.0f32; LANES]; 18];
        let mut values = [[0.0f32; LANES]; POINTS];
        for first in (0..c).step_by(LANES) {
            let width = LANES.min(c - first);
            for (k, tap) in k.iter_mut().zip(taps) {
                k[..width].copy_from_slice(&weight[tap * c + first..][..width]);
            }
            for x in 0..3 {
                for l in 0..LANES {
                    let column = kernel_points([k[x][l], k[3 + x][l], k[6 + x][l]]);
                    for y in 0..6 {
                        t[y * 3 + x][l] = column[y];
                    }
                }
            }
            for y in 0..6 {
                for l in 0..LANES {
                    let row = kernel_points([t[y * 3][l], t[y * 3 + 1][l], t[y * 3 + 2][l]]);
                    for x in 0..6 {
                        values[y * 6 + x][l] = row[x];
                    }
                }
            }
            for (point, values) in values.iter().enumerate() {
                points[point * c + first..][..width].copy_from_slice(&values[..width]);
            }
        }
    }

    /// Bᵀ d B for every tile and channel, to (36, tiles, c).
    fn transform_inputs(x: &[f32], s: Sizes, tiles: &[Tile], points: &mut [f32]) {
        let mut d = [[0.0f32; LANES]; POINTS];
        let mut t = [[0.0f32; LANES]; POINTS];
        for (i, tile) in tiles.iter().enumerate() {
            for first in (0..s.c).step_by(LANES) {
                let width = LANES.min(s.c - first);
                for (at, d) in d.iter_mut().enumerate() {
                    let (row, column) = (tile.top + at / 6, tile.left + at % 6); // in the padded picture
                    let inside = (s.pad_top..s.h + s.pad_top).contains(&row)
                        && (s.pad_left..s.w + s.pad_left).contains(&column);
                    *d = [0.0; LANES];
                    if inside {
                        let pixel = (tile.picture * s.h + row - s.pad_top) * s.w + column - s.pad_left;
                        let source = &x[pixel * s.c + first..][..width];
                        match <&[f32; LANES]>::try_from(source) {
                            Ok(source) => *d = *source,
                            Err(_) => d[..width].copy_from_slice(source),
                        }
                    }
                }
                for x in 0..6 {
                    for l in 0..LANES {
                        let column = input_points([d[x][l], d[6 + x][l], d[12 + x][l], d[18 + x][l], d[24 + x][l], d[30 + x][l]]);
                        for y in 0..6 {
                            t[y * 6 + x][l] = column[y];
                        }
                    }
                }
                for y in 0..6 {
                    for l in 0..LANES {
                        let t = &t[y * 6..y * 6 + 6];
                        let row = input_points([t[0][l], t[1][l], t[2][l], t[3][l], t[4][l], t[5][l]]);
                        for x in 0..6 {
                            d[y * 6 + x][l] = row[x];
                        }
                    }
                }
                for (point, d) in d.iter().enumerate() {
                    let target = &mut points[(point * tiles.len() + i) * s.c + first..][..width];
                    target.copy_from_slice(&d[..width]);
                }
            }
        }
    }

    /// y += Aᵀ m A for every tile and channel.
    fn add_outputs(points: &[f32], out: usize, out_w: usize, tiles: &[Tile], y: &mut [f32]) {
        let mut m = [[0.0f32; LANES]; POINTS];
        let mut t = [[0.0f32; LANES]; 24];
        let mut values = [[0.0f32; LANES]; 16];
        for (i, tile) in tiles.iter().enumerate() {
            for first in (0..out).step_by(LANES) {
                let width = LANES.min(out - first);
                for (point, m) in m.iter_mut().enumerate() {
                    let source = &points[(point * tiles.len() + i) * out + first..][..width];
                    match <&[f32; LANES]>::try_from(source) {
                        Ok(source) => *m = *source,
                        Err(_) => m[..width].copy_from_slice(source),
                    }
                }
                for x in 0..6 {
                    for l in 0..LANES {
                        let column = output_values([m[x][l], m[6 + x][l], m[12 + x][l], m[18 + x][l], m[24 + x][l], m[30 + x][l]]);
                        for y in 0..4 {
                            t[y * 6 + x][l] = column[y];
                        }
                    }
                }
                for y in 0..4 {
                    for l in 0..LANES {
                        let t = &t[y * 6..y * 6 + 6];
                        let row = output_values([t[0][l], t[1][l], t[2][l], t[3][l], t[4][l], t[5][l]]);
                        for x in 0..4 {
                            values[y * 4 + x][l] = row[x];
                        }
                    }
                }
                for row in 0..tile.rows {
                    for column in 0..tile.columns {
                        let pixel = tile.at + row * out_w + column;
                        let target = &mut y[pixel * out + first..][..width];
                        target.iter_mut().zip(&values[row * TILE + column]).for_each(|(y, v)| *y += v);
                    }
                }
            }
        }
    }
}
