//! Tiles of a product: a few rows by the lanes of one vector or two, and how their sums reach the output.

use super::mat::Place;

/// What is computed a few rows at a time.
pub(super) trait Tiles {
    /// # Safety
    /// M rows from `row` on exist, and the processor has what the implementation needs.
    unsafe fn tile<const M: usize>(&self, row: usize);
}

/// All rows, M at a time while there are as many.
///
/// # Safety
/// As [`Tiles::tile`] for all `rows`.
#[inline(always)]
pub(super) unsafe fn each_tile<const M: usize>(rows: usize, tiles: &impl Tiles) {
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        // SAFETY: as many rows are left.
        unsafe {
            match left {
                l if l >= M => tiles.tile::<M>(row),
                l if l >= 6 => tiles.tile::<6>(row),
                5 => tiles.tile::<5>(row),
                4 => tiles.tile::<4>(row),
                3 => tiles.tile::<3>(row),
                2 => tiles.tile::<2>(row),
                _ => tiles.tile::<1>(row),
            }
        }
        row += if left >= M { M } else { left.min(6) };
    }
}

/// Sums to where not all of a line goes, or not in one piece.
///
/// # Safety
/// As many rows, and `width` columns, may be written.
#[inline(always)]
pub(super) unsafe fn scatter<const W: usize, const FMA: bool>(
    sums: &[[f32; W]],
    out: Place,
    width: usize,
    (keep, scale): (bool, f32),
) {
    // The rows of a transposed output lie side by side.
    for j in 0..width {
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: promised by the caller.
            let out = unsafe { &mut *out.data.add(r * out.row + j * out.col) };
            *out = scaled::<FMA>(if keep { *out } else { 0.0 }, scale, sums[j]);
        }
    }
}

/// A line at once: with a condition for each number the compiler makes it a number at a time.
#[inline(always)]
pub(super) fn line<const W: usize, const FMA: bool>(
    before: [f32; W],
    scale: f32,
    sums: &[f32; W],
) -> [f32; W] {
    let mut line = [0.0; W];
    for j in 0..W {
        line[j] = scaled::<FMA>(before[j], scale, sums[j]);
    }
    line
}

#[inline(always)]
fn scaled<const FMA: bool>(before: f32, scale: f32, sum: f32) -> f32 {
    if FMA { scale.mul_add(sum, before) } else { before + scale * sum }
}
