//! The packed operand of a product.

use std::ops::Range;

use super::{
    Numbers,
    mat::Mat,
    simd::{Level, level, prefetch},
};

/// Columns of a panel.
pub(crate) const LANES: usize = 16;

/// A (k, n) operand as panels of sixteen columns, each (k, 16) in one piece; zeros fill the last.
#[derive(Debug, Default)]
pub(crate) struct Panels {
    values: Vec<f32>,
    k: usize,
    n: usize,
    /// Where halves are widened.
    room: Vec<f32>,
}

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
        for (i, panel) in self.clear(b.rows, b.cols).enumerate() {
            let start = |j| (j < b.cols).then_some(j * wide.col_stride);
            pack_columns(wide.data, &std::array::from_fn(|j| start(i * LANES + j)), b.rows, panel);
        }
        self.room = room;
    }

    /// Packs k rows of n numbers, each in one piece.
    pub fn fill_rows<'b>(&mut self, k: usize, n: usize, row: impl Fn(usize) -> Numbers<'b>) {
        /// Rows asked for before they are used: they may lie far apart.
        const AHEAD: usize = 8;
        self.resize(k, n);
        let mut room = std::mem::take(&mut self.room);
        room.resize(n, 0.0);
        for p in 0..k {
            if p + AHEAD < k {
                prefetch(row(p + AHEAD));
            }
            let numbers = row(p);
            let line: &[f32] = if let Numbers::F32(values) = numbers {
                &values[..n]
            } else {
                numbers.widen(&mut room);
                &room
            };
            let (whole, rest) = line.as_chunks::<LANES>();
            let targets = self.values[p * LANES..].chunks_mut((k * LANES).max(1));
            for (i, target) in targets.enumerate() {
                match whole.get(i) {
                    Some(values) => target[..LANES].copy_from_slice(values),
                    None => {
                        target[..rest.len()].copy_from_slice(rest);
                        target[rest.len()..LANES].fill(0.0);
                    }
                }
            }
        }
        self.room = room;
    }

    /// The panels (k, 16), to be filled.
    pub fn clear(&mut self, k: usize, n: usize) -> impl Iterator<Item = &mut [f32]> {
        self.resize(k, n);
        self.values.chunks_exact_mut((k * LANES).max(1))
    }

    /// Makes room for panels.
    fn resize(&mut self, k: usize, n: usize) {
        (self.k, self.n) = (k, n);
        self.values.resize(n.div_ceil(LANES) * k * LANES, 0.0);
    }

    /// All of them.
    pub fn packed(&self) -> Packed<'_> {
        Packed { values: &self.values, k: self.k, n: self.n, pitch: self.k * LANES }
    }
}

/// Panels someone packed: (k, n), each panel `pitch` values after the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed<'a> {
    values: &'a [f32],
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

    pub(super) fn panel(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.pitch..][..self.k * LANES]
    }
}

/// Sixteen columns, each k values in one piece from where it starts (zeros if nowhere), to (k, 16).
///
/// # Panics
/// If a column reaches past the source, or the panel is shorter.
pub(crate) fn pack_columns(source: &[f32], starts: &[Option<usize>; LANES], k: usize, panel: &mut [f32]) {
    assert!(starts.iter().flatten().all(|start| start + k <= source.len()) && panel.len() >= k * LANES);
    let mut whole = 0;
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx2 {
        whole = k / 8 * 8;
        // SAFETY: `level` found AVX2; the values lie inside, checked above.
        unsafe { turn_columns(source, starts, whole, panel) };
    }
    for (p, line) in panel.chunks_exact_mut(LANES).enumerate().take(k).skip(whole) {
        for (value, start) in line.iter_mut().zip(starts) {
            *value = start.map_or(0.0, |start| source[start + p]);
        }
    }
}

/// Eight times eight values at a time, turned in registers: the compiler does not find this by itself.
///
/// # Safety
/// The columns and the panel have `k` values a column, a multiple of eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn turn_columns(source: &[f32], starts: &[Option<usize>; LANES], k: usize, panel: &mut [f32]) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    for first in (0..k).step_by(8) {
        for half in [0, 8] {
            let r: [_; 8] = std::array::from_fn(|j| match starts[half + j] {
                // SAFETY: promised by the caller.
                Some(start) => unsafe { _mm256_loadu_ps(source.as_ptr().add(start + first)) },
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
                    let line = panel.as_mut_ptr().add((first + j) * LANES + half);
                    _mm256_storeu_ps(line, low);
                    _mm256_storeu_ps(line.add(4 * LANES), high);
                }
            }
        }
    }
}
