//! The packed operand of a product.

use std::ops::Range;

use super::{
    Numbers,
    mat::Mat,
    simd::{Level, level, prefetch},
};

/// Columns of a panel.
pub(crate) const LANES: usize = 16;

/// Rows asked for before they are used: they may lie far apart.
pub(super) const AHEAD: usize = 8;

/// What a panel holds for a column: a number, or more that follow each other along k. 32 bits.
pub(crate) trait Lane: Copy + Default {
    /// What it is made of.
    type Number: Copy;
    /// How many.
    const NUMBERS: usize;

    /// Made of the first numbers, of which there is one at least; zeros where there are no more.
    fn gather(numbers: &[Self::Number]) -> Self;
}

impl Lane for f32 {
    type Number = f32;
    const NUMBERS: usize = 1;

    #[inline(always)]
    fn gather(numbers: &[f32]) -> Self {
        numbers[0]
    }
}

/// A (k, n) operand as panels of sixteen columns, each (k, 16) in one piece; zeros fill the last.
#[derive(Debug, Default)]
pub(crate) struct PanelsOf<L> {
    values: Vec<L>,
    /// Lanes along k.
    k: usize,
    n: usize,
    /// Where rows are made into lanes.
    pub(super) room: Vec<L>,
}

/// Panels of numbers.
pub(crate) type Panels = PanelsOf<f32>;

impl Panels {
    /// Packs a matrix.
    pub fn fill(&mut self, b: Mat<'_>) {
        if b.col_stride == 1 {
            return self.fill_rows(b.rows, b.cols, |row| {
                b.data.part(row * b.row_stride..row * b.row_stride + b.cols)
            });
        }
        assert!(b.row_stride == 1, "a matrix has rows or columns in one piece");
        let mut room = std::mem::take(&mut self.room);
        let wide = b.widened(&mut room);
        self.fill_columns(b.rows, b.cols, wide.data, wide.col_stride);
        self.room = room;
    }

    /// Packs k rows of n numbers, each in one piece.
    pub fn fill_rows<'b>(&mut self, k: usize, n: usize, row: impl Fn(usize) -> Numbers<'b>) {
        self.resize(k, n);
        let mut room = std::mem::take(&mut self.room);
        room.resize(n, 0.0);
        for p in 0..k {
            if p + AHEAD < k {
                prefetch(row(p + AHEAD));
            }
            let numbers = row(p);
            if let Numbers::F32(values) = numbers {
                self.lay(p, &values[..n]);
            } else {
                numbers.widen(&mut room);
                self.lay(p, &room);
            }
        }
        self.room = room;
    }
}

impl<L: Lane> PanelsOf<L> {
    /// Packs columns of k numbers, each in one piece, `stride` after the one before.
    pub(super) fn fill_columns(&mut self, k: usize, n: usize, columns: &[L::Number], stride: usize) {
        for (i, panel) in self.clear(k, n).enumerate() {
            let start = |j| (j < n).then_some(j * stride);
            pack_columns(columns, &std::array::from_fn(|j| start(i * LANES + j)), k, panel);
        }
    }

    /// Lays a line of n lanes across the panels.
    #[inline]
    pub(super) fn lay(&mut self, p: usize, line: &[L]) {
        let (whole, rest) = line.as_chunks::<LANES>();
        let targets = self.values[p * LANES..].chunks_mut((self.k * LANES).max(1));
        for (i, target) in targets.enumerate() {
            match whole.get(i) {
                Some(values) => target[..LANES].copy_from_slice(values),
                None => {
                    target[..rest.len()].copy_from_slice(rest);
                    target[rest.len()..LANES].fill(L::default());
                }
            }
        }
    }

    /// The panels, sixteen lanes for every [`Lane::NUMBERS`] of k, to be filled.
    pub fn clear(&mut self, k: usize, n: usize) -> impl Iterator<Item = &mut [L]> {
        self.resize(k, n);
        self.values.chunks_exact_mut((self.k * LANES).max(1))
    }

    /// Makes room for panels.
    pub(super) fn resize(&mut self, k: usize, n: usize) {
        (self.k, self.n) = (k.div_ceil(L::NUMBERS), n);
        self.values.resize(n.div_ceil(LANES) * self.k * LANES, L::default());
    }

    /// All of them.
    pub fn packed(&self) -> Packed<'_, L> {
        Packed { values: &self.values, k: self.k, n: self.n, pitch: self.k * LANES }
    }
}

/// Panels someone packed: (k, n), each panel `pitch` lanes after the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed<'a, L = f32> {
    values: &'a [L],
    pub(super) k: usize,
    pub(super) n: usize,
    pitch: usize,
}

impl<'a> Packed<'a> {
    /// # Panics
    /// If the slice is too short.
    pub fn new(values: &'a [f32], k: usize, n: usize) -> Self {
        assert!(n.div_ceil(LANES) * k * LANES <= values.len(), "panels reach past their slice");
        Self { values, k, n, pitch: k * LANES }
    }

    /// Some of the k rows.
    pub fn part(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.k, "panels have fewer rows");
        Self { values: &self.values[rows.start * LANES..], k: rows.len(), ..self }
    }

    /// Some of the n columns, from a multiple of [`LANES`] on.
    pub fn columns(self, columns: Range<usize>) -> Self {
        assert!(
            columns.start.is_multiple_of(LANES) && columns.end <= self.n,
            "columns are cut between panels"
        );
        let values = self.values.get(columns.start / LANES * self.pitch..).unwrap_or_default();
        Self { values, n: columns.len(), ..self }
    }
}

impl<'a, L> Packed<'a, L> {
    pub(super) fn panel(&self, i: usize) -> &'a [L] {
        &self.values[i * self.pitch..][..self.k * LANES]
    }
}

/// Sixteen columns, each k numbers in one piece from where it starts (zeros if nowhere), to lanes.
///
/// # Panics
/// If a column reaches past the source, or the panel is shorter.
pub(crate) fn pack_columns<L: Lane>(
    source: &[L::Number],
    starts: &[Option<usize>; LANES],
    k: usize,
    panel: &mut [L],
) {
    let lines = k.div_ceil(L::NUMBERS);
    assert!(starts.iter().flatten().all(|start| start + k <= source.len()) && panel.len() >= lines * LANES);
    let mut whole = 0;
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx2 {
        whole = k / (8 * L::NUMBERS) * 8;
        // SAFETY: `level` found AVX2; the numbers lie inside, checked above.
        unsafe { turn_columns(source, starts, whole, panel) };
    }
    for (p, line) in panel.chunks_exact_mut(LANES).enumerate().take(lines).skip(whole) {
        let from = p * L::NUMBERS;
        for (lane, start) in line.iter_mut().zip(starts) {
            *lane = start.map_or(L::default(), |start| L::gather(&source[start + from..start + k]));
        }
    }
}

/// Eight times eight lanes at a time, turned in registers: the compiler does not find this by itself.
///
/// # Safety
/// The columns have numbers for `k` lanes, a multiple of eight; the panel has as many lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn turn_columns<L: Lane>(
    source: &[L::Number],
    starts: &[Option<usize>; LANES],
    k: usize,
    panel: &mut [L],
) {
    const { assert!(size_of::<L>() == 4 && size_of::<L::Number>() * L::NUMBERS == 4) };
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    for first in (0..k).step_by(8) {
        for half in [0, 8] {
            let r: [_; 8] = std::array::from_fn(|j| match starts[half + j] {
                // SAFETY: promised by the caller.
                Some(start) => unsafe {
                    _mm256_loadu_ps(source.as_ptr().add(start + first * L::NUMBERS).cast())
                },
                None => _mm256_setzero_ps(),
            });
            let pairs: [_; 8] = std::array::from_fn(|j| match j % 2 {
                0 => _mm256_unpacklo_ps(r[j], r[j + 1]),
                _ => _mm256_unpackhi_ps(r[j - 1], r[j]),
            });
            let quads: [_; 8] = std::array::from_fn(|j| {
                let (a, b) = (pairs[j / 4 * 4 + j % 4 / 2], pairs[j / 4 * 4 + j % 4 / 2 + 2]);
                if j % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xee>(a, b) }
            });
            for j in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(quads[j], quads[j + 4]);
                let high = _mm256_permute2f128_ps::<0x31>(quads[j], quads[j + 4]);
                // SAFETY: promised by the caller.
                unsafe {
                    let line = panel.as_mut_ptr().add((first + j) * LANES + half).cast();
                    _mm256_storeu_ps(line, low);
                    _mm256_storeu_ps(line.add(4 * LANES), high);
                }
            }
        }
    }
}
