//! The same on a card, in f16 or bf16; f32 is composed.

use candle_core::{DType, Tensor};

use super::Sizes;
use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Launch, Module, each_pack, multiplies},
};

static MODULE: Module = Module { name: "conv2d", source: include_str!("kernel.cu"), tensor_cores: true };

/// As in the kernel: its threads, and channels a step.
const THREADS: usize = 256;
const DEEP: usize = 32;

/// Rows are copied 16 bytes at a time.
const ALIGNED: usize = 8;

/// Whether the kernels take these.
pub(super) fn takes(card: &dyn Card, x: &Tensor) -> bool {
    multiplies(card, x.dtype())
}

/// x (b, h, w, i) by weight (o, i, kh, kw) → (b, h', w', o)
pub(super) fn forward(
    card: &dyn Card,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    s: Sizes,
) -> Result<Tensor> {
    let (x, weight) = (aligned(x, 3)?, aligned(weight, 1)?);
    let outputs = weight.dim(0)?;
    let product = Product {
        card,
        from: (&x, [s.h, s.w, x.dim(3)?]),
        weight: &super::kernel(&weight)?,
        bias: bias.map(|b| b.to_dtype(x.dtype())).transpose()?,
        to: [s.out_h, s.out_w, outputs],
        backward: false,
    };
    product.run(s)
}

/// The gradient of x for g (b, h', w', o).
pub(super) fn input_gradient(card: &dyn Card, g: &Tensor, weight: &Tensor, s: Sizes) -> Result<Tensor> {
    let (g, weight) = (aligned(g, 3)?, aligned(&aligned(weight, 0)?, 1)?);
    let product = Product {
        card,
        from: (&g, [s.out_h, s.out_w, g.dim(3)?]),
        weight: &super::kernel(&weight)?,
        bias: None,
        to: [s.h, s.w, weight.dim(1)?],
        backward: true,
    };
    Ok(product.run(s)?.narrow(3, 0, s.c)?.contiguous()?)
}

/// Zeros after the last channel, so that rows can be copied.
fn aligned(t: &Tensor, dim: usize) -> Result<Tensor> {
    let n = t.dim(dim)?;
    match n.next_multiple_of(ALIGNED) - n {
        0 => Ok(t.clone()),
        missing => Ok(t.pad_with_zeros(dim, 0, missing)?),
    }
}

/// A convolution as a product: rows are the pixels of `to`, the depth taps and channels of `from`.
struct Product<'a> {
    card: &'a dyn Card,
    from: (&'a Tensor, [usize; 3]),
    /// (o, kh, kw, i)
    weight: &'a Tensor,
    bias: Option<Tensor>,
    to: [usize; 3],
    backward: bool,
}

/// How a product is cut.
#[derive(Clone, Copy)]
struct Cut {
    bm: usize,
    bn: usize,
    splits: usize,
}

impl Product<'_> {
    fn run(&self, s: Sizes) -> Result<Tensor> {
        let ((x, [h, w, from_c]), [out_h, out_w, out_c]) = (self.from, self.to);
        let x = x.contiguous()?;
        let (rows, taps) = (s.b * out_h * out_w, s.kh * s.kw);
        let cut = self.cut(rows, taps * from_c.div_ceil(DEEP));
        let y = self.card.empty(&(s.b, out_h, out_w, out_c).into(), x.dtype())?;
        let parts = match cut.splits {
            1 => y.clone(),
            splits => self.card.empty(&(splits, rows, out_c).into(), DType::F32)?,
        };
        let stages = if self.card.capability() < 80 { 1 } else { 3 };
        let constants = [
            ("BM", cut.bm),
            ("BN", cut.bn),
            ("STAGES", stages),
            ("BACKWARD", self.backward.into()),
            ("STRIDE", s.stride),
            ("KW", s.kw),
        ];
        let kernel = |function| Kernel { module: &MODULE, function, dtype: x.dtype(), constants: &constants };
        let bias = self.bias.as_ref().unwrap_or(self.weight);
        let has_bias = Arg::Int(self.bias.is_some().into());
        let mut args = [&x, self.weight, bias, &y, &parts].map(Arg::Tensor).to_vec();
        args.extend([h, w, from_c, out_h, out_w, out_c, taps, s.pad_top, s.pad_left, rows].map(Arg::Int));
        args.push(has_bias);
        let tile_b = if self.backward { DEEP * (cut.bn + 8) } else { cut.bn * (DEEP + 8) };
        self.card.launch(&Launch {
            kernel: kernel("conv2d"),
            grid: [rows.div_ceil(cut.bm), out_c.div_ceil(cut.bn), cut.splits],
            threads: THREADS,
            shared_bytes: 2 * stages * (cut.bm * (DEEP + 8) + tile_b),
            args: &args,
        })?;
        if cut.splits > 1 {
            let mut args = [&parts, bias, &y].map(Arg::Tensor).to_vec();
            args.extend([cut.splits, rows * out_c, out_c].map(Arg::Int));
            args.push(has_bias);
            each_pack(self.card, kernel("conv2d_join"), rows * out_c, &args)?;
        }
        Ok(y)
    }

    /// The largest tiles that keep all processors busy; where even the smallest do not, the depth is split.
    fn cut(&self, rows: usize, steps: usize) -> Cut {
        let (columns, processors) = (self.to[2], self.card.processors());
        let tiles: &[(usize, usize)] =
            if columns <= 32 { &[(128, 32), (64, 32)] } else { &[(128, 128), (128, 64), (64, 64)] };
        let blocks = |(bm, bn): (usize, usize)| rows.div_ceil(bm) * columns.div_ceil(bn);
        let smallest = tiles[tiles.len() - 1];
        let (bm, bn) = tiles.iter().copied().find(|tile| blocks(*tile) >= processors).unwrap_or(smallest);
        let splits = (processors / blocks((bm, bn))).min(steps / 8).clamp(1, 16);
        Cut { bm, bn, splits: steps.div_ceil(steps.div_ceil(splits)) }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::Conv2dGeometry, super::reference, *};
    use crate::ops::testing::{HALVES, check_kernel_in, random};

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        let geometry = |stride, pad_before, pad_after| Conv2dGeometry { stride, pad_before, pad_after };
        for ((b, h, w), (i, o), (kh, kw), geometry) in [
            ((2, 7, 5), (40, 72), (3, 3), geometry(1, 1, 1)),
            ((1, 6, 9), (16, 8), (3, 3), geometry(2, 1, 1)),
            ((2, 8, 6), (5, 3), (3, 3), geometry(2, 0, 1)),
            ((1, 4, 5), (8, 130), (1, 1), geometry(2, 0, 0)),
            ((1, 5, 4), (64, 16), (2, 3), geometry(1, 0, 1)),
        ] {
            let (x, weight, bias) =
                (random(0, &[b, h, w, i])?, random(1, &[o, i, kh, kw])?, random(2, &[o])?);
            let weight = (weight / ((i * kh * kw) as f64).sqrt())?;
            let s = Sizes::new(&x, &weight, geometry)?;
            check_kernel_in(
                HALVES,
                &[&x],
                |card, t, g| {
                    assert!(takes(card, &t[0]));
                    let weight = weight.to_dtype(t[0].dtype())?;
                    let y = forward(card, &t[0], &weight, Some(&bias), s)?;
                    Ok((y, vec![input_gradient(card, g, &weight, s)?]))
                },
                |t| reference::conv2d(&t[0], &weight, Some(&bias), geometry, None),
            )?;
        }
        Ok(())
    }
}
