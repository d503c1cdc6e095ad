//! Multi-head scaled dot-product attention that never stores the score matrix.

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;

use std::{ops::Range, sync::Arc};

use candle_core::{D, DType, Tensor};

use self::cpu::{Found, Operands, Sizes};
use super::cpu::{Values, narrow, widen};
use super::cuda::{Card, card};
use super::flops;
use super::function::{self, Output};
use crate::error::{Error, Result};

/// Scores other devices than the CPU hold at a time.
const COMPOSED_SCORES: usize = 1 << 26;

/// The scores again, and the gradients of weights, values, queries and keys.
const BACKWARD_PRODUCTS: usize = 5;

/// Which keys a query may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those not after it (CLIP's text encoder).
    Causal,
}

/// softmax(q kᵀ / √(d / heads)) v per head (<https://arxiv.org/abs/1706.03762>).
///
/// Memory grows with n and m, not with n · m; the backward pass computes the weights again
/// (<https://arxiv.org/abs/2205.14135>).
///
/// # Shapes
/// - `q`: (b, n, d), `k`, `v`: (b, m, d) → (b, n, d); d is split into `heads` equal parts
///
/// # Errors
/// If `heads` does not divide d, or shapes disagree.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (b, n, d) = q.dims3()?;
    let m = k.dim(1)?;
    if k.dims() != [b, m, d] || v.dims() != [b, m, d] {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        return Err(Error::invalid(format!("attention of queries {q:?} on keys {k:?} and values {v:?}")));
    }
    if heads == 0 || d == 0 || d % heads != 0 || n == 0 || m == 0 {
        return Err(Error::invalid(format!(
            "attention cannot split width {d} into {heads} heads ({n} queries, {m} keys)"
        )));
    }
    let sizes = Sizes { n, m, d, heads, causal: mask == Mask::Causal };
    let product = b * n * m * d;
    flops::count(2 * product);
    if let Some(card) = card(q.device())?.filter(|card| cuda::takes(&**card, q, sizes)) {
        return on_card(card, [q, k, v], sizes);
    }
    if q.device().is_cpu() {
        return on_cpu(q, k, v, sizes);
    }
    let kept = [q.detach(), k.detach(), v.detach()];
    let value = forward_composed(&kept, sizes, COMPOSED_SCORES)?;
    function::apply(Output::Fresh(value), &[q, k, v], move |g| {
        flops::count(BACKWARD_PRODUCTS * product);
        Ok(backward_composed(&kept, sizes, g, COMPOSED_SCORES)?.into_iter().map(Some).collect())
    })
}

fn on_card(card: Arc<dyn Card>, inputs: [&Tensor; 3], sizes: Sizes) -> Result<Tensor> {
    let kept = inputs.map(|t| Ok(t.detach().contiguous()?)).into_iter().collect::<Result<Vec<_>>>()?;
    let (value, totals) = cuda::forward(&*card, &kept, sizes)?;
    let product = value.elem_count() * sizes.m;
    function::apply_with_output(Output::Fresh(value), &inputs, move |out, g| {
        flops::count(BACKWARD_PRODUCTS * product);
        let found = cuda::Found { out, totals: &totals };
        Ok(cuda::backward(&*card, &kept, sizes, found, g)?.map(Some).to_vec())
    })
}

fn on_cpu(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let kept = [q.detach(), k.detach(), v.detach()];
    let (value, totals) = {
        let (wide_q, wide_k, wide_v) = (widen(&kept[0])?, widen(&kept[1])?, widen(&kept[2])?);
        let (q_values, k_values, v_values) =
            (Values::of(&wide_q)?, Values::of(&wide_k)?, Values::of(&wide_v)?);
        let (out, totals) = cpu::forward(Operands { q: &q_values, k: &k_values, v: &v_values }, sizes);
        (narrow(out, q.shape(), q.dtype())?, totals)
    };
    let product = value.elem_count() * sizes.m;
    function::apply_with_output(Output::Fresh(value), &[q, k, v], move |out, g| {
        flops::count(BACKWARD_PRODUCTS * product);
        let (q, k, v) = (widen(&kept[0])?, widen(&kept[1])?, widen(&kept[2])?);
        let (q, k, v) = (Values::of(&q)?, Values::of(&k)?, Values::of(&v)?);
        let (out, g) = (widen(out)?, widen(g)?);
        let found = Found { out: &Values::of(&out)?, totals: &totals, g: &Values::of(&g)? };
        let grads = cpu::backward(Operands { q: &q, k: &k, v: &v }, sizes, found);
        grads.into_iter().zip(&kept).map(|(g, t)| Ok(Some(narrow(g, t.shape(), t.dtype())?))).collect()
    })
}

/// 0 where query i sees key j, -∞ elsewhere, in the dtype of `like`: (queries, m).
fn blocked(queries: Range<usize>, m: usize, like: &Tensor) -> Result<Tensor> {
    let rows = queries.len();
    let values: Vec<f32> =
        queries.flat_map(|i| (0..m).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 })).collect();
    Ok(Tensor::from_vec(values, (rows, m), like.device())?.to_dtype(like.dtype())?)
}

/// (b, n, d) → (b, heads, n, d / heads).
fn split_heads(t: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, n, d) = t.dims3()?;
    Ok(t.reshape((b, n, heads, d / heads))?.transpose(1, 2)?.contiguous()?)
}

fn join_heads(t: &Tensor) -> Result<Tensor> {
    let (b, heads, n, width) = t.dims4()?;
    Ok(t.transpose(1, 2)?.reshape((b, n, heads * width))?)
}

/// The weights of a block of queries, softmax in f32: (b, heads, queries, m).
fn weights_composed(q: &Tensor, k: &Tensor, s: Sizes, queries: Range<usize>) -> Result<Tensor> {
    let scale = 1.0 / ((s.d / s.heads) as f64).sqrt();
    let block = q.narrow(2, queries.start, queries.len())?.contiguous()?;
    let mut scores = ((block * scale)?.matmul(&k.t()?)?).to_dtype(DType::F32)?;
    if s.causal {
        scores = scores.broadcast_add(&blocked(queries, s.m, &scores)?)?;
    }
    Ok(candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(q.dtype())?)
}

/// Ranges of queries whose scores number at most `limit`.
fn blocks(b: usize, s: Sizes, limit: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = (limit / (b * s.heads * s.m).max(1)).clamp(1, s.n.max(1));
    (0..s.n).step_by(rows).map(move |first| first..(first + rows).min(s.n))
}

fn forward_composed(t: &[Tensor], s: Sizes, limit: usize) -> Result<Tensor> {
    let b = t[0].dim(0)?;
    let (q, k, v) =
        (split_heads(&t[0], s.heads)?, split_heads(&t[1], s.heads)?, split_heads(&t[2], s.heads)?);
    let out: Vec<Tensor> = blocks(b, s, limit)
        .map(|queries| Ok(weights_composed(&q, &k, s, queries)?.matmul(&v)?))
        .collect::<Result<_>>()?;
    join_heads(&Tensor::cat(&out, 2)?)
}

fn backward_composed(t: &[Tensor], s: Sizes, g: &Tensor, limit: usize) -> Result<[Tensor; 3]> {
    let b = t[0].dim(0)?;
    let scale = 1.0 / ((s.d / s.heads) as f64).sqrt();
    let (q, k, v) =
        (split_heads(&t[0], s.heads)?, split_heads(&t[1], s.heads)?, split_heads(&t[2], s.heads)?);
    let g = split_heads(g, s.heads)?;
    let (mut gq, mut gk, mut gv) = (Vec::new(), k.zeros_like()?, v.zeros_like()?);
    for queries in blocks(b, s, limit) {
        let (first, rows) = (queries.start, queries.len());
        let p = weights_composed(&q, &k, s, queries)?;
        let g = g.narrow(2, first, rows)?.contiguous()?;
        gv = (gv + p.t()?.matmul(&g)?)?;
        let gp = g.matmul(&v.t()?)?;
        let mean = (&p * &gp)?.sum_keepdim(D::Minus1)?;
        let gs = ((p * gp.broadcast_sub(&mean)?)? * scale)?;
        gq.push(gs.matmul(&k)?);
        gk = (gk + gs.t()?.matmul(&q.narrow(2, first, rows)?.contiguous()?)?)?;
    }
    Ok([join_heads(&Tensor::cat(&gq, 2)?)?, join_heads(&gk)?, join_heads(&gv)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_op, close, random};

    #[test]
    fn equals_its_reference() -> Result<()> {
        // (b, n, m, heads, head width): within a tile, over several, and single elements.
        for (b, n, m, heads, width) in [
            (2, 9, 5, 3, 4),
            (1, 131, 77, 2, 5),
            (1, 1, 1, 1, 3),
            (2, 66, 66, 1, 8),
            (1, 21, 401, 1, 3),
            (1, 450, 450, 1, 2),
        ] {
            let d = heads * width;
            let (q, k, v) = (random(0, &[b, n, d])?, random(1, &[b, m, d])?, random(2, &[b, m, d])?);
            for mask in [Mask::None, Mask::Causal] {
                let run = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], heads, mask);
                let expected = |t: &[Tensor]| reference::attention(&t[0], &t[1], &t[2], heads, mask);
                if m == 1 {
                    // A single weight is 1 whatever the scores: q and k have no gradient.
                    close(&run(&[q.clone(), k.clone(), v.clone()])?, &v, 1e-6)?;
                    continue;
                }
                check_op(&[&q, &k, &v], run, expected)?;
                let sizes = Sizes { n, m, d, heads, causal: mask == Mask::Causal };
                let t = [q.clone(), k.clone(), v.clone()];
                close(&forward_composed(&t, sizes, 7 * b * heads * m)?, &run(&t)?, 1e-5)?;
                let g = random(3, &[b, n, d])?;
                let vars: Vec<_> = t.iter().map(candle_core::Var::from_tensor).collect::<Result<_, _>>()?;
                let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
                let grads = function::backward(&(run(&tracked)? * &g)?)?;
                for (found, var) in backward_composed(&t, sizes, &g, 7 * b * heads * m)?.iter().zip(&vars) {
                    close(found, grads.get(var).expect("a gradient"), 1e-5)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn large_scores_do_not_overflow() -> Result<()> {
        let q = (random(0, &[1, 4, 8])? * 200.0)?;
        let y = attention(&q, &q, &q, 1, Mask::Causal)?;
        close(&y, &reference::attention(&q, &q, &q, 1, Mask::Causal)?, 1e-5)
    }

    #[test]
    fn refuses_shapes_that_disagree() -> Result<()> {
        let (q, k) = (random(0, &[1, 4, 8])?, random(0, &[1, 4, 6])?);
        assert!(attention(&q, &k, &k, 2, Mask::None).is_err());
        assert!(attention(&q, &q, &q, 3, Mask::None).is_err());
        Ok(())
    }
}
