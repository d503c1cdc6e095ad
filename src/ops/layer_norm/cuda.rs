//! The same on a card.

use candle_core::{D, Tensor};

use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Launch, Module, pack_width},
};

static MODULE: Module = Module { name: "layer_norm", source: include_str!("kernel.cu"), tensor_cores: false };

const THREADS: usize = 128;
const ROWS: usize = THREADS / 32;

/// Weight and bias have the dtype of x.
pub(super) fn forward(
    card: &dyn Card,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    run(card, "layer_norm", &[&x, weight, bias], &[&x], eps)
}

pub(super) fn backward(card: &dyn Card, x: &Tensor, weight: &Tensor, g: &Tensor, eps: f64) -> Result<Tensor> {
    let (x, g) = (x.contiguous()?, g.contiguous()?);
    run(card, "layer_norm_backward", &[&x, weight, &g], &[&x, &g], eps)
}

fn run(
    card: &dyn Card,
    function: &'static str,
    inputs: &[&Tensor; 3],
    rows_of: &[&Tensor],
    eps: f64,
) -> Result<Tensor> {
    let x = inputs[0];
    let (d, y) = (x.dim(D::Minus1)?, card.empty(x.shape(), x.dtype())?);
    let rows = x.elem_count() / d;
    let constants = [("WIDTH", pack_width(d, rows_of))];
    card.launch(&Launch {
        kernel: Kernel { module: &MODULE, function, dtype: x.dtype(), constants: &constants },
        grid: [rows.div_ceil(ROWS), 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        args: &[
            Arg::Tensor(x),
            Arg::Tensor(inputs[1]),
            Arg::Tensor(inputs[2]),
            Arg::Tensor(&y),
            Arg::Int(rows),
            Arg::Int(d),
            Arg::Float(eps),
        ],
    })?;
    Ok(y)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::reference, *};
    use crate::ops::testing::{check_kernel, random};

    fn as_x(t: &Tensor, inputs: &[Tensor]) -> Result<Tensor> {
        Ok(t.to_dtype(inputs[0].dtype())?)
    }

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        for shape in [vec![2, 3, 40], vec![1, 17], vec![5, 320], vec![3, 6]] {
            let d = shape[shape.len() - 1];
            let x = ((random(0, &shape)? * 3.0)? + 2.0)?;
            let (weight, bias) = (random(1, &[d])?, random(2, &[d])?);
            check_kernel(
                &[&x],
                |card, t, g| {
                    let y = forward(card, &t[0], &as_x(&weight, t)?, &as_x(&bias, t)?, 1e-5)?;
                    Ok((y, vec![backward(card, &t[0], &as_x(&weight, t)?, g, 1e-5)?]))
                },
                |t| reference::layer_norm(&t[0], &weight, &bias, 1e-5),
            )?;
        }
        Ok(())
    }
}
