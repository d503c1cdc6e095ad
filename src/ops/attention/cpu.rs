//! A block of queries of one head at a time: its scores fit the cache and are never stored.

use rayon::prelude::*;

use crate::ops::cpu::{Mat, MatMut, Threads, gemm, math, products_together, simd, together};

/// Queries of a block.
const QUERIES: usize = 64;

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

    /// How many keys the queries before `end` see.
    fn visible(&self, end: usize) -> usize {
        if self.causal { end.min(self.m) } else { self.m }
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
    let pictures = out.par_chunks_mut(s.n * s.d).with_min_len(products_together(2 * s.n * s.m * s.d));
    pictures.enumerate().for_each(|(b, out)| {
        let t = t.picture(b, s);
        let blocks =
            out.par_chunks_mut(QUERIES * s.d).with_min_len(products_together(2 * QUERIES * s.m * s.d));
        blocks.enumerate().for_each_init(Vec::new, |scores, (block, out)| {
            let first = block * QUERIES;
            let rows = out.len() / s.d;
            let keys = s.visible(first + rows);
            for head in 0..s.heads {
                t.weights(s, head, first, (rows, keys), scores);
                let (at, width) = (head * s.head_width(), s.head_width());
                let v = Mat::strided(&t.v[at..], keys, width, s.d);
                let out = MatMut::strided(&mut out[at..], rows, width, s.d);
                gemm(out, false, Mat::new(scores, rows, keys), v, 1.0, Threads::One);
            }
        });
    });
    out
}

/// The gradients of q, k and v. The weights are computed again, block by block:
/// with P the weights and G the gradient of the output, gv = Pᵀ G, gs = P ⊙ (G vᵀ - rowsum(P ⊙ G vᵀ)), gq = gs k, gk = gsᵀ q.
pub(super) fn backward(t: Operands<'_>, s: Sizes, g: &[f32]) -> [Vec<f32>; 3] {
    let batch = t.q.len() / (s.n * s.d);
    let heads: Vec<[Vec<f32>; 3]> = (0..batch * s.heads)
        .into_par_iter()
        .with_min_len(products_together(5 * s.n * s.m * s.head_width()))
        .map(|i| {
            let b = i / s.heads;
            head_backward(t.picture(b, s), s, i % s.heads, &g[b * s.n * s.d..(b + 1) * s.n * s.d])
        })
        .collect();
    [0, 1, 2].map(|which| {
        let rows = if which == 0 { s.n } else { s.m };
        let width = s.head_width();
        let mut joined = vec![0.0; batch * rows * s.d];
        joined.par_chunks_mut(s.d).with_min_len(together(s.d)).enumerate().for_each(|(row, joined)| {
            let (b, row) = (row / rows, row % rows);
            for (head, joined) in joined.chunks_exact_mut(width).enumerate() {
                joined.copy_from_slice(&heads[b * s.heads + head][which][row * width..(row + 1) * width]);
            }
        });
        joined
    })
}

fn head_backward(t: Operands<'_>, s: Sizes, head: usize, g: &[f32]) -> [Vec<f32>; 3] {
    let (width, at) = (s.head_width(), head * s.head_width());
    let (mut gq, mut gk, mut gv) = (vec![0.0; s.n * width], vec![0.0; s.m * width], vec![0.0; s.m * width]);
    let (mut weights, mut slopes) = (Vec::new(), Vec::new());
    for (block, gq) in gq.chunks_mut(QUERIES * width).enumerate() {
        let first = block * QUERIES;
        let rows = gq.len() / width;
        let keys = s.visible(first + rows);
        t.weights(s, head, first, (rows, keys), &mut weights);
        let p = Mat::new(&weights, rows, keys);
        let g = Mat::strided(&g[first * s.d + at..], rows, width, s.d);
        gemm(MatMut::new(&mut gv[..keys * width], keys, width), true, p.t(), g, 1.0, Threads::One);

        slopes.resize(rows * keys, 0.0);
        let v = Mat::strided(&t.v[at..], keys, width, s.d);
        gemm(MatMut::new(&mut slopes, rows, keys), false, g, v.t(), 1.0, Threads::One);
        softmax_backward(&weights, keys, &mut slopes);
        let gs = Mat::new(&slopes, rows, keys);
        let k = Mat::strided(&t.k[at..], keys, width, s.d);
        gemm(MatMut::new(gq, rows, width), false, gs, k, s.scale(), Threads::One);
        let q = Mat::strided(&t.q[first * s.d + at..], rows, width, s.d);
        gemm(MatMut::new(&mut gk[..keys * width], keys, width), true, gs.t(), q, s.scale(), Threads::One);
    }
    [gq, gk, gv]
}

impl<'a> Operands<'a> {
    fn picture(self, b: usize, s: Sizes) -> Operands<'a> {
        let part = |t: &'a [f32], rows: usize| &t[b * rows * s.d..(b + 1) * rows * s.d];
        Operands { q: part(self.q, s.n), k: part(self.k, s.m), v: part(self.v, s.m) }
    }

    /// The softmax of the scores of `rows` queries from `first` on the first `keys` keys.
    fn weights(self, s: Sizes, head: usize, first: usize, (rows, keys): (usize, usize), out: &mut Vec<f32>) {
        let (width, at) = (s.head_width(), head * s.head_width());
        out.resize(rows * keys, 0.0);
        let q = Mat::strided(&self.q[first * s.d + at..], rows, width, s.d);
        let k = Mat::strided(&self.k[at..], keys, width, s.d);
        gemm(MatMut::new(out, rows, keys), false, q, k.t(), s.scale(), Threads::One);
        if s.causal {
            for (row, out) in out.chunks_exact_mut(keys).enumerate() {
                out[(first + row + 1).min(keys)..].fill(f32::NEG_INFINITY);
            }
        }
        softmax(out, keys);
    }
}

simd! {
    /// In every row of `keys` values.
    fn softmax(scores: &mut [f32], keys: usize) {
        for row in scores.chunks_exact_mut(keys) {
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
    fn softmax_backward(p: &[f32], keys: usize, g: &mut [f32]) {
        for (p, g) in p.chunks_exact(keys).zip(g.chunks_exact_mut(keys)) {
            let mean = math::sum2(p, g, |p, g| p * g);
            for (g, &p) in g.iter_mut().zip(p) {
                *g = p * (*g - mean);
            }
        }
    }
}
