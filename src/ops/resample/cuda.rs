//! The same on a card.

use candle_core::Tensor;

use super::cpu::Resize;
use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Module, each_pack, pack_width},
};

static MODULE: Module = Module { name: "resample", source: include_str!("kernel.cu"), tensor_cores: false };

/// (b, h, w, c) → (b, height, width, c)
pub(super) fn forward(card: &dyn Card, x: &Tensor, resize: Resize) -> Result<Tensor> {
    run(card, "upsample_nearest", x, resize, resize.to)
}

/// (b, height, width, c) → (b, h, w, c)
pub(super) fn backward(card: &dyn Card, g: &Tensor, resize: Resize) -> Result<Tensor> {
    run(card, "upsample_nearest_backward", g, resize, resize.from)
}

fn run(
    card: &dyn Card,
    function: &'static str,
    input: &Tensor,
    resize: Resize,
    (h, w): (usize, usize),
) -> Result<Tensor> {
    let input = input.contiguous()?;
    let Resize { from, to, c } = resize;
    let output = card.empty(&(input.dim(0)?, h, w, c).into(), input.dtype())?;
    let constants = [("WIDTH", pack_width(c, &[&input]))];
    let packs = output.elem_count() / constants[0].1;
    let kernel = Kernel { module: &MODULE, function, dtype: input.dtype(), constants: &constants };
    let sizes = [from.0, from.1, to.0, to.1, c, packs].map(Arg::Int);
    let args: Vec<Arg<'_>> = [Arg::Tensor(&input), Arg::Tensor(&output)].into_iter().chain(sizes).collect();
    each_pack(card, kernel, packs, &args)?;
    Ok(output)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::reference, *};
    use crate::ops::testing::{check_kernel, random};

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        for (c, to) in [(8, (6, 10)), (7, (3, 5)), (12, (7, 12)), (3, (5, 6)), (4, (2, 3))] {
            let x = random(0, &[2, 3, 5, c])?;
            let resize = Resize { from: (3, 5), to, c };
            check_kernel(
                &[&x],
                |card, t, g| Ok((forward(card, &t[0], resize)?, vec![backward(card, g, resize)?])),
                |t| reference::upsample_nearest(&t[0], to.0, to.1),
            )?;
        }
        Ok(())
    }
}
