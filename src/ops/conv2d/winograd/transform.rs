//! The transforms of kernels, neighbourhoods and outputs.

use super::{Sizes, Tile};
use crate::ops::cpu::{LANES, simd};

/// Channels transformed at a time.
pub(super) const WIDTH: usize = 8;

/// F(M×M, 3×3).
pub(in crate::ops::conv2d) struct Variant {
    /// M: pixels a tile is wide and high.
    pub tile: usize,
    /// (M + 2)²: values of a transformed neighbourhood.
    pub points: usize,
    /// G k Gᵀ of `count` kernels side by side, their nine values where `taps` says, to points `pitch` apart.
    pub kernel: TransformKernel,
    /// Bᵀ d B for a panel of tiles and a group of channels from `first` on, channels by tiles.
    pub input: TransformInput,
    /// Aᵀ m A for sixteen tiles from `first` on of (points, rows, pitch), to (16 tiles, pixels, rows).
    pub output: TransformOutput,
}

type TransformKernel = fn(weight: &[f32], taps: &[usize; 9], count: usize, points: &mut [f32], pitch: usize);
type TransformInput = fn(x: &[f32], s: &Sizes, tiles: &[Tile], first: usize, points: &mut [Turned]);
type TransformOutput = fn(products: &[f32], rows_pitch_first: (usize, usize, usize), pixels: &mut [f32]);

/// A point of a group of channels of a panel of tiles.
pub(super) type Turned = [[f32; LANES]; WIDTH];

pub(super) static F4X4: Variant =
    Variant { tile: 4, points: 36, kernel: kernel_4x4, input: input_4x4, output: output_4x4 };

pub(super) static F2X2: Variant =
    Variant { tile: 2, points: 16, kernel: kernel_2x2, input: input_2x2, output: output_2x2 };

simd! {
    fn kernel_4x4(weight: &[f32], taps: &[usize; 9], count: usize, points: &mut [f32], pitch: usize) {
        kernels::<4, 6, F4>(weight, taps, count, points, pitch);
    }

    fn kernel_2x2(weight: &[f32], taps: &[usize; 9], count: usize, points: &mut [f32], pitch: usize) {
        kernels::<2, 4, F2>(weight, taps, count, points, pitch);
    }

    fn input_4x4(x: &[f32], s: &Sizes, tiles: &[Tile], first: usize, points: &mut [Turned]) {
        inputs::<4, 6, F4>(x, s, tiles, first, points);
    }

    fn input_2x2(x: &[f32], s: &Sizes, tiles: &[Tile], first: usize, points: &mut [Turned]) {
        inputs::<2, 4, F2>(x, s, tiles, first, points);
    }

    fn output_4x4(products: &[f32], sizes: (usize, usize, usize), pixels: &mut [f32]) {
        outputs::<4, 6, F4>(products, sizes, pixels);
    }

    fn output_2x2(products: &[f32], sizes: (usize, usize, usize), pixels: &mut [f32]) {
        outputs::<2, 4, F2>(products, sizes, pixels);
    }
}

/// The transforms of one dimension; N = M + 2.
trait Line<const M: usize, const N: usize> {
    /// G k
    fn kernel(k: [f32; 3]) -> [f32; N];
    /// Bᵀ d
    fn input(d: [f32; N]) -> [f32; N];
    /// Aᵀ m
    fn output(m: [f32; N]) -> [f32; M];
}

/// At the points 0, ±1, ±2 and ∞.
struct F4;

impl Line<4, 6> for F4 {
    #[inline(always)]
    fn kernel(k: [f32; 3]) -> [f32; 6] {
        // Dividing takes ten times as long.
        const SIXTH: f32 = 1.0 / 6.0;
        let (even, odd) = (k[0] + k[2], k[1]);
        let (wide, half) = (k[0] * (0.25 * SIXTH) + k[2] * SIXTH, k[1] * (0.5 * SIXTH));
        [k[0] * 0.25, (even + odd) * -SIXTH, (odd - even) * SIXTH, wide + half, wide - half, k[2]]
    }

    #[inline(always)]
    fn input(d: [f32; 6]) -> [f32; 6] {
        let (a, b) = (d[4] - 4.0 * d[2], d[3] - 4.0 * d[1]);
        let (e, f) = (d[4] - d[2], 2.0 * (d[3] - d[1]));
        [4.0 * d[0] - 5.0 * d[2] + d[4], a + b, a - b, e + f, e - f, 4.0 * d[1] - 5.0 * d[3] + d[5]]
    }

    #[inline(always)]
    fn output(m: [f32; 6]) -> [f32; 4] {
        let (p, q, r, s) = (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]);
        [m[0] + p + r, q + 2.0 * s, p + 4.0 * r, q + 8.0 * s + m[5]]
    }
}

/// At the points 0, ±1 and ∞.
struct F2;

impl Line<2, 4> for F2 {
    #[inline(always)]
    fn kernel(k: [f32; 3]) -> [f32; 4] {
        let (even, odd) = (0.5 * (k[0] + k[2]), 0.5 * k[1]);
        [k[0], even + odd, even - odd, k[2]]
    }

    #[inline(always)]
    fn input(d: [f32; 4]) -> [f32; 4] {
        [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    }

    #[inline(always)]
    fn output(m: [f32; 4]) -> [f32; 2] {
        [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
    }
}

#[inline(always)]
fn kernels<const M: usize, const N: usize, L: Line<M, N>>(
    weight: &[f32],
    taps: &[usize; 9],
    count: usize,
    points: &mut [f32],
    pitch: usize,
) {
    let last = taps.iter().max().map_or(0, |tap| tap + count);
    assert!(last <= weight.len() && (N * N - 1) * pitch + count <= points.len(), "a kernel is cut off");
    let whole = count / WIDTH * WIDTH;
    for first in (0..whole).step_by(WIDTH) {
        // SAFETY: the values read and written end before `count`, checked above.
        unsafe {
            let k = taps.map(|tap| *weight.as_ptr().add(tap + first).cast::<[f32; WIDTH]>());
            let target = points.as_mut_ptr().add(first);
            lanes::<M, N, L>(&k, |point, values| *target.add(point * pitch).cast() = values);
        }
    }
    let rest = count - whole;
    if rest > 0 {
        let mut k = [[0.0; WIDTH]; 9];
        for (k, tap) in k.iter_mut().zip(taps) {
            k[..rest].copy_from_slice(&weight[tap + whole..tap + count]);
        }
        lanes::<M, N, L>(&k, |point, values| {
            points[point * pitch + whole..][..rest].copy_from_slice(&values[..rest]);
        });
    }
}

/// G k Gᵀ of kernels side by side.
#[inline(always)]
fn lanes<const M: usize, const N: usize, L: Line<M, N>>(
    k: &[[f32; WIDTH]; 9],
    mut put: impl FnMut(usize, [f32; WIDTH]),
) {
    let mut t = [[[0.0f32; WIDTH]; 3]; N];
    for x in 0..3 {
        for l in 0..WIDTH {
            let column = L::kernel([k[x][l], k[3 + x][l], k[6 + x][l]]);
            for y in 0..N {
                t[y][x][l] = column[y];
            }
        }
    }
    for (y, t) in t.iter().enumerate() {
        let mut values = [[0.0f32; WIDTH]; N];
        for l in 0..WIDTH {
            let row = L::kernel([t[0][l], t[1][l], t[2][l]]);
            for x in 0..N {
                values[x][l] = row[x];
            }
        }
        for (x, values) in values.iter().enumerate() {
            put(y * N + x, *values);
        }
    }
}

#[inline(always)]
fn inputs<const M: usize, const N: usize, L: Line<M, N>>(
    x: &[f32],
    s: &Sizes,
    tiles: &[Tile],
    first: usize,
    points: &mut [Turned],
) {
    assert!(points.len() == N * N && tiles.len() <= LANES, "room for other tiles");
    let mut d = [[[0.0f32; WIDTH]; N]; N];
    let mut t = [[[0.0f32; WIDTH]; N]; N];
    let width = WIDTH.min(s.c - first);
    for (i, tile) in tiles.iter().enumerate() {
        for (y, d) in d.iter_mut().enumerate() {
            for (x_, d) in d.iter_mut().enumerate() {
                let (row, column) = (tile.top + y, tile.left + x_); // in the padded picture
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
        }
        for x in 0..N {
            for l in 0..WIDTH {
                let column = L::input(std::array::from_fn(|y| d[y][x][l]));
                for y in 0..N {
                    t[y][x][l] = column[y];
                }
            }
        }
        for (y, t) in t.iter().enumerate() {
            for l in 0..WIDTH {
                let row = L::input(std::array::from_fn(|x| t[x][l]));
                for x in 0..N {
                    points[y * N + x][l][i] = row[x];
                }
            }
        }
    }
}

#[inline(always)]
fn outputs<const M: usize, const N: usize, L: Line<M, N>>(
    products: &[f32],
    (rows, pitch, first): (usize, usize, usize),
    pixels: &mut [f32],
) {
    let mut m = [[[0.0f32; LANES]; N]; N];
    let mut t = [[[0.0f32; LANES]; N]; M];
    for row in 0..rows {
        for (point, m) in m.as_flattened_mut().iter_mut().enumerate() {
            m.copy_from_slice(&products[(point * rows + row) * pitch + first..][..LANES]);
        }
        for x in 0..N {
            for l in 0..LANES {
                let column = L::output(std::array::from_fn(|y| m[y][x][l]));
                for y in 0..M {
                    t[y][x][l] = column[y];
                }
            }
        }
        for (y, t) in t.iter().enumerate() {
            let mut values = [[0.0f32; LANES]; M];
            for l in 0..LANES {
                let row = L::output(std::array::from_fn(|x| t[x][l]));
                for x in 0..M {
                    values[x][l] = row[x];
                }
            }
            for (x, values) in values.iter().enumerate() {
                for (tile, value) in values.iter().enumerate() {
                    pixels[(tile * M * M + y * M + x) * rows + row] = *value;
                }
            }
        }
    }
}
