//! The same on a card, in f16 or bf16; f32, and heads the kernels do not take, are composed.

use candle_core::{DType, Tensor};

use super::cpu::Sizes;
use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Launch, Module, multiplies},
};

static MODULE: Module = Module { name: "attention", source: include_str!("kernel.cu"), tensor_cores: true };

/// As in the kernels: rows a block, and its threads.
const ROWS: usize = 64;
const THREADS: usize = 128;

/// Beyond it, sums of keys and of values do not fit a thread's registers.
const WIDEST_HEAD: usize = 160;

/// Whether the kernels take these.
pub(super) fn takes(card: &dyn Card, q: &Tensor, sizes: Sizes) -> bool {
    let head = sizes.d / sizes.heads;
    // Rows are copied 16 bytes at a time.
    multiplies(card, q.dtype()) && head.is_multiple_of(8) && head <= WIDEST_HEAD
}

/// q, k, v contiguous. Returns the values, and log₂ Σ exp(score) of each row: (b, heads, n).
pub(super) fn forward(card: &dyn Card, t: &[Tensor], sizes: Sizes) -> Result<(Tensor, Tensor)> {
    let [q, k, v] = [0, 1, 2].map(|i| &t[i]);
    let b = q.dim(0)?;
    let (out, totals) =
        (card.empty(q.shape(), q.dtype())?, card.empty(&(b, sizes.heads, sizes.n).into(), DType::F32)?);
    let tensors = [q, k, v, &out, &totals];
    Plan::new(card, q, sizes).launch("attention", &tensors, [sizes.n.div_ceil(ROWS), sizes.heads, b], 1)?;
    Ok((out, totals))
}

/// What the forward pass found.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub out: &'a Tensor,
    pub totals: &'a Tensor,
}

/// The gradients of q, k, v.
pub(super) fn backward(
    card: &dyn Card,
    t: &[Tensor],
    sizes: Sizes,
    found: Found<'_>,
    g: &Tensor,
) -> Result<[Tensor; 3]> {
    let [q, k, v] = [0, 1, 2].map(|i| &t[i]);
    let (b, g, plan) = (q.dim(0)?, g.contiguous()?, Plan::new(card, q, sizes));
    let shares = card.empty(found.totals.shape(), DType::F32)?;
    card.launch(&Launch {
        kernel: plan.kernel("attention_shares"),
        grid: [sizes.n.div_ceil(THREADS / 32), sizes.heads, b],
        threads: THREADS,
        shared_bytes: 0,
        args: &[
            Arg::Tensor(found.out),
            Arg::Tensor(&g),
            Arg::Tensor(&shares),
            Arg::Int(sizes.n),
            Arg::Int(sizes.d),
        ],
    })?;
    let [gq, gk, gv] = [q, k, v].map(|t| card.empty(t.shape(), t.dtype()));
    let (gq, gk, gv) = (gq?, gk?, gv?);
    let (by_query, by_key) = (sizes.n.div_ceil(ROWS), sizes.m.div_ceil(ROWS));
    let tensors = [q, k, v, &g, found.totals, &shares, &gq];
    plan.launch("attention_backward_queries", &tensors, [by_query, sizes.heads, b], 2)?;
    let tensors = [q, k, v, &g, found.totals, &shares, &gk, &gv];
    plan.launch("attention_backward_keys", &tensors, [by_key, sizes.heads, b], 2)?;
    Ok([gq, gk, gv])
}

/// How the kernels are compiled for a head's width and a card's memory.
struct Plan<'a> {
    card: &'a dyn Card,
    dtype: DType,
    sizes: Sizes,
    constants: [(&'static str, usize); 4],
}

impl<'a> Plan<'a> {
    fn new(card: &'a dyn Card, q: &Tensor, sizes: Sizes) -> Self {
        let head = sizes.d / sizes.heads;
        let depth = head.next_multiple_of(16);
        // Before Ampere, copies are not asynchronous: a second buffer would be of no use.
        let stages = if card.capability() < 80 { 1 } else { 2 };
        let plan = |tile| Self {
            card,
            dtype: q.dtype(),
            sizes,
            constants: Self::constants(head, depth, tile, stages),
        };
        let widest = if depth > 96 { 32 } else { 64 };
        let fits = |tile: &usize| plan(*tile).shared_bytes(2) <= card.shared_bytes();
        plan([widest, 32, 16].into_iter().filter(|tile| *tile <= widest).find(fits).unwrap_or(16))
    }

    fn constants(head: usize, depth: usize, tile: usize, stages: usize) -> [(&'static str, usize); 4] {
        [("HEAD", head), ("DEPTH", depth), ("TILE", tile), ("STAGES", stages)]
    }

    fn kernel(&self, function: &'static str) -> Kernel<'_> {
        Kernel { module: &MODULE, function, dtype: self.dtype, constants: &self.constants }
    }

    /// With `kept` operands of a block's rows beside the two that stream.
    fn shared_bytes(&self, kept: usize) -> usize {
        let [_, (_, depth), (_, tile), (_, stages)] = self.constants;
        let pitch = depth + 8;
        2 * pitch * (kept * ROWS + 2 * stages * tile)
    }

    fn launch(
        &self,
        function: &'static str,
        tensors: &[&Tensor],
        grid: [usize; 3],
        kept: usize,
    ) -> Result<()> {
        let Sizes { n, m, d, heads, causal } = self.sizes;
        let scale = 1.0 / ((d / heads) as f64).sqrt();
        let mut args: Vec<Arg<'_>> = tensors.iter().map(|t| Arg::Tensor(t)).collect();
        args.extend([n, m, d].map(Arg::Int));
        args.extend([Arg::Float(scale), Arg::Int(causal.into())]);
        self.card.launch(&Launch {
            kernel: self.kernel(function),
            grid,
            threads: THREADS,
            shared_bytes: self.shared_bytes(kept),
            args: &args,
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::Mask, super::reference, *};
    use crate::ops::{
        cuda::emulated::emulator,
        testing::{HALVES, check_kernel_in, random},
    };

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        // (b, n, m, heads, head width): parts left over, single rows, and (the last) enough tiles for a buffer to be used again.
        for (b, n, m, heads, width) in [
            (2, 9, 5, 3, 8),
            (1, 66, 77, 1, 40),
            (1, 1, 3, 1, 16),
            (1, 70, 70, 1, 64),
            (1, 17, 41, 1, 160),
            (1, 70, 97, 1, 104),
        ] {
            let d = heads * width;
            let (q, k, v) = (random(0, &[b, n, d])?, random(1, &[b, m, d])?, random(2, &[b, m, d])?);
            for mask in [Mask::None, Mask::Causal] {
                let sizes = Sizes { n, m, d, heads, causal: mask == Mask::Causal };
                check_kernel_in(
                    HALVES,
                    &[&q, &k, &v],
                    |card, t, g| {
                        assert!(takes(card, &t[0], sizes));
                        let (out, totals) = forward(card, t, sizes)?;
                        let found = Found { out: &out, totals: &totals };
                        Ok((out.clone(), backward(card, t, sizes, found, g)?.to_vec()))
                    },
                    |t| reference::attention(&t[0], &t[1], &t[2], heads, mask),
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn older_cards_get_smaller_tiles_and_no_bf16() -> Result<()> {
        let Some(old) = emulator(0, 75) else { return Ok(()) };
        let sizes = Sizes { n: 20, m: 33, d: 160, heads: 1, causal: false };
        let t = [random(0, &[1, 20, 160])?, random(1, &[1, 33, 160])?, random(2, &[1, 33, 160])?];
        assert!(!takes(&old, &t[0].to_dtype(DType::BF16)?, sizes) && !takes(&old, &t[0], sizes));
        let half: Vec<Tensor> = t.iter().map(|t| t.to_dtype(DType::F16)).collect::<Result<_, _>>()?;
        assert!(takes(&old, &half[0], sizes));
        let (out, _) = forward(&old, &half, sizes)?;
        let expected = reference::attention(&t[0], &t[1], &t[2], 1, Mask::None)?;
        crate::ops::testing::close(&out.to_dtype(DType::F32)?, &expected, 5e-3)
    }
}
