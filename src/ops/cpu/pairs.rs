//! Operands of bf16 in pairs along k.

use half::bf16;

use super::{
    Numbers,
    mat::Mat,
    panels::{AHEAD, Lane, PanelsOf},
    simd::{prefetch, simd},
};

/// Two numbers that follow each other along k, the first in the lower half.
pub(crate) type Pair = u32;

/// A (k, n) operand as panels of sixteen columns, each (k / 2, 16) pairs; a last number alone is paired with zero.
pub(crate) type PairPanels = PanelsOf<Pair>;

#[inline(always)]
pub(super) fn pair_of(first: bf16, second: bf16) -> Pair {
    u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
}

impl Lane for Pair {
    type Number = bf16;
    const NUMBERS: usize = 2;

    #[inline(always)]
    fn gather(numbers: &[bf16]) -> Self {
        pair_of(numbers[0], numbers.get(1).copied().unwrap_or_default())
    }
}

impl PairPanels {
    /// Packs a matrix of bf16.
    pub fn fill(&mut self, b: Mat<'_>) {
        let data = b.data.bf16();
        if b.col_stride == 1 {
            return self.fill_rows(b.rows, b.cols, |row| &data[row * b.row_stride..][..b.cols]);
        }
        assert!(b.row_stride == 1, "a matrix has rows or columns in one piece");
        self.fill_columns(b.rows, b.cols, data, b.col_stride);
    }

    /// Packs k rows of n numbers, each in one piece.
    pub fn fill_rows<'b>(&mut self, k: usize, n: usize, row: impl Fn(usize) -> &'b [bf16]) {
        self.resize(k, n);
        let mut room = std::mem::take(&mut self.room);
        room.resize(n, 0);
        let zeros = vec![bf16::ZERO; if k.is_multiple_of(2) { 0 } else { n }];
        for p in (0..k).step_by(2) {
            for ahead in (p + AHEAD..p + AHEAD + 2).take_while(|ahead| *ahead < k) {
                prefetch(Numbers::Bf16(row(ahead)));
            }
            pair_up(row(p), if p + 1 < k { row(p + 1) } else { &zeros }, &mut room);
            self.lay(p / 2, &room);
        }
        self.room = room;
    }
}

simd! {
    fn pair_up(first: &[bf16], second: &[bf16], to: &mut [Pair]) {
        for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
            *to = pair_of(*first, *second);
        }
    }
}

/// Rows of pairs, each in one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairRows<'a> {
    pub(super) data: &'a [bf16],
    pub(super) rows: usize,
    /// Pairs in a row.
    pub(super) pairs: usize,
    /// Numbers from the start of one row to that of the next.
    pub(super) stride: usize,
}

impl Mat<'_> {
    /// The rows of a matrix of bf16 as pairs: where they lie if they can be read there, else a copy in `room`.
    pub(super) fn paired<'b>(self, room: &'b mut Vec<bf16>) -> PairRows<'b>
    where
        Self: 'b,
    {
        /// Numbers: rows so far apart would push each other out of the first cache.
        const SAME_SET: usize = 2048;
        let Self { rows, cols, row_stride, col_stride, .. } = self;
        let (data, pairs) = (self.data.bf16(), cols.div_ceil(2));
        if col_stride == 1 && cols.is_multiple_of(2) && !row_stride.is_multiple_of(SAME_SET) {
            return PairRows { data, rows, pairs, stride: row_stride };
        }
        let stride = 2 * pairs;
        room.clear();
        room.resize(rows * stride, bf16::ZERO);
        for (i, line) in room.chunks_exact_mut(stride.max(1)).enumerate() {
            let row = data[i * row_stride..].iter().step_by(col_stride);
            line.iter_mut().zip(row).take(cols).for_each(|(to, from)| *to = *from);
        }
        PairRows { data: room, rows, pairs, stride }
    }
}
