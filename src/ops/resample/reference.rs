//! Plain candle.

use candle_core::Tensor;

use crate::error::Result;

pub(crate) fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    if height == 2 * h && width == 2 * w {
        let y = x.reshape((b, h, 1, w, 1, c))?.broadcast_as((b, h, 2, w, 2, c))?;
        return Ok(y.reshape((b, height, width, c))?);
    }
    let index = |from: usize, to: usize| -> Result<Tensor> {
        let i: Vec<u32> = (0..to).map(|t| (t * from / to) as u32).collect();
        Ok(Tensor::new(i, x.device())?)
    };
    Ok(x.index_select(&index(h, height)?, 1)?.index_select(&index(w, width)?, 2)?)
}
