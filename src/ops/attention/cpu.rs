//! A tile of scores at a time, some queries of one head by some keys: it fits the cache and is never stored
//! (<https://arxiv.org/abs/2205.14135>).

use std::ops::Range;

use rayon::prelude::*;

use crate::ops::cpu::{
    LANES, Mat, MatMut, Packed, Panels, Shared, gemm_packed, math, products_together, simd,
};

/// Keys of a tile.
const KEYS: usize = 384;
/// Queries of a tile. They are what the backward pass sums over: fewer leave the multipliers waiting for memory.
const QUERIES: usize = 96;

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
        KEYS.min(self.m).next_multiple_of(LANES) + LANES
    }

    /// The keys of a tile in whole lines of lanes.
    fn padded(&self, tile: &Range<usize>) -> usize {
        tile.len().next_multiple_of(LANES)
    }

    /// The keys, a tile at a time, that one of these queries sees.
    fn tiles(&self, queries: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let m = if self.causal { self.m.min(queries.end) } else { self.m };
        (0..m).step_by(KEYS).map(move |first| first..(first + KEYS).min(m))
    }
}

/// q (b, n, d), k and v (b, m, d).
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// The output (b, n, d), and what every query's weights were divided by: ln Σ exp(score), (b, heads, n).
pub(super) fn forward(t: Operands<'_>, s: Sizes) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0; t.q.len()];
    let mut totals = vec![0.0; t.q.len() / s.head_width()];
    let (shared, width) = (Shared::new(&mut out), s.head_width());
    let heads = t.heads(s).zip(totals.par_chunks_mut(s.n));
    heads.for_each_init(Default::default, |(keys, values): &mut (Panels, Panels), (head, totals)| {
        keys.fill(head.k.t());
        values.fill(head.v);
        let (keys, values) = (keys.packed(), values.packed());
        let blocks = totals.par_chunks_mut(QUERIES).enumerate();
        let blocks = blocks.with_min_len(products_together(2 * QUERIES * s.m * width));
        blocks.for_each_init(Vec::new, |scores, (i, totals)| {
            let queries = i * QUERIES..i * QUERIES + totals.len();
            let at = head.queries + queries.start * s.d;
            // SAFETY: no other task has these queries of this head.
            let row = |i: usize| unsafe { shared.part(at + i * s.d, width) };
            let mut rows = [Row::default(); QUERIES];
            let rows = &mut rows[..queries.len()];
            for tile in s.tiles(&queries) {
                head.scores(&queries, &tile, keys.columns(tile.clone()), scores);
                weigh(scores, (s.padded(&tile), s.pitch()), rows);
                if tile.start > 0 {
                    rows.iter().enumerate().for_each(|(i, state)| scale(row(i), state.fade));
                }
                // SAFETY: as above; the rows borrowed from it are given back.
                let out = unsafe { shared.matrix(at, queries.len(), width, s.d) };
                let weights = Mat::strided(scores, queries.len(), tile.len(), s.pitch());
                gemm_packed(out, tile.start > 0, weights, values.part(tile), 1.0);
            }
            for (i, (state, total)) in rows.iter().zip(totals).enumerate() {
                scale(row(i), 1.0 / state.sum);
                *total = state.max + state.sum.ln();
            }
        });
    });
    (out, totals)
}

/// What [`forward`] found, and the gradient of its output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub out: &'a [f32],
    pub totals: &'a [f32],
    pub g: &'a [f32],
}

/// The gradients of q, k and v. The weights are computed again, tile by tile:
/// with P the weights and G the gradient of the output O, gv = Pᵀ G, gs = P ⊙ (G vᵀ - rowsum(G ⊙ O)), gq = gs k, gk = gsᵀ q.
pub(super) fn backward(t: Operands<'_>, s: Sizes, found: Found<'_>) -> [Vec<f32>; 3] {
    let mut grads = [t.q, t.k, t.v].map(|t| vec![0.0; t.len()]);
    let [gq, gk, gv] = grads.each_mut().map(|g| Shared::new(g));
    let (width, pitch) = (s.head_width(), s.pitch());
    let heads = t.heads(s).zip(found.totals.par_chunks(s.n));
    heads.for_each_init(Buffers::default, |buffers, (head, totals)| {
        let Buffers { means, keys, values, key_rows, block_rows, weights, slopes } = buffers;
        let row = |i: usize| head.queries + i * s.d..head.queries + i * s.d + width;
        means.clear();
        means.extend((0..s.n).map(|i| mean(&found.g[row(i)], &found.out[row(i)])));
        for tile in s.tiles(&(0..s.n)) {
            keys.fill(head.k.rows(tile.clone()).t());
            values.fill(head.v.rows(tile.clone()).t());
            key_rows.fill(head.k.rows(tile.clone()));
            // Queries before a causal tile do not see it.
            let first = if s.causal { tile.start / QUERIES * QUERIES } else { 0 };
            for first in (first..s.n).step_by(QUERIES) {
                let rows = first..(first + QUERIES).min(s.n);
                let count = rows.len();
                let of_head = head.queries + first * s.d;
                let g = Mat::strided(&found.g[of_head..], count, width, s.d);
                head.scores(&rows, &tile, keys.packed(), weights);
                slopes.resize(count * pitch, 0.0);
                gemm_packed(
                    MatMut::strided(slopes, count, tile.len(), pitch),
                    false,
                    g,
                    values.packed(),
                    1.0,
                );
                softmax_backward(
                    (weights, slopes),
                    (s.padded(&tile), pitch),
                    &totals[rows.clone()],
                    &means[rows.clone()],
                );
                let p = Mat::strided(weights, count, tile.len(), pitch);
                let gs = Mat::strided(slopes, count, tile.len(), pitch);
                let seen = head.seen + tile.start * s.d;

                block_rows.fill(g);
                // SAFETY: no other task has this head.
                let gv = unsafe { gv.matrix(seen, tile.len(), width, s.d) };
                gemm_packed(gv, true, p.t(), block_rows.packed(), 1.0);
                block_rows.fill(head.q.rows(rows));
                // SAFETY: no other task has this head.
                let gk = unsafe { gk.matrix(seen, tile.len(), width, s.d) };
                gemm_packed(gk, true, gs.t(), block_rows.packed(), s.scale());
                // SAFETY: no other task has this head.
                let gq = unsafe { gq.matrix(of_head, count, width, s.d) };
                gemm_packed(gq, true, gs, key_rows.packed(), s.scale());
            }
        }
    });
    grads
}

/// What the backward pass of a head keeps.
#[derive(Default)]
struct Buffers {
    means: Vec<f32>,
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
    /// The scores of some queries on a tile of keys, (queries, pitch). Keys after a causal query, and what fills up the
    /// lanes, have -∞.
    fn scores(&self, queries: &Range<usize>, tile: &Range<usize>, keys: Packed<'_>, out: &mut Vec<f32>) {
        let s = &self.sizes;
        out.resize(queries.len() * s.pitch(), 0.0);
        let target = MatMut::strided(out, queries.len(), tile.len(), s.pitch());
        gemm_packed(target, false, self.q.rows(queries.clone()), keys, s.scale());
        for (i, row) in queries.clone().zip(out.chunks_exact_mut(s.pitch())) {
            let seen = if s.causal { (i + 1).saturating_sub(tile.start).min(tile.len()) } else { tile.len() };
            row[seen..s.padded(tile)].fill(f32::NEG_INFINITY);
        }
    }
}

/// A query's scores so far.
#[derive(Debug, Clone, Copy)]
struct Row {
    max: f32,
    /// Of exp(score - max).
    sum: f32,
    /// What sums from before the last tile have to be multiplied by.
    fade: f32,
}

impl Default for Row {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0, fade: 0.0 }
    }
}

simd! {
    /// Scores, `keys` in every row of `pitch`, become exp(score - the largest so far).
    fn weigh(scores: &mut [f32], keys_pitch: (usize, usize), rows: &mut [Row]) {
        let (keys, pitch) = keys_pitch;
        for (scores, row) in scores.chunks_exact_mut(pitch).zip(rows) {
            let scores = &mut scores[..keys];
            let max = math::max(scores).max(row.max);
            let mut sums = [0.0f32; LANES];
            for scores in scores.as_chunks_mut::<LANES>().0 {
                for (score, sum) in scores.iter_mut().zip(&mut sums) {
                    *score = math::exp::<FMA>(*score - max);
                    *sum += *score;
                }
            }
            row.fade = math::exp::<FMA>(row.max - max);
            row.sum = row.sum * row.fade + math::sum(&sums);
            row.max = max;
        }
    }

    /// Scores become weights p, their gradients g the gradients of the scores: p ⊙ (g - the mean of g by p).
    fn softmax_backward(
        scores_g: (&mut [f32], &mut [f32]),
        keys_pitch: (usize, usize),
        totals: &[f32],
        means: &[f32],
    ) {
        let ((scores, g), (keys, pitch)) = (scores_g, keys_pitch);
        let rows = scores.chunks_exact_mut(pitch).zip(g.chunks_exact_mut(pitch));
        for ((scores, g), (total, mean)) in rows.zip(totals.iter().zip(means)) {
            for (score, g) in scores[..keys].iter_mut().zip(&mut g[..keys]) {
                let p = math::exp::<FMA>(*score - total);
                *score = p;
                *g = p * (*g - mean);
            }
        }
    }

    fn scale(row: &mut [f32], by: f32) {
        for x in row {
            *x *= by;
        }
    }

    fn mean(g: &[f32], out: &[f32]) -> f32 {
        math::sum2(g, out, |g, out| g * out)
    }
}
