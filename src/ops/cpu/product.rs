//! Matrix products on slices with strides.
//!
//! The columns of one operand are the lanes of vector registers: it is packed, sixteen columns at a time, a part of k at
//! a time. The rows of the other are read where they lie, a number broadcast at a time. Each output is the sum over k
//! in order, in parts that depend on k alone: however a product is cut into tasks or pieces, its bits are the same.

use std::{cell::RefCell, ops::Range};

use rayon::prelude::*;

use super::{
    mat::{Mat, MatMut, Place, Wide},
    panels::{LANES, Packed, Panels},
    products_together,
    simd::{Level, level},
};

/// The longest part of k: a panel of it stays in the first cache.
const DEPTH: usize = 320;
/// Rows that stay in the second cache while panels pass.
const ROWS: usize = 96;
/// Columns of a task.
const COLUMNS: usize = 4 * LANES;
/// Tasks a thread, so that a thread that was held up is helped.
const TASKS: usize = 2;

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread: for tasks that already run in parallel.
    One,
    /// All threads of the pool.
    All,
}

/// out = keep · out + scale · a b, where `keep` is 0 or 1.
///
/// # Panics
/// If the shapes disagree: a mistake in a kernel, never in data.
pub(crate) fn gemm(out: MatMut<'_>, keep: bool, a: Mat<'_>, b: Mat<'_>, scale: f32, threads: Threads) {
    assert!(out.rows == a.rows && out.cols == b.cols && a.cols == b.rows, "gemm: shapes disagree");
    let (out, a, b) = if turned(a, b) { (out.t(), b.t(), a.t()) } else { (out, a, b) };
    gemm_with(out, keep, a, scale, threads, |part, columns, panels| panels.fill(b.part(part, columns)));
}

/// Whether packing a is cheaper than packing b.
fn turned(a: Mat<'_>, b: Mat<'_>) -> bool {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    match (a.col_stride == 1, b.row_stride == 1) {
        (true, false) => false,
        (false, true) => true,
        // A transposed result is written a number at a time.
        (true, true) => m * k + 2 * m * n < n * k,
        (false, false) => m > n,
    }
}

/// The same for a right operand that `pack` lays out: some of its rows (a part of k) and columns.
#[expect(clippy::needless_pass_by_value, reason = "the output is this product's alone")]
pub(crate) fn gemm_with(
    out: MatMut<'_>,
    keep: bool,
    a: Mat<'_>,
    scale: f32,
    threads: Threads,
    pack: impl Fn(Range<usize>, Range<usize>, &mut Panels) + Sync,
) {
    let (m, k, n) = (out.rows, a.cols, out.cols);
    assert!(m == a.rows, "gemm: shapes disagree");
    if m == 0 || n == 0 {
        return;
    }
    let place = out.place;
    let task = |panels: &mut Panels, rows: Range<usize>, columns: Range<usize>| {
        for part in parts(k) {
            pack(part.clone(), columns.clone(), panels);
            assert!(panels.packed().n == columns.len(), "gemm: other columns were packed");
            let keep = keep || part.start > 0;
            let a = a.part(rows.clone(), part);
            // SAFETY: tasks have rows and columns of their own, inside of the output.
            unsafe { multiply(place.at(rows.start, columns.start), keep, a, panels.packed(), scale) };
        }
    };
    let groups = n.div_ceil(COLUMNS);
    let columns = |group: usize| group * COLUMNS..((group + 1) * COLUMNS).min(n);
    if threads == Threads::One || products_together(m * n * k) > 1 {
        let mut panels = Panels::default();
        (0..groups).for_each(|group| task(&mut panels, 0..m, columns(group)));
        return;
    }
    // Few groups are split by rows too; each part packs for itself.
    let splits = (TASKS * rayon::current_num_threads()).div_ceil(groups).min(m.div_ceil(ROWS));
    let each = m.div_ceil(splits);
    (0..groups * splits).into_par_iter().for_each_init(Panels::default, |panels, i| {
        let (group, split) = (i % groups, i / groups);
        let rows = split * each..((split + 1) * each).min(m);
        if !rows.is_empty() {
            task(panels, rows, columns(group));
        }
    });
}

/// k in parts of at most [`DEPTH`], alike in length. At least one, so that an empty sum is written too.
fn parts(k: usize) -> impl Iterator<Item = Range<usize>> {
    let count = k.div_ceil(DEPTH).max(1);
    let each = k.div_ceil(count);
    (0..count).map(move |i| (i * each).min(k)..((i + 1) * each).min(k))
}

/// out = keep · out + scale · a b on the calling thread, b packed.
///
/// # Panics
/// If the shapes disagree.
#[expect(clippy::needless_pass_by_value, reason = "the output is this product's alone")]
pub(crate) fn gemm_packed(out: MatMut<'_>, keep: bool, a: Mat<'_>, b: Packed<'_>, scale: f32) {
    assert!(out.rows == a.rows && out.cols == b.n && a.cols == b.k, "gemm: shapes disagree");
    if out.rows == 0 || out.cols == 0 {
        return;
    }
    // SAFETY: the output has a's rows and b's columns.
    unsafe { multiply(out.place, keep, a, b, scale) };
}

thread_local! {
    /// Where the rows of the left operand are widened.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// # Safety
/// `out` has the rows of a and the columns of b, and no one else writes there.
unsafe fn multiply(out: Place, keep: bool, a: Mat<'_>, b: Packed<'_>, scale: f32) {
    assert!(a.cols == b.k, "gemm: shapes disagree");
    let block = match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::<12>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::<6>,
        Level::Portable => portable::<6>,
    };
    ROOM.with_borrow_mut(|room| {
        for first in (0..a.rows).step_by(ROWS) {
            let rows = a.rows(first..(first + ROWS).min(a.rows)).widened(room);
            // SAFETY: `level` found the features; `part` checked that the rows lie inside of a.
            unsafe { block(out.at(first, 0), keep, rows, b, scale) };
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
unsafe fn avx512<const M: usize>(out: Place, keep: bool, a: Wide<'_>, b: Packed<'_>, scale: f32) {
    // SAFETY: promised by the caller.
    unsafe { block::<M, true>(out, keep, a, b, scale) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const M: usize>(out: Place, keep: bool, a: Wide<'_>, b: Packed<'_>, scale: f32) {
    // SAFETY: promised by the caller.
    unsafe { block::<M, true>(out, keep, a, b, scale) }
}

unsafe fn portable<const M: usize>(out: Place, keep: bool, a: Wide<'_>, b: Packed<'_>, scale: f32) {
    // Every AArch64 processor multiplies and adds in one.
    // SAFETY: promised by the caller.
    unsafe { block::<M, { cfg!(target_arch = "aarch64") }>(out, keep, a, b, scale) }
}

/// A block of rows times all panels, M rows at a time.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn block<const M: usize, const FMA: bool>(
    out: Place,
    keep: bool,
    a: Wide<'_>,
    b: Packed<'_>,
    scale: f32,
) {
    for i in 0..b.n.div_ceil(LANES) {
        let width = LANES.min(b.n - i * LANES);
        // SAFETY: the panel's columns lie inside of the output.
        let (panel, out) = (b.panel(i), unsafe { out.at(0, i * LANES) });
        // SAFETY: promised by the caller.
        unsafe {
            if width <= LANES / 2 {
                // Half the columns leave registers for twice the rows.
                strip::<12, { LANES / 2 }, FMA>(out, keep, a, (panel, width), scale);
            } else {
                strip::<M, LANES, FMA>(out, keep, a, (panel, width), scale);
            }
        }
    }
}

/// A block of rows times `width` columns of a panel, M rows at a time.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn strip<const M: usize, const W: usize, const FMA: bool>(
    out: Place,
    keep: bool,
    a: Wide<'_>,
    (panel, width): (&[f32], usize),
    scale: f32,
) {
    let mut row = 0;
    while row < a.rows {
        let left = a.rows - row;
        // SAFETY: rows `row..row + M` (or fewer) and `width` columns lie inside of the output; the rows of a were
        // checked by `part`, the panel has k rows.
        unsafe {
            let out = out.at(row, 0);
            let rows = a.data.as_ptr().add(row * a.row_stride);
            let strides = (a.row_stride, a.col_stride);
            match left {
                l if l >= M => tile::<M, W, FMA>(rows, strides, panel, out, width, (keep, scale)),
                l if l >= 6 => tile::<6, W, FMA>(rows, strides, panel, out, width, (keep, scale)),
                5 => tile::<5, W, FMA>(rows, strides, panel, out, width, (keep, scale)),
                4 => tile::<4, W, FMA>(rows, strides, panel, out, width, (keep, scale)),
                3 => tile::<3, W, FMA>(rows, strides, panel, out, width, (keep, scale)),
                2 => tile::<2, W, FMA>(rows, strides, panel, out, width, (keep, scale)),
                _ => tile::<1, W, FMA>(rows, strides, panel, out, width, (keep, scale)),
            }
        }
        row += if left >= M { M } else { left.min(6) };
    }
}

/// M rows times the first W columns of a panel.
///
/// # Safety
/// M rows of `strides` and as many columns as the panel has rows may be read; M rows and `width` columns of `out` written.
#[inline(always)]
unsafe fn tile<const M: usize, const W: usize, const FMA: bool>(
    a: *const f32,
    (row, col): (usize, usize),
    panel: &[f32],
    out: Place,
    width: usize,
    (keep, scale): (bool, f32),
) {
    let mut sums = [[0.0f32; W]; M];
    for (p, b) in panel.as_chunks::<LANES>().0.iter().enumerate() {
        let b: [f32; W] = std::array::from_fn(|j| b[j]);
        #[expect(
            clippy::needless_range_loop,
            reason = "an index known to the compiler keeps the sums in registers"
        )]
        for r in 0..M {
            // SAFETY: promised by the caller.
            let a = unsafe { *a.add(r * row + p * col) };
            for j in 0..W {
                sums[r][j] = if FMA { a.mul_add(b[j], sums[r][j]) } else { a * b[j] + sums[r][j] };
            }
        }
    }
    if out.col != 1 || width != W {
        let in_memory = sums;
        // SAFETY: promised by the caller.
        return unsafe { scatter::<W, FMA>(&in_memory, out, width, (keep, scale)) };
    }
    #[expect(clippy::needless_range_loop, reason = "as above")]
    for r in 0..M {
        // SAFETY: promised by the caller.
        unsafe {
            let out = out.data.add(r * out.row).cast::<[f32; W]>();
            let before = if keep { *out } else { [0.0; W] };
            *out = line::<W, FMA>(before, scale, &sums[r]);
        }
    }
}

/// Sums to where not all of a line goes, or not in one piece.
///
/// # Safety
/// As many rows, and `width` columns, may be written.
#[inline(always)]
unsafe fn scatter<const W: usize, const FMA: bool>(
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
fn line<const W: usize, const FMA: bool>(before: [f32; W], scale: f32, sums: &[f32; W]) -> [f32; W] {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::{Rng, Stream};

    fn random(i: u64, n: usize) -> Vec<f32> {
        let values = Rng::new(3, Stream::Weights, i).normal(n, &candle_core::Device::Cpu).expect("values");
        values.to_vec1().expect("f32")
    }

    /// A matrix (rows, cols) in a slice with room around it, straight or as the transpose of one.
    fn lay(values: &[f32], rows: usize, cols: usize, turn: bool) -> Vec<f32> {
        let (r, c) = if turn { (cols, rows) } else { (rows, cols) };
        let mut laid = vec![9.0; r * (c + 3)];
        for i in 0..rows {
            for j in 0..cols {
                let (y, x) = if turn { (j, i) } else { (i, j) };
                laid[y * (c + 3) + x] = values[i * cols + j];
            }
        }
        laid
    }

    fn mat(laid: &[f32], rows: usize, cols: usize, turn: bool) -> Mat<'_> {
        if turn {
            Mat::strided(laid, cols, rows, rows + 3).t()
        } else {
            Mat::strided(laid, rows, cols, cols + 3)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_shape_and_layout(
            (m, k, n) in (1usize..40, prop_oneof![0usize..40, 300usize..700], prop_oneof![1usize..40, 60usize..140]),
            (turn_a, turn_b, turn_out, keep) in any::<(bool, bool, bool, bool)>(),
        ) {
            let (a, b, before) = (random(0, m * k), random(1, k * n), random(2, m * n));
            let mut exact = vec![0.0; m * n];
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                    exact[i * n + j] = 0.5 * sum + if keep { f64::from(before[i * n + j]) } else { 0.0 };
                }
            }
            let (laid_a, laid_b) = (lay(&a, m, k, turn_a), lay(&b, k, n, turn_b));
            for threads in [Threads::One, Threads::All] {
                let mut out = lay(&before, m, n, turn_out);
                let untouched = out.clone();
                let target = if turn_out {
                    MatMut::strided(&mut out, n, m, m + 3).t()
                } else {
                    MatMut::strided(&mut out, m, n, n + 3)
                };
                gemm(target, keep, mat(&laid_a, m, k, turn_a), mat(&laid_b, k, n, turn_b), 0.5, threads);
                let found = lay(&exact.iter().map(|v| *v as f32).collect::<Vec<_>>(), m, n, turn_out);
                for ((out, expected), before) in out.iter().zip(&found).zip(&untouched) {
                    prop_assert!((out - expected).abs() <= 2e-6 * (k as f32).sqrt().max(4.0));
                    prop_assert!(*expected != 9.0 || out == before, "wrote outside of the matrix");
                }
            }
        }
    }

    /// However a product is cut, each number is the same sum in the same order.
    #[test]
    fn pieces_have_the_same_bits() {
        let (m, k, n) = (130, 700, 150);
        let (a, b) = (random(0, m * k), random(1, n * k));
        let product = |rows: Range<usize>, columns: Range<usize>, threads| {
            let mut out = vec![0.0; rows.len() * columns.len()];
            let a = Mat::new(&a[rows.start * k..], rows.len(), k);
            let b = Mat::new(&b[columns.start * k..], columns.len(), k).t();
            gemm(MatMut::new(&mut out, rows.len(), columns.len()), false, a, b, 1.0, threads);
            out
        };
        let whole = product(0..m, 0..n, Threads::All);
        assert_eq!(whole, product(0..m, 0..n, Threads::One));
        for (row, column) in [(0, 0), (7, 3), (129, 149)] {
            assert_eq!(product(row..row + 1, column..column + 1, Threads::One), [whole[row * n + column]]);
        }
    }
}
