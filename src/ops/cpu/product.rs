//! Matrix products on slices with strides.
//!
//! The columns of one operand are the lanes of vector registers: it is packed, sixteen columns at a time, a part of k at
//! a time. The rows of the other are read where they lie, a number broadcast at a time. Each output is the sum over k
//! in order, in parts that depend on k alone: however a product is cut into tasks or pieces, its bits are the same.

use std::{cell::RefCell, marker::PhantomData, ops::Range};

use rayon::prelude::*;

use super::{
    Numbers, products_together,
    simd::{Level, level, prefetch},
};

/// Columns of a panel.
pub(crate) const LANES: usize = 16;
/// The longest part of k: a panel of it stays in the first cache.
const DEPTH: usize = 320;
/// Rows that stay in the second cache while panels pass.
const ROWS: usize = 96;
/// Columns of a task.
const COLUMNS: usize = 4 * LANES;
/// Tasks a thread, so that a thread that was held up is helped.
const TASKS: usize = 2;

/// A matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: Numbers<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows one after the other.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that start `row_stride` values apart (they may overlap).
    ///
    /// # Panics
    /// If the slice is too short: a mistake in a kernel, never in data.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self::of(Numbers::F32(data), rows, cols, row_stride)
    }

    /// The same of any dtype.
    pub fn of(data: Numbers<'a>, rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(reach(rows, cols, row_stride, 1) <= data.len(), "a matrix reaches past its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix to write to.
#[derive(Debug)]
pub(crate) struct MatMut<'a> {
    place: Place,
    rows: usize,
    cols: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// Rows one after the other.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that start `row_stride ≥ cols` values apart.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        // SAFETY: the slice is borrowed for as long as the matrix lives.
        unsafe { Shared::new(data).matrix(0, rows, cols, row_stride) }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        let Place { data, row, col } = self.place;
        Self { place: Place { data, row: col, col: row }, rows: self.cols, cols: self.rows, ..self }
    }
}

/// Values a matrix spans.
fn reach(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

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
            assert!(panels.n == columns.len(), "gemm: other columns were packed");
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

impl<'a> Mat<'a> {
    /// Some rows.
    pub fn rows(self, rows: Range<usize>) -> Self {
        self.part(rows, 0..self.cols)
    }

    /// Some rows and columns.
    fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a part reaches past its matrix");
        let start = rows.start * self.row_stride + cols.start * self.col_stride;
        let (rows, cols) = (rows.len(), cols.len());
        let span = reach(rows, cols, self.row_stride, self.col_stride);
        let start = if span == 0 { 0 } else { start };
        Self { data: self.data.part(start..start + span), rows, cols, ..self }
    }

    /// The same numbers as f32: the matrix itself if they are, else a copy in `room`.
    fn widened<'b>(self, room: &'b mut Vec<f32>) -> Wide<'b>
    where
        'a: 'b,
    {
        let Self { rows, row_stride, col_stride, .. } = self;
        if let Numbers::F32(data) = self.data {
            return Wide { data, rows, row_stride, col_stride };
        }
        // Along the dimension that lies in one piece.
        let turn = col_stride != 1;
        let (lines, length, stride) =
            if turn { (self.cols, rows, col_stride) } else { (rows, self.cols, row_stride) };
        assert!(!turn || row_stride == 1, "a matrix of halves has rows or columns in one piece");
        room.resize(lines * length, 0.0);
        for (i, line) in room.chunks_exact_mut(length.max(1)).enumerate() {
            self.data.part(i * stride..i * stride + length).widen(line);
        }
        let (row_stride, col_stride) = if turn { (1, length) } else { (length, 1) };
        Wide { data: room, rows, row_stride, col_stride }
    }
}

/// A matrix of f32.
#[derive(Debug, Clone, Copy)]
struct Wide<'a> {
    data: &'a [f32],
    rows: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Where an output begins. Copies are given to tasks that write to different parts of it.
#[derive(Debug, Clone, Copy)]
struct Place {
    data: *mut f32,
    row: usize,
    col: usize,
}

// SAFETY: a task writes only to its own rows and columns.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// # Safety
    /// The position lies inside of the output.
    unsafe fn at(self, row: usize, col: usize) -> Self {
        // SAFETY: promised by the caller.
        Self { data: unsafe { self.data.add(row * self.row + col * self.col) }, ..self }
    }
}

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
    k: usize,
    n: usize,
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

    fn panel(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.pitch..][..self.k * LANES]
    }
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
        let panel = b.panel(i);
        let width = LANES.min(b.n - i * LANES);
        let mut row = 0;
        while row < a.rows {
            let left = a.rows - row;
            // SAFETY: rows `row..row + M` (or fewer) and `width` columns lie inside of the output; the rows of a were
            // checked by `part`, the panel has k rows.
            unsafe {
                let out = out.at(row, i * LANES);
                let rows = a.data.as_ptr().add(row * a.row_stride);
                let strides = (a.row_stride, a.col_stride);
                match left {
                    l if l >= M => tile::<M, FMA>(rows, strides, panel, out, width, (keep, scale)),
                    l if l >= 6 => tile::<6, FMA>(rows, strides, panel, out, width, (keep, scale)),
                    5 => tile::<5, FMA>(rows, strides, panel, out, width, (keep, scale)),
                    4 => tile::<4, FMA>(rows, strides, panel, out, width, (keep, scale)),
                    3 => tile::<3, FMA>(rows, strides, panel, out, width, (keep, scale)),
                    2 => tile::<2, FMA>(rows, strides, panel, out, width, (keep, scale)),
                    _ => tile::<1, FMA>(rows, strides, panel, out, width, (keep, scale)),
                }
            }
            row += if left >= M { M } else { left.min(6) };
        }
    }
}

/// M rows times a panel.
///
/// # Safety
/// M rows of `strides` and as many columns as the panel has rows may be read; M rows and `width` columns of `out` written.
#[inline(always)]
unsafe fn tile<const M: usize, const FMA: bool>(
    a: *const f32,
    (row, col): (usize, usize),
    panel: &[f32],
    out: Place,
    width: usize,
    (keep, scale): (bool, f32),
) {
    let mut tile = [[0.0f32; LANES]; M];
    // SAFETY: promised by the caller.
    unsafe { sums::<M, FMA>(a, (row, col), panel, &mut tile) };
    // SAFETY: promised by the caller.
    unsafe {
        if out.col == 1 && width == LANES {
            for (r, sums) in tile.iter().enumerate() {
                let out = &mut *out.data.add(r * out.row).cast::<[f32; LANES]>();
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if keep { *out } else { 0.0 } + scale * sum;
                }
            }
        } else {
            for j in 0..width {
                for (r, sums) in tile.iter().enumerate() {
                    let out = &mut *out.data.add(r * out.row + j * out.col);
                    *out = if keep { *out } else { 0.0 } + scale * sums[j];
                }
            }
        }
    }
}

/// The sums in registers, then written to `tile` at once: indexing them by a variable would put them in memory.
#[inline(always)]
unsafe fn sums<const M: usize, const FMA: bool>(
    a: *const f32,
    (row, col): (usize, usize),
    panel: &[f32],
    tile: &mut [[f32; LANES]; M],
) {
    let mut sums = [[0.0f32; LANES]; M];
    for (p, b) in panel.as_chunks::<LANES>().0.iter().enumerate() {
        let b = *b;
        #[expect(
            clippy::needless_range_loop,
            reason = "an index known to the compiler keeps the sums in registers"
        )]
        for r in 0..M {
            // SAFETY: promised by the caller.
            let a = unsafe { *a.add(r * row + p * col) };
            for j in 0..LANES {
                sums[r][j] = if FMA { a.mul_add(b[j], sums[r][j]) } else { a * b[j] + sums[r][j] };
            }
        }
    }
    *tile = sums;
}

/// An output several tasks write to, each to its own part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the methods that write ask for parts no one else uses.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(values: &'a mut [f32]) -> Self {
        Self { data: values.as_mut_ptr(), len: values.len(), borrow: PhantomData }
    }

    /// # Safety
    /// No one else uses this part at the same time.
    ///
    /// # Panics
    /// If it lies outside.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that the part is its own")]
    pub unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "a part reaches past its slice");
        // SAFETY: inside of the slice, checked above; not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }

    /// A matrix whose rows start `row_stride ≥ cols` values apart, from `at` on.
    ///
    /// # Safety
    /// No one else uses its elements at the same time.
    ///
    /// # Panics
    /// If it reaches outside or its rows overlap.
    pub unsafe fn matrix(&self, at: usize, rows: usize, cols: usize, row_stride: usize) -> MatMut<'a> {
        assert!(row_stride >= cols || rows <= 1, "rows to write to overlap");
        assert!(at + reach(rows, cols, row_stride, 1) <= self.len, "a matrix reaches past its slice");
        // SAFETY: inside of the slice, checked above.
        let data = unsafe { self.data.add(at) };
        MatMut { place: Place { data, row: row_stride, col: 1 }, rows, cols, borrow: PhantomData }
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
