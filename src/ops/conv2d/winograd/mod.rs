//! 3×3 convolutions at stride 1 with a quarter of the multiplications, F(4×4, 3×3), or in small pictures with four
//! ninths, F(2×2, 3×3) (Lavin and Gray, <https://arxiv.org/abs/1509.09308>).
//!
//! A 6×6 neighbourhood d and a kernel k give 4×4 outputs Aᵀ[(G k Gᵀ) ⊙ (Bᵀ d B)]A. Summing over channels makes the
//! product in the middle 36 matrix products. In f32 the result differs from a direct sum by a few 1e-6 of its scale.
//!
//! A chunk of tiles is transformed once, for all output channels; the kernel a block of channels at a time, just before
//! it is used, so that it never leaves the cache and is nowhere stored.

mod transform;

use std::ops::Range;

use rayon::prelude::*;

use self::transform::{F2X2, F4X4, Variant, WIDTH};
use super::Sizes;
use crate::ops::cpu::{LANES, Mat, MatMut, Numbers, Packed, Shared, gemm_packed, prefetch};

/// Output channels whose kernels are transformed together.
const ROWS: usize = 24;
/// Input channels of them at a time: what is transformed stays in the second cache.
const DEPTH: usize = 80;
/// Tiles of a chunk at most.
const TILES: usize = 64;

/// The variant that is worth it for `out` channels: the smaller a picture, the fewer tiles there are for the lanes.
pub(super) fn choose(s: Sizes, out: usize) -> Option<&'static Variant> {
    if (s.kh, s.kw, s.stride) != (3, 3, 1) || s.c < WIDTH || out < WIDTH {
        return None;
    }
    let direct = 9 * (s.b * s.out_h * s.out_w).next_multiple_of(LANES);
    // Transforming the kernel takes as long as about two tiles.
    let cost = |v: &Variant| v.points * (v.tiles(s).next_multiple_of(LANES) + 2);
    [&F4X4, &F2X2].into_iter().filter(|v| cost(v) < direct).min_by_key(|v| cost(v))
}

impl Variant {
    fn tiles(&self, s: Sizes) -> usize {
        s.b * s.out_h.div_ceil(self.tile) * s.out_w.div_ceil(self.tile)
    }
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

/// The i-th of n parts.
type Share = (usize, usize);

impl Kernel<'_> {
    /// Asks for a share of the values that are used next: they lie scattered, and memory is slow to find them.
    fn prefetch(self, (out, c): (usize, usize), rows: &Range<usize>, depth: &Range<usize>, share: Share) {
        let (weight, outer, width, inner) = match self {
            Self::Forward(weight) => (weight, rows, c, depth),
            Self::Backward(weight) => (weight, depth, out, rows),
        };
        let runs = outer.len() * 9;
        for run in share.0 * runs / share.1..(share.0 + 1) * runs / share.1 {
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
pub(super) fn add(variant: &Variant, inputs: &[Input<'_>], outputs: &mut [Output<'_>]) {
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
    let all = variant.tiles(s);
    let chunks = all.div_ceil(TILES);
    let each = all.div_ceil(chunks).next_multiple_of(LANES);
    (0..all.div_ceil(each)).into_par_iter().for_each_init(Vec::new, |points: &mut Vec<Vec<f32>>, chunk| {
        let tiles: Vec<Tile> =
            (chunk * each..((chunk + 1) * each).min(all)).map(|i| Tile::new(i, variant.tile, s)).collect();
        points.resize_with(inputs.len(), Vec::new);
        for (points, input) in points.iter_mut().zip(inputs) {
            transform_input(variant, *input, &tiles, points);
        }
        let transformed: Vec<(usize, &[f32])> = inputs
            .iter()
            .zip(points.iter())
            .map(|(input, points)| (input.sizes.c, points.as_slice()))
            .collect();
        blocks.par_iter().for_each_init(Buffers::default, |buffers, (target, rows)| {
            buffers.run(variant, &transformed, &tiles, (target, rows.clone()), s.out_w);
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
pub(in crate::ops::conv2d) struct Tile {
    picture: usize,
    top: usize,
    left: usize,
    /// Its first pixel in the output.
    pixel: usize,
    rows: usize,
    columns: usize,
}

impl Tile {
    fn new(i: usize, side: usize, s: Sizes) -> Self {
        let (across, down) = (s.out_w.div_ceil(side), s.out_h.div_ceil(side));
        let (picture, top, left) = (i / (across * down), i / across % down * side, i % across * side);
        let pixel = (picture * s.out_h + top) * s.out_w + left;
        Self { picture, top, left, pixel, rows: side.min(s.out_h - top), columns: side.min(s.out_w - left) }
    }
}

/// Bᵀ d B of all tiles: for each point the channels as rows, the tiles as columns, in panels.
fn transform_input(variant: &Variant, input: Input<'_>, tiles: &[Tile], points: &mut Vec<f32>) {
    let c = input.sizes.c;
    let panels = tiles.len().div_ceil(LANES);
    let point = panels * c * LANES;
    points.resize(variant.points * point, 0.0);
    let shared = Shared::new(points);
    let groups = c.div_ceil(WIDTH);
    (0..panels * groups).into_par_iter().with_min_len(8).for_each(|i| {
        let (panel, first) = (i / groups, i % groups * WIDTH);
        let width = WIDTH.min(c - first);
        let tiles = &tiles[panel * LANES..((panel + 1) * LANES).min(tiles.len())];
        let mut turned = [[[0.0; LANES]; WIDTH]; F4X4.points];
        let turned = &mut turned[..variant.points];
        (variant.input)(input.values, &input.sizes, tiles, first, turned);
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
    /// Transformed kernels, (points, rows, depth) or (points, depth, rows).
    kernels: Vec<f32>,
    /// Products, (points, rows, tiles).
    products: Vec<f32>,
    /// Values of the pixels, (tiles of a panel, pixels of a tile, rows).
    pixels: Vec<f32>,
}

impl Buffers {
    fn run(
        &mut self,
        variant: &Variant,
        inputs: &[(usize, &[f32])],
        tiles: &[Tile],
        (target, rows): (&Target<'_>, Range<usize>),
        out_w: usize,
    ) {
        let (n, count) = (tiles.len(), rows.len());
        // Whole vectors of tiles, so that a vector never wraps around.
        let pitch = n.next_multiple_of(LANES);
        self.products.resize(variant.points * count * pitch, 0.0);
        let mut keep = false;
        for ((c, points), kernel) in inputs.iter().zip(target.kernels) {
            for start in (0..*c).step_by(DEPTH) {
                let depth = start..(start + DEPTH).min(*c);
                self.kernels.resize(variant.points * ROWS * depth.len(), 0.0);
                transform_kernel(variant, *kernel, (target.channels, *c), &rows, &depth, &mut self.kernels);
                let kernels = self.kernels.chunks_exact(ROWS * depth.len());
                let products = self.products.chunks_exact_mut(count * pitch);
                let points = points.chunks_exact(points.len() / variant.points);
                let next = depth.end..(depth.end + DEPTH).min(*c);
                for (point, ((kernel_points, products), points)) in
                    kernels.zip(products).zip(points).enumerate()
                {
                    kernel.prefetch((target.channels, *c), &rows, &next, (point, variant.points));
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
            let side = variant.tile;
            self.pixels.resize(LANES * side * side * count, 0.0);
            (variant.output)(&self.products, (count, pitch, panel * LANES), &mut self.pixels);
            for (tile, pixels) in tiles.iter().zip(self.pixels.chunks_exact(side * side * count)) {
                for row in 0..tile.rows {
                    for column in 0..tile.columns {
                        let at = (tile.pixel + row * out_w + column) * target.channels + rows.start;
                        let values = &pixels[(row * side + column) * count..][..count];
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
    variant: &Variant,
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
            (variant.kernel)(weight, &taps.map(start), inner.len(), points, point);
            continue;
        }
        for (tap, wide) in wide.chunks_exact_mut(DEPTH).enumerate() {
            weight.part(start(tap)..start(tap) + inner.len()).widen(&mut wide[..inner.len()]);
        }
        (variant.kernel)(&wide, &taps.map(|tap| tap * DEPTH), inner.len(), points, point);
    }
}
