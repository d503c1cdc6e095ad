//! The same on a card.

use candle_core::{D, Tensor};

use super::Pointwise;
use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Module, each_pack, pack_width},
};

static MODULE: Module = Module { name: "activation", source: include_str!("kernel.cu"), tensor_cores: false };

pub(super) fn forward(card: &dyn Card, kind: Pointwise, x: &Tensor) -> Result<Tensor> {
    let function = match kind {
        Pointwise::Silu => "silu",
        Pointwise::Gelu => "gelu",
        Pointwise::QuickGelu => "quick_gelu",
    };
    run(card, function, &[&x.contiguous()?], None)
}

pub(super) fn backward(card: &dyn Card, kind: Pointwise, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    let function = match kind {
        Pointwise::Silu => "silu_backward",
        Pointwise::Gelu => "gelu_backward",
        Pointwise::QuickGelu => "quick_gelu_backward",
    };
    run(card, function, &[&x.contiguous()?, &g.contiguous()?], None)
}

/// x (…, 2 d) → (…, d)
pub(super) fn geglu(card: &dyn Card, x: &Tensor) -> Result<Tensor> {
    run(card, "geglu", &[&x.contiguous()?], Some(x.dim(D::Minus1)? / 2))
}

pub(super) fn geglu_backward(card: &dyn Card, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    run(card, "geglu_backward", &[&x.contiguous()?, &g.contiguous()?], Some(x.dim(D::Minus1)? / 2))
}

/// Calls a kernel with `inputs` and an output; `half` is d where x is (…, 2 d).
fn run(card: &dyn Card, function: &'static str, inputs: &[&Tensor], half: Option<usize>) -> Result<Tensor> {
    let x = inputs[0];
    let mut shape = x.dims().to_vec();
    if let (Some(last), Some(d), [_]) = (shape.last_mut(), half, inputs) {
        *last = d;
    }
    let y = card.empty(&shape.into(), x.dtype())?;
    let values = half.map_or(x.elem_count(), |_| x.elem_count() / 2);
    let width = pack_width(half.unwrap_or(values), inputs);
    let kernel = Kernel { module: &MODULE, function, dtype: x.dtype(), constants: &[("WIDTH", width)] };
    let mut args: Vec<Arg<'_>> = inputs.iter().map(|t| Arg::Tensor(t)).collect();
    args.push(Arg::Tensor(&y));
    args.extend(half.map(Arg::Int));
    args.push(Arg::Int(values / width));
    each_pack(card, kernel, values / width, &args)?;
    Ok(y)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::reference, *};
    use crate::ops::testing::{check_kernel, random};

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        for kind in [Pointwise::Silu, Pointwise::Gelu, Pointwise::QuickGelu] {
            for shape in [vec![2, 3, 16], vec![7, 43]] {
                let x = (random(0, &shape)? * 3.0)?;
                check_kernel(
                    &[&x],
                    |card, t, g| Ok((forward(card, kind, &t[0])?, vec![backward(card, kind, &t[0], g)?])),
                    |t| match kind {
                        Pointwise::Silu => reference::silu(&t[0]),
                        Pointwise::Gelu => reference::gelu(&t[0]),
                        Pointwise::QuickGelu => reference::quick_gelu(&t[0]),
                    },
                )?;
            }
        }
        for shape in [vec![5, 32], vec![2, 150, 6], vec![3, 10]] {
            let x = random(1, &shape)?;
            check_kernel(
                &[&x],
                |card, t, g| Ok((geglu(card, &t[0])?, vec![geglu_backward(card, &t[0], g)?])),
                |t| reference::geglu(&t[0]),
            )?;
        }
        Ok(())
    }
}
