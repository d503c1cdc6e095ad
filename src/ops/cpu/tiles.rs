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

/// Sums to where not all of a line goes, or not in one piece; multiplied and added in one (`FUSED`) as whole lines are.
///
/// # Safety
/// As many rows, and `width` columns, may be written.
#[inline(always)]
pub(super) unsafe fn scatter<const W: usize, const FUSED: bool>(
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
            let before = if keep { *out } else { 0.0 };
            *out = if FUSED { scale.mul_add(sums[j], before) } else { before + scale * sums[j] };
        }
    }
}
