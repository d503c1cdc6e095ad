//! Copies of whole pixels, and their sums.

use rayon::prelude::*;

use crate::ops::cpu::together;

/// (h, w) to (height, width), c values a pixel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resize {
    pub from: (usize, usize),
    pub to: (usize, usize),
    pub c: usize,
}

/// Every target pixel copies its source.
pub(super) fn forward(x: &[f32], r: Resize) -> Vec<f32> {
    let ((h, w), (height, width), c) = (r.from, r.to, r.c);
    let mut y = vec![0.0; x.len() / (h * w) * height * width];
    let rows = y.par_chunks_mut(width * c).with_min_len(together(width * c));
    rows.enumerate().for_each(|(row, y)| {
        let (b, row) = (row / height, row % height);
        let x = &x[(b * h + row * h / height) * w * c..][..w * c];
        for (column, y) in y.chunks_exact_mut(c).enumerate() {
            y.copy_from_slice(&x[column * w / width * c..][..c]);
        }
    });
    y
}

/// Every source pixel collects the gradients of its copies.
pub(super) fn backward(g: &[f32], r: Resize) -> Vec<f32> {
    let ((h, w), (height, width), c) = (r.from, r.to, r.c);
    let mut gx = vec![0.0; g.len() / (height * width) * h * w];
    let rows = gx.par_chunks_mut(w * c).with_min_len(together(height / h * width * c));
    rows.enumerate().for_each(|(row, gx)| {
        let (b, row) = (row / h, row % h);
        // The targets t with ⌊t h / height⌋ = row.
        for target in (row * height).div_ceil(h)..((row + 1) * height).div_ceil(h) {
            let g = &g[(b * height + target) * width * c..][..width * c];
            for (column, g) in g.chunks_exact(c).enumerate() {
                let gx = &mut gx[column * w / width * c..][..c];
                gx.iter_mut().zip(g).for_each(|(gx, g)| *gx += g);
            }
        }
    });
    gx
}
