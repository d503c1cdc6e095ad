//! The same on a card: sums of strips of pixels, then the strips themselves.

use candle_core::{DType, Tensor};

use super::GroupNorm;
use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Launch, Module, pack_width},
};

static MODULE: Module = Module { name: "group_norm", source: include_str!("kernel.cu"), tensor_cores: false };

const THREADS: usize = 256;

/// Values a strip should have, and strips a picture at most: each adds up the sums of all of them.
const STRIP_VALUES: usize = 1 << 13;
const STRIPS: usize = 64;

/// x (b, h, w, c), weight and bias (c) in its dtype. Returns y, and mean and 1/σ of each group: (b, groups, 2).
pub(super) fn forward(
    card: &dyn Card,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    norm: GroupNorm,
) -> Result<(Tensor, Tensor)> {
    let x = x.contiguous()?;
    let (b, y) = (x.dim(0)?, card.empty(x.shape(), x.dtype())?);
    let plan = Plan::new(&x, &[&x], norm)?;
    let partial = plan.partial(card, b)?;
    let moments = card.empty(&(b, norm.groups, 2).into(), DType::F32)?;
    let [area, c, groups, height] = plan.sizes();
    plan.launch(
        card,
        "group_norm_sums",
        b,
        plan.sums_bytes(),
        &[Arg::Tensor(&x), Arg::Tensor(&partial), area, c, groups, height],
    )?;
    plan.launch(
        card,
        "group_norm",
        b,
        4 * (2 * norm.groups + 2 * plan.c),
        &[
            Arg::Tensor(&x),
            Arg::Tensor(weight),
            Arg::Tensor(bias),
            Arg::Tensor(&partial),
            Arg::Tensor(&moments),
            Arg::Tensor(&y),
            area,
            c,
            groups,
            height,
            Arg::Float(norm.eps),
            Arg::Int(norm.then_silu.into()),
        ],
    )?;
    Ok((y, moments))
}

/// The affine map of a norm, and what its forward pass found.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub moments: &'a Tensor,
}

pub(super) fn backward(
    card: &dyn Card,
    x: &Tensor,
    found: Found<'_>,
    norm: GroupNorm,
    g: &Tensor,
) -> Result<Tensor> {
    let (x, g) = (x.contiguous()?, g.contiguous()?);
    let (b, gx) = (x.dim(0)?, card.empty(x.shape(), x.dtype())?);
    let plan = Plan::new(&x, &[&x, &g], norm)?;
    let partial = plan.partial(card, b)?;
    let mut args = [&x, &g, found.weight, found.bias, found.moments, &partial].map(Arg::Tensor).to_vec();
    let sizes = plan.sizes().into_iter().chain([Arg::Int(norm.then_silu.into())]);
    let sums: Vec<_> = args.iter().copied().chain(sizes.clone()).collect();
    plan.launch(card, "group_norm_backward_sums", b, plan.sums_bytes(), &sums)?;
    args.push(Arg::Tensor(&gx));
    args.extend(sizes);
    plan.launch(card, "group_norm_backward", b, 8 * norm.groups, &args)?;
    Ok(gx)
}

/// How the work is cut.
struct Plan {
    dtype: DType,
    area: usize,
    c: usize,
    groups: usize,
    strips: usize,
    /// Pixels a strip.
    height: usize,
    width: usize,
}

impl Plan {
    fn new(x: &Tensor, read: &[&Tensor], norm: GroupNorm) -> Result<Self> {
        let (_, h, w, c) = x.dims4()?;
        let area = h * w;
        let height = area.div_ceil((area * c).div_ceil(STRIP_VALUES).clamp(1, STRIPS));
        let strips = area.div_ceil(height);
        Ok(Self {
            dtype: x.dtype(),
            area,
            c,
            groups: norm.groups,
            strips,
            height,
            width: pack_width(c, read),
        })
    }

    fn partial(&self, card: &dyn Card, b: usize) -> Result<Tensor> {
        card.empty(&(b, self.strips, self.groups, 2).into(), DType::F32)
    }

    fn sizes(&self) -> [Arg<'static>; 4] {
        [self.area, self.c, self.groups, self.height].map(Arg::Int)
    }

    /// Of the kernels that sum: 2 c floats for each row of threads.
    fn sums_bytes(&self) -> usize {
        8 * self.c * (THREADS / (self.c / self.width)).max(1)
    }

    fn launch(
        &self,
        card: &dyn Card,
        function: &'static str,
        b: usize,
        shared_bytes: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        let constants = [("WIDTH", self.width)];
        let kernel = Kernel { module: &MODULE, function, dtype: self.dtype, constants: &constants };
        card.launch(&Launch { kernel, grid: [self.strips, b, 1], threads: THREADS, shared_bytes, args })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::reference, *};
    use crate::ops::testing::{check_kernel, random};

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        for (shape, groups) in
            [([2, 3, 5, 12], 4), ([1, 1, 2, 6], 1), ([1, 33, 31, 40], 4), ([1, 3, 3, 512], 32)]
        {
            let c = shape[3];
            let x = ((random(0, &shape)? * 2.0)? + 1.5)?;
            let (weight, bias) = (random(1, &[c])?, random(2, &[c])?);
            for then_silu in [false, true] {
                let norm = GroupNorm { groups, eps: 1e-5, then_silu };
                check_kernel(
                    &[&x],
                    |card, t, g| {
                        let dtype = t[0].dtype();
                        let (weight, bias) = (weight.to_dtype(dtype)?, bias.to_dtype(dtype)?);
                        let (y, moments) = forward(card, &t[0], &weight, &bias, norm)?;
                        let found = Found { weight: &weight, bias: &bias, moments: &moments };
                        Ok((y, vec![backward(card, &t[0], found, norm, g)?]))
                    },
                    |t| reference::group_norm(&t[0], &weight, &bias, norm),
                )?;
            }
        }
        Ok(())
    }
}
