//! A block of queries of one head at a time: its scores fit the cache and are never stored.

use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

use crate::ops::cpu::{
    LANES, Mat, MatMut, Packed, Panels, Shared, gemm_packed, math, products_together, simd,
};

/// Scores of a block: a share of the second cache.
const SCORES: usize = 1 << 16;
/// Queries of a block. They are what the backward pass sums over: fewer leave the multipliers waiting for memory.
const QUERIES: RangeInclusive<usize> = 48..=96;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub n: usize,
    pub m: usize,
    pub d: usize,
    pub heads: usize,
    pub causal: bool,
}

impl Sizes {
    fn head_width(&self) -> usize {
        self.d / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_width() as f32).sqrt()
    }

    /// Values from one row of scores to the next. Rows a power of two apart would compete for the same lines of the cache.
    fn pitch(&self) -> usize {
        self.m.next_multiple_of(LANES) + LANES
    }

    /// Queries of a block.
    fn block(&self) -> usize {
        (SCORES / self.m.max(1)).clamp(*QUERIES.start(), *QUERIES.end()) / 12 * 12
    }
}

/// q (b, n, d), k and v (b, m, d).
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// The output (b, n, d).
pub(super) fn forward(t: Operands<'_>, s: Sizes) -> Vec<f32> {
    let mut out = vec![0.0; t.q.len()];
    let shared = Shared::new(&mut out);
    let (width, block) = (s.head_width(), s.block());
    t.heads(s).for_each_init(Default::default, |(keys, values): &mut (Panels, Panels), head| {
        keys.fill(head.k.t());
        values.fill(head.v);
        let (keys, values) = (keys.packed(), values.packed());
        let blocks = (0..s.n.div_ceil(block)).into_par_iter();
        let blocks = blocks.with_min_len(products_together(2 * block * s.m * width));
        blocks.for_each_init(Vec::new, |scores, i| {
            let rows = i * block..((i + 1) * block).min(s.n);
            head.weights(rows.clone(), keys, scores);
            let at = head.queries + rows.start * s.d;
            // SAFETY: no other task has these rows of this head.
            let out = unsafe { shared.matrix(at, rows.len(), width, s.d) };
            gemm_packed(out, false, Mat::strided(scores, rows.len(), s.m, s.pitch()), values, 1.0);
        });
    });
    out
}

/// The gradients of q, k and v. The weights are computed again, block by block:
/// with P the weights and G the gradient of the output, gv = Pᵀ G, gs = P ⊙ (G vᵀ - rowsum(P ⊙ G vᵀ)), gq = gs k, gk = gsᵀ q.
pub(super) fn backward(t: Operands<'_>, s: Sizes, g: &[f32]) -> [Vec<f32>; 3] {
    let mut grads = [t.q, t.k, t.v].map(|t| vec![0.0; t.len()]);
    let [gq, gk, gv] = grads.each_mut().map(|g| Shared::new(g));
    let width = s.head_width();
    t.heads(s).for_each_init(Buffers::default, |buffers, head| {
        let Buffers { keys, values, key_rows, block_rows, weights, slopes } = buffers;
        keys.fill(head.k.t());
        values.fill(head.v.t());
        key_rows.fill(head.k);
        let of_head = |rows: &Range<usize>| head.queries + rows.start * s.d;
        for first in (0..s.n).step_by(s.block()) {
            let rows = first..(first + s.block()).min(s.n);
            let count = rows.len();
            head.weights(rows.clone(), keys.packed(), weights);
            let g = Mat::strided(&g[of_head(&rows)..], count, width, s.d);
            let p = Mat::strided(weights, count, s.m, s.pitch());
            block_rows.fill(g);
            // SAFETY: no other task has this head.
            let gv = unsafe { gv.matrix(head.seen, s.m, width, s.d) };
            gemm_packed(gv, true, p.t(), block_rows.packed(), 1.0);

            slopes.resize(count * s.pitch(), 0.0);
            gemm_packed(MatMut::strided(slopes, count, s.m, s.pitch()), false, g, values.packed(), 1.0);
            softmax_backward(weights, (s.m, s.pitch()), slopes);
            let gs = Mat::strided(slopes, count, s.m, s.pitch());
            // SAFETY: no other task has this head.
            let gq = unsafe { gq.matrix(of_head(&rows), count, width, s.d) };
            gemm_packed(gq, false, gs, key_rows.packed(), s.scale());
            block_rows.fill(head.q.rows(rows));
            // SAFETY: no other task has this head.
            let gk = unsafe { gk.matrix(head.seen, s.m, width, s.d) };
            gemm_packed(gk, true, gs.t(), block_rows.packed(), s.scale());
        }
    });
    grads
}

/// What the backward pass of a head keeps.
#[derive(Default)]
struct Buffers {
    keys: Panels,
    values: Panels,
    key_rows: Panels,
    block_rows: Panels,
    weights: Vec<f32>,
    slopes: Vec<f32>,
}

/// One head of one picture.
struct Head<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    /// Where its part of q and of the output begins.
    queries: usize,
    /// Where its part of k and v begins.
    seen: usize,
    sizes: Sizes,
}

impl<'a> Operands<'a> {
    fn heads(self, s: Sizes) -> impl IndexedParallelIterator<Item = Head<'a>> {
        let (width, count) = (s.head_width(), self.q.len() / (s.n * s.d) * s.heads);
        let head = move |i: usize| {
            let (b, at) = (i / s.heads, i % s.heads * width);
            let (queries, seen) = (b * s.n * s.d + at, b * s.m * s.d + at);
            let part = |t: &'a [f32], start: usize, rows| Mat::strided(&t[start..], rows, width, s.d);
            let (q, k, v) = (part(self.q, queries, s.n), part(self.k, seen, s.m), part(self.v, seen, s.m));
            Head { q, k, v, queries, seen, sizes: s }
        };
        (0..count).into_par_iter().with_min_len(products_together(2 * s.n * s.m * width)).map(head)
    }
}

impl Head<'_> {
    /// The softmax of the scores of some queries on all keys, (rows, pitch). Keys after a causal query have weight 0.
    fn weights(&self, rows: Range<usize>, keys: Packed<'_>, out: &mut Vec<f32>) {
        let (m, pitch) = (self.sizes.m, self.sizes.pitch());
        out.resize(rows.len() * pitch, 0.0);
        let q = self.q.rows(rows.clone());
        gemm_packed(MatMut::strided(out, rows.len(), m, pitch), false, q, keys, self.sizes.scale());
        if self.sizes.causal {
            for (row, out) in rows.zip(out.chunks_exact_mut(pitch)) {
                out[(row + 1).min(m)..m].fill(f32::NEG_INFINITY);
            }
        }
        softmax(out, (m, pitch));
    }
}

simd! {
    /// In every row of `keys` values, `pitch` apart.
    fn softmax(scores: &mut [f32], keys_pitch: (usize, usize)) {
        let (keys, pitch) = keys_pitch;
        for row in scores.chunks_exact_mut(pitch) {
            let row = &mut row[..keys];
            let max = math::max(row);
            for x in row.iter_mut() {
                *x = math::exp(*x - max);
            }
            let scale = 1.0 / math::sum(row);
            for x in row.iter_mut() {
                *x *= scale;
            }
        }
    }

    /// g becomes p ⊙ (g - Σ p g) in every row.
    fn softmax_backward(p: &[f32], keys_pitch: (usize, usize), g: &mut [f32]) {
        let (keys, pitch) = keys_pitch;
        for (p, g) in p.chunks_exact(pitch).zip(g.chunks_exact_mut(pitch)) {
            let (p, g) = (&p[..keys], &mut g[..keys]);
            let mean = math::sum2(p, g, |p, g| p * g);
            for (g, &p) in g.iter_mut().zip(p) {
                *g = p * (*g - mean);
            }
        }
    }
}
