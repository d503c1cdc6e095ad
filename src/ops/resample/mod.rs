//! Resampling of channels-last pictures.

mod cpu;
mod cuda;
pub(crate) mod reference;

use candle_core::Tensor;

use self::cpu::Resize;
use super::cpu::{Values, narrow, widen};
use super::cuda::card;
use super::function::{self, Output};
use crate::error::{Error, Result};

/// Nearest-neighbour enlargement to `height` × `width` (PyTorch's `nearest`: source = floor(target · in / out)).
///
/// # Shapes
/// - `x`: (b, h, w, c) → (b, height, width, c)
///
/// # Errors
/// If a size is zero.
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    if [h, w, c, height, width].contains(&0) {
        return Err(Error::invalid(format!("upsample_nearest from {h}x{w}x{c} to {height}x{width}")));
    }
    let resize = Resize { from: (h, w), to: (height, width), c };
    if let Some(card) = card(x.device())? {
        let value = cuda::forward(&*card, &x.detach(), resize)?;
        return function::apply(Output::Fresh(value), &[x], move |g| {
            Ok(vec![Some(cuda::backward(&*card, g, resize)?)])
        });
    }
    if !x.device().is_cpu() {
        // Broadcasting and index_select have true gradients on every device.
        return reference::upsample_nearest(x, height, width);
    }
    let value = {
        let wide = widen(&x.detach())?;
        let y = cpu::forward(&Values::of(&wide)?, resize);
        narrow(y, (b, height, width, c), x.dtype())?
    };
    let dtype = x.dtype();
    function::apply(Output::Fresh(value), &[x], move |g| {
        let g = widen(g)?;
        let gx = cpu::backward(&Values::of(&g)?, resize);
        Ok(vec![Some(narrow(gx, (b, h, w, c), dtype)?)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_op, random};

    #[test]
    fn equals_its_reference() -> Result<()> {
        let x = random(0, &[2, 3, 5, 7])?;
        for (height, width) in [(6, 10), (3, 5), (7, 12), (5, 6)] {
            check_op(
                &[&x],
                |t| upsample_nearest(&t[0], height, width),
                |t| reference::upsample_nearest(&t[0], height, width),
            )?;
        }
        assert!(upsample_nearest(&x, 0, 4).is_err());
        Ok(())
    }
}
