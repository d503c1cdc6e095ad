//! Decoding a large picture piece by piece.

use candle_core::{IndexOp as _, Tensor};

use crate::error::{Error, Result};

/// How a picture is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tiling {
    /// Side of a tile in latent pixels.
    pub size: usize,
    /// Part of a tile that its neighbour repeats, in [0, 0.5]; there the two are blended.
    pub overlap: f64,
}

impl Default for Tiling {
    fn default() -> Self {
        Self { size: 64, overlap: 0.25 }
    }
}

impl Tiling {
    /// Decodes overlapping tiles, fades each into the one above and the one to its left, and puts them together. Same
    /// tiles and same fading as diffusers' `tiled_decode`.
    ///
    /// # Shapes
    /// - `latents`: (b, h, w, c) → (b, h · scale, w · scale, c')
    ///
    /// # Errors
    /// If the tile is smaller than two latent pixels or the overlap is out of range.
    pub(super) fn decode(
        &self,
        latents: &Tensor,
        scale: usize,
        decode: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.size < 2 || !(0.0..=0.5).contains(&self.overlap) {
            return Err(Error::invalid(format!(
                "tiles of {} latent pixels with overlap {}, expected at least 2 and 0 to 0.5",
                self.size, self.overlap
            )));
        }
        let (_, h, w, _) = latents.dims4()?;
        let step = (self.size as f64 * (1.0 - self.overlap)) as usize;
        let extent = ((self.size * scale) as f64 * self.overlap) as usize;
        let kept = self.size * scale - extent;
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..h).step_by(step) {
            let strip = latents.narrow(1, top, self.size.min(h - top))?;
            let mut row: Vec<Tensor> = Vec::new();
            for left in (0..w).step_by(step) {
                let mut tile = decode(&strip.narrow(2, left, self.size.min(w - left))?)?;
                if let Some(above) = above.get(row.len()) {
                    tile = fade(above, &tile, 1, extent)?;
                }
                if let Some(before) = row.last() {
                    tile = fade(before, &tile, 2, extent)?;
                }
                row.push(tile);
            }
            let crop = |tile: &Tensor| -> Result<Tensor> {
                let (_, h, w, _) = tile.dims4()?;
                Ok(tile.i((.., ..kept.min(h), ..kept.min(w), ..))?)
            };
            rows.push(Tensor::cat(&row.iter().map(crop).collect::<Result<Vec<_>>>()?, 2)?);
            above = row;
        }
        Ok(Tensor::cat(&rows, 1)?)
    }
}

/// `b` with its first `extent` rows (`dim` 1) or columns (2) faded in from the last ones of `a`.
fn fade(a: &Tensor, b: &Tensor, dim: usize, extent: usize) -> Result<Tensor> {
    let (from, to) = (a.dim(dim)?, b.dim(dim)?);
    let extent = extent.min(from).min(to);
    if extent == 0 {
        return Ok(b.clone());
    }
    let mut shape = [1; 4];
    shape[dim] = extent;
    let ramp: Vec<f32> = (0..extent).map(|i| i as f32 / extent as f32).collect();
    let ramp = Tensor::from_vec(ramp, &shape[..], b.device())?.to_dtype(b.dtype())?;
    let a = a.narrow(dim, from - extent, extent)?;
    let seam = b.narrow(dim, 0, extent)?;
    let seam = (&a + (seam - &a)?.broadcast_mul(&ramp)?)?;
    Ok(if extent == to { seam } else { Tensor::cat(&[seam, b.narrow(dim, extent, to - extent)?], dim)? })
}
