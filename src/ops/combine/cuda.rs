//! The same on a card.

use candle_core::Tensor;

use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Launch, Module, each_pack, pack_width},
};

static MODULE: Module = Module { name: "combine", source: include_str!("kernel.cu"), tensor_cores: false };

pub(super) fn add(card: &dyn Card, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (y, width) = (card.empty(a.shape(), a.dtype())?, pack_width(a.elem_count(), &[&a, &b]));
    run(card, "add", [&a, &b, &y], width, &[])?;
    Ok(y)
}

/// x (b, …, c) + t (b, c)
pub(crate) fn add_per_picture(card: &dyn Card, x: &Tensor, t: &Tensor) -> Result<Tensor> {
    let (x, t) = (x.contiguous()?, t.contiguous()?);
    let ((b, c), y) = (t.dims2()?, card.empty(x.shape(), x.dtype())?);
    let width = pack_width(c, &[&x, &t]);
    run(card, "add_per_picture", [&x, &t, &y], width, &[x.elem_count() / b, c])?;
    Ok(y)
}

/// g (b, h, w, c) → (b, c)
pub(super) fn sum_over_area(card: &dyn Card, g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let (b, h, w, c) = g.dims4()?;
    let sum = card.empty(&(b, c).into(), g.dtype())?;
    card.launch(&Launch {
        kernel: kernel("sum_over_area", &g, &[("WIDTH", 1)]),
        grid: [c.div_ceil(32), b, 1],
        threads: 256,
        shared_bytes: 1024,
        args: &[Arg::Tensor(&g), Arg::Tensor(&sum), Arg::Int(h * w), Arg::Int(c)],
    })?;
    Ok(sum)
}

/// (b, h, w, c) and (b, h, w, d) → (b, h, w, c + d)
pub(super) fn concat(card: &dyn Card, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let ((n, h, w, c), d) = (a.dims4()?, b.dim(3)?);
    let y = card.empty(&(n, h, w, c + d).into(), a.dtype())?;
    let width = pack_width(c, &[&a, &b]).min(pack_width(d, &[&a, &b]));
    let packs = y.elem_count() / width;
    let args = [&a, &b, &y].map(Arg::Tensor).into_iter().chain([c, d, packs].map(Arg::Int));
    each_pack(card, kernel("concat", &a, &[("WIDTH", width)]), packs, &args.collect::<Vec<_>>())?;
    Ok(y)
}

/// (b, h, w, c + d) → (b, h, w, c) and (b, h, w, d)
pub(super) fn split(card: &dyn Card, y: &Tensor, c: usize) -> Result<[Tensor; 2]> {
    let y = y.contiguous()?;
    let (n, h, w, both) = y.dims4()?;
    let d = both - c;
    let (a, b) = (card.empty(&(n, h, w, c).into(), y.dtype())?, card.empty(&(n, h, w, d).into(), y.dtype())?);
    let width = pack_width(c, &[&y]).min(pack_width(d, &[&y]));
    let packs = y.elem_count() / width;
    let args = [&y, &a, &b].map(Arg::Tensor).into_iter().chain([c, d, packs].map(Arg::Int));
    each_pack(card, kernel("split", &y, &[("WIDTH", width)]), packs, &args.collect::<Vec<_>>())?;
    Ok([a, b])
}

/// Calls a kernel of three tensors, the last its output, with `sizes` and the number of packs.
fn run(
    card: &dyn Card,
    function: &'static str,
    tensors: [&Tensor; 3],
    width: usize,
    sizes: &[usize],
) -> Result<()> {
    let packs = tensors[2].elem_count() / width;
    let sizes = sizes.iter().copied().chain([packs]).map(Arg::Int);
    let args: Vec<Arg<'_>> = tensors.into_iter().map(Arg::Tensor).chain(sizes).collect();
    each_pack(card, kernel(function, tensors[2], &[("WIDTH", width)]), packs, &args)
}

fn kernel<'a>(function: &'static str, like: &Tensor, constants: &'a [(&'static str, usize)]) -> Kernel<'a> {
    Kernel { module: &MODULE, function, dtype: like.dtype(), constants }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::reference, *};
    use crate::ops::testing::{check_kernel, random};

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        for (c, d) in [(16, 8), (7, 4), (34, 6)] {
            let (x, y) = (random(0, &[2, 3, 5, c])?, random(1, &[2, 3, 5, c])?);
            let (z, t) = (random(2, &[2, 3, 5, d])?, random(3, &[2, c])?);
            check_kernel(
                &[&x, &y],
                |card, t, g| Ok((add(card, &t[0], &t[1])?, vec![g.clone(), g.clone()])),
                |t| reference::add(&t[0], &t[1]),
            )?;
            check_kernel(
                &[&x, &t],
                |card, t, g| {
                    Ok((add_per_picture(card, &t[0], &t[1])?, vec![g.clone(), sum_over_area(card, g)?]))
                },
                |t| reference::add_per_picture(&t[0], &t[1]),
            )?;
            check_kernel(
                &[&x, &z],
                |card, t, g| Ok((concat(card, &t[0], &t[1])?, split(card, g, c)?.to_vec())),
                |t| reference::concat_channels(&t[0], &t[1]),
            )?;
        }
        Ok(())
    }
}
