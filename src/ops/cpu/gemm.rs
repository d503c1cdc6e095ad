//! Matrix products on slices with strides, over the `gemm` crate (AVX-512, AVX2, NEON at run time).

use gemm::Parallelism;

/// A matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
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
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
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

/// A matrix to write to, rows `row_stride` values apart.
#[derive(Debug)]
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Rows one after the other.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that start `row_stride ≥ cols` values apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride }
    }
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
/// If the shapes disagree or a slice is too short: a mistake in a kernel, never in data.
pub(crate) fn gemm(out: MatMut<'_>, keep: bool, a: Mat<'_>, b: Mat<'_>, scale: f32, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let MatMut { data, rows, cols, row_stride } = out;
    assert!(rows == m && cols == n && b.rows == k, "gemm: shapes disagree");
    if m == 0 || n == 0 {
        return;
    }
    let fits = |len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize| {
        rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < len
    };
    assert!(row_stride >= n && fits(data.len(), m, n, row_stride, 1), "gemm: output too short");
    assert!(fits(a.data.len(), m, k, a.row_stride, a.col_stride), "gemm: left operand too short");
    assert!(fits(b.data.len(), k, n, b.row_stride, b.col_stride), "gemm: right operand too short");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: every index the strides reach was checked above to lie inside its slice; `out` is borrowed mutably and
    // its rows do not overlap, so no element is aliased.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            data.as_mut_ptr(),
            1,
            row_stride as isize,
            keep,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_transposes_and_accumulation() {
        let a: Vec<f32> = (0..12).map(|i| i as f32).collect(); // (3, 4), used as its columns 1..3
        let b = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // (3, 2), transposed
        let mut out = vec![1.0; 15];
        let (a, b) = (Mat::strided(&a[1..], 3, 2, 4), Mat::new(&b, 3, 2).t());
        gemm(MatMut::strided(&mut out, 3, 3, 5), true, a, b, 2.0, Threads::One);
        for i in 0..3 {
            for j in 0..3 {
                let (x, y) = ((4 * i + 1) as f32, (4 * i + 2) as f32);
                let dot = x * (2 * j + 1) as f32 + y * (2 * j + 2) as f32;
                assert_eq!(out[5 * i + j], 1.0 + 2.0 * dot);
            }
        }
        assert_eq!(&out[3..5], &[1.0, 1.0]);
    }
}
