//! Matrix products on slices with strides.
//!
//! The columns of one operand are the lanes of vector registers: it is packed, sixteen columns at a time, a part of k at
//! a time. The rows of the other are read where they lie, a number broadcast at a time. Each output is the sum over k
//! in order, in parts that depend on k alone: however a product is cut into tasks or pieces, its bits are the same.

use std::{cell::RefCell, marker::PhantomData, ops::Range};

use super::{
    Numbers,
    dot::{Dot, dot, gemm_pairs},
    floats::{Baseline, Floats},
    mat::{Mat, MatMut, Place, Wide},
    pairs::PairPanels,
    panels::{LANES, Packed, Panels},
    simd::{Level, level},
    tasks::{Piece, ROWS, Threads, in_pieces},
    tiles::{Tiles, each_tile, scatter},
};

/// out = keep · out + scale · a b, where `keep` is 0 or 1. Where both are bf16, by the processor's [`dot()`] if it has one.
///
/// # Panics
/// If the shapes disagree: a mistake in a kernel, never in data.
pub(crate) fn gemm(out: MatMut<'_>, keep: bool, a: Mat<'_>, b: Mat<'_>, scale: f32, threads: Threads) {
    gemm_by(dot(), out, a, b, (keep, scale), threads);
}

fn gemm_by(
    dot: Option<Dot>,
    out: MatMut<'_>,
    a: Mat<'_>,
    b: Mat<'_>,
    (keep, scale): (bool, f32),
    threads: Threads,
) {
    assert!(out.rows == a.rows && out.cols == b.cols && a.cols == b.rows, "gemm: shapes disagree");
    let (out, a, b) = if turned(a, b) { (out.t(), b.t(), a.t()) } else { (out, a, b) };
    if let (Numbers::Bf16(_), Numbers::Bf16(_), Some(dot)) = (a.data, b.data, dot) {
        let pack = |part, columns, panels: &mut PairPanels| panels.fill(b.part(part, columns));
        return gemm_pairs(dot, out, a, (keep, scale), threads, pack);
    }
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
    assert!(out.rows == a.rows, "gemm: shapes disagree");
    let place = out.place;
    in_pieces((out.rows, a.cols, out.cols), threads, |panels: &mut Panels, Piece { rows, columns, part }| {
        pack(part.clone(), columns.clone(), panels);
        assert!(panels.packed().n == columns.len(), "gemm: other columns were packed");
        let keep = keep || part.start > 0;
        let a = a.part(rows.clone(), part);
        // SAFETY: pieces have rows and columns of their own, inside of the output.
        unsafe { multiply(place.at(rows.start, columns.start), keep, a, panels.packed(), scale) };
    });
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
        Level::Avx512 | Level::Avx512Bf16 => avx512,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2,
        Level::Portable => portable,
    };
    ROOM.with_borrow_mut(|room| {
        for first in (0..a.rows).step_by(ROWS) {
            let rows = a.rows(first..(first + ROWS).min(a.rows)).widened(room);
            // SAFETY: `level` found the features; `part` checked that the rows lie inside of a.
            unsafe { block(out.at(first, 0), rows, b, (keep, scale)) };
        }
    });
}

/// A block of rows times all panels. Few columns leave registers for more rows.
///
/// # Safety
/// As [`multiply`], and the processor has the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
unsafe fn avx512(out: Place, a: Wide<'_>, b: Packed<'_>, update: (bool, f32)) {
    use std::arch::x86_64::{__m256, __m512};
    for first in (0..b.n).step_by(2 * LANES) {
        let strip = Strip { out, a, b, columns: first..(first + 2 * LANES).min(b.n), update };
        // SAFETY: promised by the caller.
        unsafe {
            match strip.columns.len() {
                0..=8 => each_tile::<12>(a.rows, &strip.of::<__m256, 1>()),
                9..=16 => each_tile::<12>(a.rows, &strip.of::<__m512, 1>()),
                _ => each_tile::<12>(a.rows, &strip.of::<__m512, 2>()),
            }
        }
    }
}

/// # Safety
/// As [`avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(out: Place, a: Wide<'_>, b: Packed<'_>, update: (bool, f32)) {
    use std::arch::x86_64::__m256;
    for first in (0..b.n).step_by(LANES) {
        let strip = Strip { out, a, b, columns: first..(first + LANES).min(b.n), update };
        // SAFETY: promised by the caller.
        unsafe {
            match strip.columns.len() {
                0..=8 => each_tile::<12>(a.rows, &strip.of::<__m256, 1>()),
                _ => each_tile::<6>(a.rows, &strip.of::<__m256, 2>()),
            }
        }
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn portable(out: Place, a: Wide<'_>, b: Packed<'_>, update: (bool, f32)) {
    for first in (0..b.n).step_by(LANES) {
        let strip = Strip { out, a, b, columns: first..(first + LANES).min(b.n), update };
        // SAFETY: promised by the caller.
        unsafe { each_tile::<6>(a.rows, &strip.of::<Baseline, { LANES / Baseline::LANES }>()) };
    }
}

/// A block of rows times some columns.
struct Strip<'a> {
    out: Place,
    a: Wide<'a>,
    b: Packed<'a>,
    columns: Range<usize>,
    /// keep and scale.
    update: (bool, f32),
}

/// The same by N vectors.
struct Vectors<'a, V, const N: usize> {
    strip: &'a Strip<'a>,
    /// Where their columns begin; the next row is [`LANES`] further.
    lines: [*const f32; N],
    by: PhantomData<V>,
}

impl Strip<'_> {
    /// # Panics
    /// If the vectors reach past the panels.
    #[inline(always)]
    fn of<V: Floats, const N: usize>(&self) -> Vectors<'_, V, N> {
        let line = |i: usize| {
            let column = self.columns.start + i * V::LANES;
            // A panel is empty where k is.
            self.b.panel(column / LANES).get(column % LANES..).unwrap_or_default().as_ptr()
        };
        Vectors { strip: self, lines: std::array::from_fn(line), by: PhantomData }
    }
}

impl<V: Floats, const N: usize> Tiles for Vectors<'_, V, N> {
    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "indices known to the compiler keep the sums in registers"
    )]
    unsafe fn tile<const M: usize>(&self, row: usize) {
        let Strip { a, b, out, ref columns, update: (keep, scale) } = *self.strip;
        // SAFETY: the rows of a were checked by `part` and are the output's; a panel has k rows of `LANES`.
        unsafe {
            let (from, out) = (a.data.as_ptr().add(row * a.row_stride), out.at(row, columns.start));
            let mut sums = [[V::splat(0.0); N]; M];
            for p in 0..b.k {
                let mut line = [V::splat(0.0); N];
                for n in 0..N {
                    line[n] = V::load(self.lines[n].add(p * LANES));
                }
                for r in 0..M {
                    let a = V::splat(*from.add(r * a.row_stride + p * a.col_stride));
                    for n in 0..N {
                        sums[r][n] = sums[r][n].plus(a, line[n]);
                    }
                }
            }
            if out.col != 1 || columns.len() != N * V::LANES {
                let mut tile = [[0.0; 2 * LANES]; M];
                for r in 0..M {
                    for n in 0..N {
                        sums[r][n].store(tile[r].as_mut_ptr().add(n * V::LANES));
                    }
                }
                let (width, update) = (columns.len(), (keep, scale));
                return match V::FUSED {
                    true => scatter::<{ 2 * LANES }, true>(&tile, out, width, update),
                    false => scatter::<{ 2 * LANES }, false>(&tile, out, width, update),
                };
            }
            let scale = V::splat(scale);
            for r in 0..M {
                for n in 0..N {
                    let out = out.data.add(r * out.row + n * V::LANES);
                    let before = if keep { V::load(out) } else { V::splat(0.0) };
                    before.plus(scale, sums[r][n]).store(out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::random::{Rng, Stream};

    fn random(i: u64, n: usize) -> Vec<f32> {
        let values = Rng::new(3, Stream::Weights, i).normal(n, &candle_core::Device::Cpu).expect("values");
        values.to_vec1().expect("f32")
    }

    /// The nearest bf16.
    fn rounded(values: Vec<f32>) -> Vec<f32> {
        values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
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

    /// The matrix that [`lay`] laid out; as bf16 if there is room for it.
    fn mat<'a>(
        laid: &'a [f32],
        (rows, cols): (usize, usize),
        turn: bool,
        halves: Option<&'a mut Vec<bf16>>,
    ) -> Mat<'a> {
        let numbers = match halves {
            Some(halves) => {
                halves.extend(laid.iter().map(|value| bf16::from_f32(*value)));
                Numbers::Bf16(halves)
            }
            None => Numbers::F32(laid),
        };
        if turn { Mat::of(numbers, cols, rows, rows + 3).t() } else { Mat::of(numbers, rows, cols, cols + 3) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_shape_and_layout(
            (m, k, n) in (1usize..40, prop_oneof![0usize..40, 300usize..700], prop_oneof![1usize..40, 60usize..140]),
            (turn_a, turn_b, turn_out, keep) in any::<(bool, bool, bool, bool)>(),
            (half_a, half_b) in any::<(bool, bool)>(),
        ) {
            let (a, b, before) = (rounded(random(0, m * k)), rounded(random(1, k * n)), random(2, m * n));
            let mut exact = vec![0.0; m * n];
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                    exact[i * n + j] = 0.5 * sum + if keep { f64::from(before[i * n + j]) } else { 0.0 };
                }
            }
            let (laid_a, laid_b) = (lay(&a, m, k, turn_a), lay(&b, k, n, turn_b));
            let (mut halves_a, mut halves_b) = (Vec::new(), Vec::new());
            let a = mat(&laid_a, (m, k), turn_a, half_a.then_some(&mut halves_a));
            let b = mat(&laid_b, (k, n), turn_b, half_b.then_some(&mut halves_b));
            // Two bf16 by the kernel of pairs too.
            for (threads, dot) in [(Threads::One, None), (Threads::All, None), (Threads::All, Some(Dot::Emulated))] {
                let mut out = lay(&before, m, n, turn_out);
                let untouched = out.clone();
                let target = if turn_out {
                    MatMut::strided(&mut out, n, m, m + 3).t()
                } else {
                    MatMut::strided(&mut out, m, n, n + 3)
                };
                gemm_by(dot, target, a, b, (keep, 0.5), threads);
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
        let (m, k, n) = (130, 702, 150);
        let (a, b) = (random(0, m * k), random(1, n * k));
        let halves = |values: &[f32]| -> Vec<bf16> { values.iter().map(|v| bf16::from_f32(*v)).collect() };
        let (half_a, half_b) = (halves(&a), halves(&b));
        for (a, b) in [(Numbers::F32(&a), Numbers::F32(&b)), (Numbers::Bf16(&half_a), Numbers::Bf16(&half_b))]
        {
            let product = |rows: Range<usize>, columns: Range<usize>, threads| {
                let mut out = vec![0.0; rows.len() * columns.len()];
                let a = Mat::of(a.part(rows.start * k..rows.end * k), rows.len(), k, k);
                let b = Mat::of(b.part(columns.start * k..columns.end * k), columns.len(), k, k).t();
                let dot = Some(dot().unwrap_or(Dot::Emulated));
                gemm_by(dot, MatMut::new(&mut out, rows.len(), columns.len()), a, b, (false, 0.7), threads);
                out
            };
            let whole = product(0..m, 0..n, Threads::All);
            assert_eq!(whole, product(0..m, 0..n, Threads::One));
            for (row, column) in [(0, 0), (7, 3), (129, 149)] {
                assert_eq!(
                    product(row..row + 1, column..column + 1, Threads::One),
                    [whole[row * n + column]]
                );
            }
        }
    }
}
