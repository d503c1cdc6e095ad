//! 3×3 convolutions at stride 1 with a quarter of the multiplications: F(4×4, 3×3)
//! (Lavin and Gray, <https://arxiv.org/abs/1509.09308>).
//!
//! A 6×6 neighbourhood d and a kernel k give 4×4 outputs Aᵀ[(G k Gᵀ) ⊙ (Bᵀ d B)]A. Summing over channels makes the
//! product in the middle 36 matrix products. In f32 the result differs from a direct sum by a few 1e-6 of its scale.
//!
//! A chunk of tiles is transformed once, for all output channels; the kernel a block of channels at a time, just before
//! it is used, so that it never leaves the cache and is nowhere stored.

use std::ops::Range;

use rayon::prelude::*;

use super::Sizes;
use crate::ops::cpu::{LANES, Mat, MatMut, Numbers, Packed, Shared, gemm_packed, prefetch, simd};

/// Values of one transformed neighbourhood.
const POINTS: usize = 36;
/// Pixels a tile is wide and high.
const TILE: usize = 4;
/// Channels transformed at a time.
const WIDTH: usize = 8;
/// Output channels whose kernels are transformed together.
const ROWS: usize = 24;
/// Input channels of them at a time: what is transformed stays in the second cache.
const DEPTH: usize = 80;
/// Tiles of a chunk at most.
const TILES: usize = 64;

/// Whether this is worth it for `out` channels: in small pictures there are fewer tiles than lanes.
pub(super) fn pays(s: Sizes, out: usize) -> bool {
    let tiles = s.b * s.out_h.div_ceil(TILE) * s.out_w.div_ceil(TILE);
    let direct = 9 * (s.b * s.out_h * s.out_w).next_multiple_of(LANES);
    // Transforming the kernel takes as long as about two tiles.
    let ours = POINTS * (tiles.next_multiple_of(LANES) + 2);
    (s.kh, s.kw, s.stride) == (3, 3, 1) && s.c >= WIDTH && out >= WIDTH && ours < direct
}

/// What is convolved: pictures (b, h, w, c).
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub values: &'a [f32],
    pub sizes: Sizes,
}

/// A kernel for one input.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kernel<'a> {
    /// (out, 3, 3, c)
    Forward(Numbers<'a>),
    /// Takes the gradient of the output of (c, 3, 3, out) to that of its input.
    Backward(Numbers<'a>),
}

impl Kernel<'_> {
    /// Asks for a share of the values that are used next: they lie scattered, and memory is slow to find them.
    fn prefetch(self, (out, c): (usize, usize), rows: &Range<usize>, depth: &Range<usize>, share: usize) {
        let (weight, outer, width, inner) = match self {
            Self::Forward(weight) => (weight, rows, c, depth),
            Self::Backward(weight) => (weight, depth, out, rows),
        };
        let runs = outer.len() * 9;
        for run in share * runs / POINTS..(share + 1) * runs / POINTS {
            let start = (outer.start * 9 + run) * width + inner.start;
            prefetch(weight.part(start..start + inner.len()));
        }
    }
}

/// Pictures (b, h', w', out), to which the convolution of each input with a kernel is added.
pub(super) struct Output<'a> {
    pub values: &'a mut [f32],
    pub channels: usize,
    /// As many as inputs, from the first on.
    pub kernels: Vec<Kernel<'a>>,
}

/// The inputs differ in their channels only.
pub(super) fn add(inputs: &[Input<'_>], outputs: &mut [Output<'_>]) {
    let Some(first) = inputs.first() else {
        return;
    };
    let s = first.sizes;
    let targets: Vec<Target<'_>> = outputs
        .iter_mut()
        .map(|output| Target {
            values: Shared::new(output.values),
            channels: output.channels,
            kernels: &output.kernels,
        })
        .collect();
    let blocks: Vec<(&Target<'_>, Range<usize>)> = targets
        .iter()
        .flat_map(|target| {
            let starts = (0..target.channels).step_by(ROWS);
            starts.map(move |start| (target, start..(start + ROWS).min(target.channels)))
        })
        .collect();
    let across = s.out_w.div_ceil(TILE);
    let all = s.b * across * s.out_h.div_ceil(TILE);
    let chunks = all.div_ceil(TILES);
    let each = all.div_ceil(chunks).next_multiple_of(LANES);
    (0..all.div_ceil(each)).into_par_iter().for_each_init(Vec::new, |points: &mut Vec<Vec<f32>>, chunk| {
        let tiles: Vec<Tile> =
            (chunk * each..((chunk + 1) * each).min(all)).map(|i| Tile::new(i, s)).collect();
        points.resize_with(inputs.len(), Vec::new);
        for (points, input) in points.iter_mut().zip(inputs) {
            transform_input(*input, &tiles, points);
        }
        let transformed: Vec<(usize, &[f32])> = inputs
            .iter()
            .zip(points.iter())
            .map(|(input, points)| (input.sizes.c, points.as_slice()))
            .collect();
        blocks.par_iter().for_each_init(Buffers::default, |buffers, (target, rows)| {
            buffers.run(&transformed, &tiles, target, rows.clone(), s.out_w);
        });
    });
}

struct Target<'a> {
    values: Shared<'a>,
    channels: usize,
    kernels: &'a [Kernel<'a>],
}

/// A tile of output pixels.
#[derive(Debug, Clone, Copy)]
struct Tile {
    picture: usize,
    top: usize,
    left: usize,
    /// Its first pixel in the output.
    pixel: usize,
    rows: usize,
    columns: usize,
}

impl Tile {
    fn new(i: usize, s: Sizes) -> Self {
        let (across, down) = (s.out_w.div_ceil(TILE), s.out_h.div_ceil(TILE));
        let (picture, top, left) = (i / (across * down), i / across % down * TILE, i % across * TILE);
        let pixel = (picture * s.out_h + top) * s.out_w + left;
        Self { picture, top, left, pixel, rows: TILE.min(s.out_h - top), columns: TILE.min(s.out_w - left) }
    }
}

/// Bᵀ d B of all tiles: for each of the 36 points the channels as rows, the tiles as columns, in panels.
fn transform_input(input: Input<'_>, tiles: &[Tile], points: &mut Vec<f32>) {
    let c = input.sizes.c;
    let panels = tiles.len().div_ceil(LANES);
    let point = panels * c * LANES;
    points.resize(POINTS * point, 0.0);
    let shared = Shared::new(points);
    let groups = c.div_ceil(WIDTH);
    (0..panels * groups).into_par_iter().with_min_len(8).for_each(|i| {
        let (panel, first) = (i / groups, i % groups * WIDTH);
        let width = WIDTH.min(c - first);
        let tiles = &tiles[panel * LANES..((panel + 1) * LANES).min(tiles.len())];
        let mut turned = [[[0.0; LANES]; WIDTH]; POINTS];
        input_points_of(input.values, &input.sizes, tiles, first, &mut turned);
        for (p, turned) in turned.iter().enumerate() {
            let at = p * point + (panel * c + first) * LANES;
            // SAFETY: each pair of panel and group writes to its own rows.
            unsafe { shared.part(at, width * LANES) }.copy_from_slice(turned[..width].as_flattened());
        }
    });
}

/// What a task needs besides the shared neighbourhoods.
#[derive(Default)]
struct Buffers {
    /// Transformed kernels, (36, rows, depth) or (36, depth, rows).
    kernels: Vec<f32>,
    /// Products, (36, rows, tiles).
    products: Vec<f32>,
    /// Values of the pixels, (tiles of a panel, 16 pixels, rows).
    pixels: Vec<f32>,
}

impl Buffers {
    fn run(
        &mut self,
        inputs: &[(usize, &[f32])],
        tiles: &[Tile],
        target: &Target<'_>,
        rows: Range<usize>,
        out_w: usize,
    ) {
        let (n, count) = (tiles.len(), rows.len());
        // Whole vectors of tiles, so that a vector never wraps around.
        let pitch = n.next_multiple_of(LANES);
        self.products.resize(POINTS * count * pitch, 0.0);
        let mut keep = false;
        for ((c, points), kernel) in inputs.iter().zip(target.kernels) {
            for start in (0..*c).step_by(DEPTH) {
                let depth = start..(start + DEPTH).min(*c);
                self.kernels.resize(POINTS * ROWS * depth.len(), 0.0);
                transform_kernel(*kernel, (target.channels, *c), &rows, &depth, &mut self.kernels);
                let kernels = self.kernels.chunks_exact(ROWS * depth.len());
                let products = self.products.chunks_exact_mut(count * pitch);
                let points = points.chunks_exact(points.len() / POINTS);
                let next = depth.end..(depth.end + DEPTH).min(*c);
                for (point, ((kernel_points, products), points)) in
                    kernels.zip(products).zip(points).enumerate()
                {
                    kernel.prefetch((target.channels, *c), &rows, &next, point);
                    let a = match kernel {
                        Kernel::Forward(_) => Mat::new(kernel_points, count, depth.len()),
                        Kernel::Backward(_) => Mat::strided(kernel_points, depth.len(), count, ROWS).t(),
                    };
                    let out = MatMut::strided(products, count, n, pitch);
                    gemm_packed(out, keep, a, Packed::new(points, *c, n).part(depth.clone()), 1.0);
                }
                keep = true;
            }
        }
        for (panel, tiles) in tiles.chunks(LANES).enumerate() {
            self.pixels.resize(LANES * TILE * TILE * count, 0.0);
            output_values_of(&self.products, (count, pitch, panel * LANES), &mut self.pixels);
            for (tile, pixels) in tiles.iter().zip(self.pixels.chunks_exact(TILE * TILE * count)) {
                for row in 0..tile.rows {
                    for column in 0..tile.columns {
                        let at = (tile.pixel + row * out_w + column) * target.channels + rows.start;
                        let values = &pixels[(row * TILE + column) * count..][..count];
                        // SAFETY: a task has rows (channels) of its own, and a chunk pixels of its own.
                        let target = unsafe { target.values.part(at, count) };
                        target.iter_mut().zip(values).for_each(|(y, v)| *y += v);
                    }
                }
            }
        }
    }
}

/// G k Gᵀ for some of the (out, c) pairs.
fn transform_kernel(
    kernel: Kernel<'_>,
    (out, c): (usize, usize),
    rows: &Range<usize>,
    depth: &Range<usize>,
    points: &mut [f32],
) {
    let point = ROWS * depth.len();
    let (weight, width, outer, inner, pitch, taps) = match kernel {
        Kernel::Forward(weight) => (weight, c, rows.clone(), depth, depth.len(), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        Kernel::Backward(weight) => (weight, out, depth.clone(), rows, ROWS, [8, 7, 6, 5, 4, 3, 2, 1, 0]),
    };
    let mut wide = [0.0; 9 * DEPTH];
    for (i, row) in outer.enumerate() {
        let points = &mut points[i * pitch..];
        let start = |tap: usize| (row * 9 + tap) * width + inner.start;
        if let Numbers::F32(weight) = weight {
            kernel_points_of(weight, &taps.map(start), inner.len(), points, point);
            continue;
        }
        for (tap, wide) in wide.chunks_exact_mut(DEPTH).enumerate() {
            weight.part(start(tap)..start(tap) + inner.len()).widen(&mut wide[..inner.len()]);
        }
        kernel_points_of(&wide, &taps.map(|tap| tap * DEPTH), inner.len(), points, point);
    }
}

#[inline(always)]
fn kernel_points(k: [f32; 3]) -> [f32; 6] {
    let (even, odd) = (k[0] + k[2], k[1]);
    // Dividing takes ten times as long.
    const SIXTH: f32 = 1.0 / 6.0;
    let (wide, half) = (k[0] * (0.25 * SIXTH) + k[2] * SIXTH, k[1] * (0.5 * SIXTH));
    [k[0] * 0.25, (even + odd) * -SIXTH, (odd - even) * SIXTH, wide + half, wide - half, k[2]]
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

/// G k Gᵀ of kernels side by side.
#[inline(always)]
fn transform_lanes(k: &[[f32; WIDTH]; 9], mut put: impl FnMut(usize, [f32; WIDTH])) {
    let mut t = [[0.0f32; WIDTH]; 18];
    for x in 0..3 {
        for l in 0..WIDTH {
            let column = kernel_points([k[x][l], k[3 + x][l], k[6 + x][l]]);
            for y in 0..6 {
                t[y * 3 + x][l] = column[y];
            }
        }
    }
    for y in 0..6 {
        let mut values = [[0.0f32; WIDTH]; 6];
        for l in 0..WIDTH {
            let row = kernel_points([t[y * 3][l], t[y * 3 + 1][l], t[y * 3 + 2][l]]);
            for x in 0..6 {
                values[x][l] = row[x];
            }
        }
        for x in 0..6 {
            put(y * 6 + x, values[x]);
        }
    }
}

simd! {
    /// `count` kernels side by side, their nine values where `taps` says, to 36 points `pitch` apart.
    fn kernel_points_of(weight: &[f32], taps: &[usize; 9], count: usize, points: &mut [f32], pitch: usize) {
        let last = taps.iter().max().map_or(0, |tap| tap + count);
        assert!(last <= weight.len() && (POINTS - 1) * pitch + count <= points.len(), "a kernel is cut off");
        let whole = count / WIDTH * WIDTH;
        for first in (0..whole).step_by(WIDTH) {
            // SAFETY: the values read and written end before `count`, checked above.
            unsafe {
                let k = taps.map(|tap| *weight.as_ptr().add(tap + first).cast::<[f32; WIDTH]>());
                let target = points.as_mut_ptr().add(first);
                transform_lanes(&k, |point, values| *target.add(point * pitch).cast() = values);
            }
        }
        if whole < count {
            let mut k = [[0.0; WIDTH]; 9];
            for (k, tap) in k.iter_mut().zip(taps) {
                k[..count - whole].copy_from_slice(&weight[tap + whole..tap + count]);
            }
            transform_lanes(&k, |point, values| {
                points[point * pitch + whole..][..count - whole].copy_from_slice(&values[..count - whole]);
            });
        }
    }

    /// Bᵀ d B for a panel of tiles and a group of channels from `first` on, channels by tiles.
    fn input_points_of(
        x: &[f32],
        s: &Sizes,
        tiles: &[Tile],
        first: usize,
        points: &mut [[[f32; LANES]; WIDTH]; POINTS],
    ) {
        let mut d = [[0.0f32; WIDTH]; POINTS];
        let mut t = [[0.0f32; WIDTH]; POINTS];
        let width = WIDTH.min(s.c - first);
        for (i, tile) in tiles.iter().enumerate() {
            for (at, d) in d.iter_mut().enumerate() {
                let (row, column) = (tile.top + at / 6, tile.left + at % 6); // in the padded picture
                let inside = (s.pad_top..s.h + s.pad_top).contains(&row)
                    && (s.pad_left..s.w + s.pad_left).contains(&column);
                *d = [0.0; WIDTH];
                if inside {
                    let pixel = (tile.picture * s.h + row - s.pad_top) * s.w + column - s.pad_left;
                    let source = &x[pixel * s.c + first..][..width];
                    match <&[f32; WIDTH]>::try_from(source) {
                        Ok(source) => *d = *source,
                        Err(_) => d[..width].copy_from_slice(source),
                    }
                }
            }
            for x in 0..6 {
                for l in 0..WIDTH {
                    let column = input_points([d[x][l], d[6 + x][l], d[12 + x][l], d[18 + x][l], d[24 + x][l], d[30 + x][l]]);
                    for y in 0..6 {
                        t[y * 6 + x][l] = column[y];
                    }
                }
            }
            for y in 0..6 {
                for l in 0..WIDTH {
                    let t = &t[y * 6..y * 6 + 6];
                    let row = input_points([t[0][l], t[1][l], t[2][l], t[3][l], t[4][l], t[5][l]]);
                    for x in 0..6 {
                        points[y * 6 + x][l][i] = row[x];
                    }
                }
            }
        }
    }

    /// Aᵀ m A for sixteen tiles from `first` on of (36, rows, pitch), to (16 tiles, 16 pixels, rows).
    fn output_values_of(products: &[f32], sizes: (usize, usize, usize), pixels: &mut [f32]) {
        let (rows, pitch, first) = sizes;
        let mut m = [[0.0f32; LANES]; POINTS];
        let mut t = [[0.0f32; LANES]; 24];
        for row in 0..rows {
            for (point, m) in m.iter_mut().enumerate() {
                if let Ok(source) = <&[f32; LANES]>::try_from(&products[(point * rows + row) * pitch + first..][..LANES]) {
                    *m = *source;
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
                let mut values = [[0.0f32; LANES]; 4];
                for l in 0..LANES {
                    let t = &t[y * 6..y * 6 + 6];
                    let row = output_values([t[0][l], t[1][l], t[2][l], t[3][l], t[4][l], t[5][l]]);
                    for x in 0..4 {
                        values[x][l] = row[x];
                    }
                }
                for (x, values) in values.iter().enumerate() {
                    for (tile, value) in values.iter().enumerate() {
                        pixels[(tile * TILE * TILE + y * TILE + x) * rows + row] = *value;
                    }
                }
            }
        }
    }
}
