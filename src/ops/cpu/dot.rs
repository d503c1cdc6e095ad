//! Products of bf16 by bf16 where the processor adds two of them to an f32 sum in one instruction.
//!
//! The instruction cannot be run everywhere, so it is the only thing that differs between [`Dot::Instruction`] and
//! [`Dot::Emulated`]: packing, tiles and edges are the same code.

use std::{cell::RefCell, marker::PhantomData, ops::Range, sync::OnceLock};

use half::bf16;

use super::{
    mat::{Mat, MatMut, Place},
    pairs::{Pair, PairPanels, PairRows},
    panels::{LANES, Packed},
    tasks::{Piece, ROWS, Threads, in_pieces},
    tiles::{Tiles, each_tile, scatter},
    vector::{Emulated, Products},
};
#[cfg(target_arch = "x86_64")]
use super::{
    simd::{Level, level},
    vector::Instruction,
};

/// Who multiplies pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dot {
    /// `vdpbf16ps` of AVX-512 BF16.
    #[cfg(target_arch = "x86_64")]
    Instruction,
    /// The same in plain Rust: slow, for tests.
    Emulated,
}

/// Whether products of bf16 are multiplied in pairs: if the processor can, or `SCUMBLE_SIMD` is `dot` (then emulated).
pub(crate) fn dot() -> Option<Dot> {
    static DOT: OnceLock<Option<Dot>> = OnceLock::new();
    *DOT.get_or_init(|| {
        if std::env::var("SCUMBLE_SIMD").is_ok_and(|wish| wish == "dot") {
            return Some(Dot::Emulated);
        }
        #[cfg(target_arch = "x86_64")]
        if level() >= Level::Avx512Bf16 && works() {
            return Some(Dot::Instruction);
        }
        None
    })
}

/// Whether the instruction gives what its description says for a product whose sums are exact.
#[cfg(target_arch = "x86_64")]
fn works() -> bool {
    use super::Numbers;
    let (m, k, n) = (13, 7, 50);
    let numbers = |count: usize, step: usize| -> Vec<bf16> {
        (0..count).map(|i| bf16::from_f32((i * step % 15) as f32 - 7.0)).collect()
    };
    let (a, b) = (numbers(m * k, 4), numbers(k * n, 11));
    let (a, b) = (Mat::of(Numbers::Bf16(&a), m, k, k), Mat::of(Numbers::Bf16(&b), k, n, n));
    let product = |dot| {
        let mut out = vec![0.0; m * n];
        let pack = |part, columns, panels: &mut PairPanels| panels.fill(b.part(part, columns));
        gemm_pairs(dot, MatMut::new(&mut out, m, n), a, (false, 1.0), Threads::One, pack);
        out
    };
    product(Dot::Instruction) == product(Dot::Emulated)
}

/// out = keep · out + scale · a b for an `a` of bf16 and a right operand that `pack` lays out: some of its rows (a part of
/// k) and columns.
#[expect(clippy::needless_pass_by_value, reason = "the output is this product's alone")]
pub(crate) fn gemm_pairs(
    dot: Dot,
    out: MatMut<'_>,
    a: Mat<'_>,
    (keep, scale): (bool, f32),
    threads: Threads,
    pack: impl Fn(Range<usize>, Range<usize>, &mut PairPanels) + Sync,
) {
    assert!(out.rows == a.rows, "gemm: shapes disagree");
    let place = out.place;
    in_pieces((out.rows, a.cols, out.cols), threads, |panels: &mut PairPanels, piece| {
        let Piece { rows, columns, part } = piece;
        pack(part.clone(), columns.clone(), panels);
        assert!(panels.packed().n == columns.len(), "gemm: other columns were packed");
        let update = (keep || part.start > 0, scale);
        let a = a.part(rows.clone(), part);
        // SAFETY: pieces have rows and columns of their own, inside of the output; `dot` found the features.
        unsafe { multiply(dot, place.at(rows.start, columns.start), a, panels.packed(), update) };
    });
}

thread_local! {
    /// Where rows that are not in pairs are laid out.
    static ROOM: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
}

/// # Safety
/// `out` has the rows of a and the columns of b, no one else writes there, and the processor has what `dot` needs.
unsafe fn multiply(dot: Dot, out: Place, a: Mat<'_>, b: Packed<'_, Pair>, update: (bool, f32)) {
    assert!(a.cols.div_ceil(2) == b.k, "gemm: shapes disagree");
    let block = match dot {
        #[cfg(target_arch = "x86_64")]
        Dot::Instruction => instruction,
        #[cfg(target_arch = "x86_64")]
        Dot::Emulated if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => emulated_avx2,
        Dot::Emulated => emulated,
    };
    ROOM.with_borrow_mut(|room| {
        for first in (0..a.rows).step_by(ROWS) {
            let rows = a.rows(first..(first + ROWS).min(a.rows)).paired(room);
            // SAFETY: promised by the caller; the rows lie inside of the output.
            unsafe { block(out.at(first, 0), rows, b, update) };
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma")]
unsafe fn instruction(out: Place, a: PairRows<'_>, b: Packed<'_, Pair>, update: (bool, f32)) {
    // SAFETY: promised by the caller.
    unsafe { block::<Instruction, 12>(out, a, b, update) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn emulated_avx2(out: Place, a: PairRows<'_>, b: Packed<'_, Pair>, update: (bool, f32)) {
    // SAFETY: promised by the caller.
    unsafe { block::<Emulated, 12>(out, a, b, update) }
}

unsafe fn emulated(out: Place, a: PairRows<'_>, b: Packed<'_, Pair>, update: (bool, f32)) {
    // SAFETY: promised by the caller.
    unsafe { block::<Emulated, 12>(out, a, b, update) }
}

/// A block of rows times all panels, M rows and two panels at a time: 24 sums hide how long each addition takes.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn block<P: Products, const M: usize>(
    out: Place,
    a: PairRows<'_>,
    b: Packed<'_, Pair>,
    update: (bool, f32),
) {
    let panels = b.n.div_ceil(LANES);
    for first in (0..panels).step_by(2) {
        // SAFETY: the panels' columns lie inside of the output; the rows of a are the output's, in as many pairs as the
        // panels have.
        unsafe {
            let out = out.at(0, first * LANES);
            let columns = b.n - first * LANES;
            if first + 1 < panels {
                let panels = [b.panel(first), b.panel(first + 1)];
                each_tile::<M>(a.rows, &Strip::<P, 2> { a, panels, out, columns, update, by: PhantomData });
            } else {
                let panels = [b.panel(first)];
                each_tile::<M>(a.rows, &Strip::<P, 1> { a, panels, out, columns, update, by: PhantomData });
            }
        }
    }
}

/// Rows times some panels.
struct Strip<'a, P, const V: usize> {
    a: PairRows<'a>,
    panels: [&'a [Pair]; V],
    out: Place,
    /// As many as are left.
    columns: usize,
    update: (bool, f32),
    by: PhantomData<P>,
}

impl<P: Products, const V: usize> Tiles for Strip<'_, P, V> {
    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "indices known to the compiler keep the sums in registers"
    )]
    unsafe fn tile<const M: usize>(&self, row: usize) {
        let (stride, (keep, scale)) = (self.a.stride, self.update);
        // SAFETY: rows `row..row + M` have as many pairs as each panel has lines of sixteen; the rest is promised by the
        // caller.
        unsafe {
            let mut sums = [[P::zeros(); V]; M];
            let a = self.a.data.as_ptr().add(row * stride);
            for p in 0..self.a.pairs {
                let mut b = [P::load(self.panels[0].as_ptr().add(p * LANES)); V];
                for v in 1..V {
                    b[v] = P::load(self.panels[v].as_ptr().add(p * LANES));
                }
                for r in 0..M {
                    let a = P::repeat(a.add(r * stride + 2 * p));
                    for v in 0..V {
                        sums[r][v] = P::add(sums[r][v], a, b[v]);
                    }
                }
            }
            for v in 0..V {
                let (out, width) = (self.out.at(row, v * LANES), LANES.min(self.columns - v * LANES));
                let mut tile = [[0.0; LANES]; M];
                for r in 0..M {
                    P::store(sums[r][v], &mut tile[r]);
                }
                if out.col != 1 || width != LANES {
                    scatter::<LANES, false>(&tile, out, width, self.update);
                    continue;
                }
                for r in 0..M {
                    let out = out.data.add(r * out.row).cast::<[f32; LANES]>();
                    let mut line = if keep { *out } else { [0.0; LANES] };
                    for j in 0..LANES {
                        line[j] += scale * tile[r][j];
                    }
                    *out = line;
                }
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Bit for bit where sums are exact. Where they are not, Intel documents the order of roundings, and others may round
    /// once for both products.
    #[test]
    fn the_instruction_is_what_is_emulated() {
        if level() < Level::Avx512Bf16 {
            return;
        }
        assert!(works());
    }
}
