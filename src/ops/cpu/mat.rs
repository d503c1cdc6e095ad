//! Matrices inside slices: to read, of any dtype, and to write to, by several tasks at a time.

use std::{marker::PhantomData, ops::Range};

use super::Numbers;

/// A matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(super) data: Numbers<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
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
    pub(super) place: Place,
    pub(super) rows: usize,
    pub(super) cols: usize,
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

impl<'a> Mat<'a> {
    /// Some rows.
    pub fn rows(self, rows: Range<usize>) -> Self {
        self.part(rows, 0..self.cols)
    }

    /// Some rows and columns.
    pub(super) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a part reaches past its matrix");
        let start = rows.start * self.row_stride + cols.start * self.col_stride;
        let (rows, cols) = (rows.len(), cols.len());
        let span = reach(rows, cols, self.row_stride, self.col_stride);
        let start = if span == 0 { 0 } else { start };
        Self { data: self.data.part(start..start + span), rows, cols, ..self }
    }

    /// The same numbers as f32: the matrix itself if they are, else a copy in `room`.
    pub(super) fn widened<'b>(self, room: &'b mut Vec<f32>) -> Wide<'b>
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
pub(super) struct Wide<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// Where an output begins. Copies are given to tasks that write to different parts of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) data: *mut f32,
    pub(super) row: usize,
    pub(super) col: usize,
}

// SAFETY: a task writes only to its own rows and columns.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// # Safety
    /// The position lies inside of the output.
    pub(super) unsafe fn at(self, row: usize, col: usize) -> Self {
        // SAFETY: promised by the caller.
        Self { data: unsafe { self.data.add(row * self.row + col * self.col) }, ..self }
    }
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
