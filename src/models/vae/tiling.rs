//! Encoding and decoding a large picture piece by piece.

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
    /// Runs `f` on overlapping tiles of `input` side pixels, each giving `output` side pixels, fades every result into
    /// the one above and the one to its left, and puts them together. Same tiles and same fading as diffusers'
    /// `tiled_decode` and `tiled_encode`.
    ///
    /// # Shapes
    /// - `x`: (b, h, w, c) → (b, h · output / input, w · output / input, c')
    ///
    /// # Errors
    /// If the tiling makes no sense, or `f` fails.
    pub(super) fn map(
        &self,
        x: &Tensor,
        (input, output): (usize, usize),
        f: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.size < 2 || !(0.0..=0.5).contains(&self.overlap) {
            return Err(Error::invalid(format!(
                "tiles of {} latent pixels with overlap {}, expected at least 2 and 0 to 0.5",
                self.size, self.overlap
            )));
        }
        let (_, h, w, _) = x.dims4()?;
        // In whole latent pixels, so that tiles of pictures and of latents are cut at the same places.
        let step = (self.size as f64 * (1.0 - self.overlap)) as usize;
        let (step, kept) = (step * (input / self.size), step * (output / self.size));
        let extent = output - kept;
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..h).step_by(step) {
            let strip = x.narrow(1, top, input.min(h - top))?;
            let mut row: Vec<Tensor> = Vec::new();
            for left in (0..w).step_by(step) {
                let mut tile = f(&strip.narrow(2, left, input.min(w - left))?.contiguous()?)?;
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
