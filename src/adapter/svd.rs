//! Singular values of what an adapter changes, by way of its factors wherever they are known: with up = Q R and
//! downᵀ = P S, the delta up · down is Q (R Sᵀ) Pᵀ, and only the core R Sᵀ, of the size of the rank, is decomposed.

use candle_core::{DType, Device, Tensor};
use faer::{
    Conj, Mat, MatRef, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{householder, solvers::Qr},
};

use super::delta::f32_of;
use crate::{
    error::{Error, Result},
    random::{Rng, Stream},
};

/// Columns the randomised decomposition computes beyond the wanted rank.
const OVERSAMPLING: usize = 16;
/// How often it multiplies by the matrix and its transpose: sharpens slowly falling singular values.
const POWER_ITERATIONS: usize = 3;
/// Directions shorter than this, relative to the longest, are rounding: factors in f32 know theirs to 6e-8.
const NOTHING: f64 = 1e-8;

/// M = U · diag(values) · Vᵀ of an (o, n) matrix, the values falling. U and V are multiplied out for the wanted rank only.
#[derive(Debug)]
pub struct Svd {
    values: Vec<f64>,
    /// U = outputs · left, left (r, k).
    outputs: Basis,
    left: Mat<f64>,
    /// V = inputs · right, right (r, k).
    inputs: Basis,
    right: Mat<f64>,
}

impl Svd {
    /// Of `up` (o, r) times `down` (r, n), at the cost of two QR decompositions and an r × r SVD, in f64.
    ///
    /// # Errors
    /// If shapes disagree or there are numbers that are not finite.
    pub fn of_product(up: &Tensor, down: &Tensor) -> Result<Self> {
        let ((o, left), (right, n)) = (up.dims2()?, down.dims2()?);
        if left != right {
            return Err(Error::invalid(format!(
                "the rank is {right} in the down factor and {left} in the up factor"
            )));
        }
        let outputs = MatRef::from_row_major_slice(&finite(up)?, o, left).qr();
        // The rows of `down` are the columns of its transpose.
        let inputs = MatRef::from_column_major_slice(&finite(down)?, n, right).qr();
        let core = outputs.thin_R() * inputs.thin_R().transpose();
        Self::new(Basis::Of(outputs), core.as_ref(), Basis::Of(inputs))
    }

    /// Of a whole matrix (o, n): exact, and slow for large ones.
    ///
    /// # Errors
    /// If it has other than two dimensions or numbers that are not finite.
    pub fn of_matrix(m: &Tensor) -> Result<Self> {
        let (o, n) = m.dims2()?;
        Self::new(Basis::Identity, MatRef::from_row_major_slice(&finite(m)?, o, n), Basis::Identity)
    }

    fn new(outputs: Basis, core: MatRef<'_, f64>, inputs: Basis) -> Result<Self> {
        let svd = core.thin_svd().map_err(|_| Error::invalid("the singular values do not converge"))?;
        let mut values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let least = values.first().copied().unwrap_or_default() * NOTHING;
        // One is kept of a matrix that is all 0.
        values.truncate(values.iter().take_while(|x| **x > least).count().max(1));
        let first = |m: MatRef<'_, f64>| m.subcols(0, values.len()).to_owned();
        let (left, right) = (first(svd.U()), first(svd.V()));
        Ok(Self { values, outputs, left, inputs, right })
    }

    /// The first `rank` singular values of a matrix (o, n) and their vectors, by randomised subspace iteration
    /// (Halko, Martinsson and Tropp, <https://arxiv.org/abs/0909.4061>, algorithm 4.4). Small matrices are decomposed
    /// exactly.
    ///
    /// # Errors
    /// As [`Svd::of_matrix`].
    pub fn leading(m: &Tensor, rank: usize, seed: u64) -> Result<Self> {
        let (o, n) = m.dims2()?;
        let columns = rank.saturating_add(OVERSAMPLING);
        if columns.saturating_mul(3) >= o.min(n) {
            return Self::of_matrix(m);
        }
        let m = f32_of(m)?;
        let transposed = m.t()?;
        let noise = Rng::new(seed, Stream::Merge, 0).normal((n, columns), &Device::Cpu)?;
        let mut q = orthonormal(&m.matmul(&noise)?)?; // o columns
        for _ in 0..POWER_ITERATIONS {
            let back = orthonormal(&transposed.matmul(&q)?)?; // n columns
            q = orthonormal(&m.matmul(&back)?)?;
        }
        // M ≈ Q (Qᵀ M): the product of two factors.
        Self::of_product(&q, &q.t()?.matmul(&m)?)
    }

    /// The singular values, falling.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The best approximation of the given rank (Eckart and Young), as kohya splits it: `up` = U · diag(values) (o, r)
    /// and `down` = Vᵀ (r, n), both f32. The rank is cut to what there is.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn factors(&self, rank: usize) -> Result<(Tensor, Tensor)> {
        let rank = rank.min(self.values.len());
        let long = Mat::from_fn(self.left.nrows(), rank, |i, j| self.left[(i, j)] * self.values[j]);
        let right = self.right.subcols(0, rank).to_owned();
        // Columns lie one after another, as rows of the transpose do.
        let up = rows_of_transpose(&self.outputs.times(long))?.t()?.contiguous()?;
        Ok((up, rows_of_transpose(&self.inputs.times(right))?))
    }
}

/// Orthonormal columns.
#[derive(Debug)]
enum Basis {
    Identity,
    /// The Q of this: kept as reflections, as few of its columns may be asked for.
    Of(Qr<f64>),
}

impl Basis {
    /// Times a small matrix (r, k).
    fn times(&self, small: Mat<f64>) -> Mat<f64> {
        let Self::Of(qr) = self else { return small };
        let (basis, coefficients) = (qr.Q_basis(), qr.Q_coeff());
        let (o, k) = (basis.nrows(), small.ncols());
        let mut product = Mat::zeros(o, k);
        product.subrows_mut(0, small.nrows()).copy_from(&small);
        let scratch = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>;
        let mut memory = MemBuffer::new(scratch(o, coefficients.nrows(), k));
        householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
            basis,
            coefficients,
            Conj::No,
            product.as_mut(),
            Par::Seq,
            MemStack::new(&mut memory),
        );
        product
    }
}

/// Orthonormal columns (f32) that span what the columns of `t` do.
fn orthonormal(t: &Tensor) -> Result<Tensor> {
    let (rows, columns) = t.dims2()?;
    let q = MatRef::from_row_major_slice(&finite(t)?, rows, columns).qr().compute_thin_Q();
    Ok(rows_of_transpose(&q)?.t()?.contiguous()?)
}

/// Row by row, in f64.
fn finite(t: &Tensor) -> Result<Vec<f64>> {
    let values = t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    if values.is_empty() || !values.iter().all(|x| x.is_finite()) {
        return Err(Error::invalid("a matrix with NaN or infinity has no singular values"));
    }
    Ok(values)
}

/// (k, o) of (o, k), in f32.
fn rows_of_transpose(m: &Mat<f64>) -> Result<Tensor> {
    let values = (0..m.ncols()).flat_map(|j| m.col_as_slice(j)).map(|x| *x as f32).collect::<Vec<_>>();
    Ok(Tensor::from_vec(values, (m.ncols(), m.nrows()), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::frobenius;

    fn random(rows: usize, columns: usize, seed: u64) -> Result<Tensor> {
        Rng::new(seed, Stream::Weights, 0).normal((rows, columns), &Device::Cpu)
    }

    fn close(a: &[f64], b: &[f64], tolerance: f64) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= tolerance * b.abs().max(1e-3), "{a} is not {b}");
        }
    }

    /// Eckart and Young: what is left out is the tail of the singular values, whatever the shapes.
    #[test]
    fn the_error_is_the_tail_of_the_singular_values() -> Result<()> {
        for (o, r, n) in [(20, 6, 30), (5, 8, 12), (12, 8, 5), (3, 9, 4)] {
            let (up, down) = (random(o, r, 1)?, random(r, n, 2)?);
            let product = up.matmul(&down)?;
            let (svd, whole) = (Svd::of_product(&up, &down)?, Svd::of_matrix(&product)?);
            let k = svd.values().len();
            close(svd.values(), &whole.values()[..k], 1e-5);
            for rank in 0..=k {
                let (up, down) = svd.factors(rank)?;
                assert_eq!((up.dims(), down.dims()), ([o, rank].as_slice(), [rank, n].as_slice()));
                if rank > 0 {
                    let left = frobenius(&(&product - up.matmul(&down)?)?)?;
                    let tail = svd.values()[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
                    assert!(
                        (left - tail).abs() < 1e-4 * frobenius(&product)?,
                        "{o}x{n} rank {rank}: {left}, {tail}"
                    );
                }
            }
        }
        Ok(())
    }

    /// Nothing at all, one direction, equal and far apart values, numbers near the ends of f32.
    #[test]
    fn what_breaks_such_code() -> Result<()> {
        for n in [1, 2, 7, 40] {
            let a = random(n, n, 5)?;
            let graded = (0..n * n).map(|i| if i / n == i % n { 0.1f32.powi((i % n) as i32) } else { 0.0 });
            let graded = Tensor::from_vec(graded.collect(), (n, n), &Device::Cpu)?;
            let one = Tensor::eye(n, DType::F32, &Device::Cpu)?;
            let thin = random(n, 1, 6)?.matmul(&random(1, n, 7)?)?;
            for m in [a.zeros_like()?, one.clone(), graded, thin, (&a * 1e-30)?, (&a * 1e30)?, a] {
                for svd in [Svd::of_matrix(&m)?, Svd::of_product(&m, &one)?, Svd::of_product(&one, &m)?] {
                    assert!(svd.values().windows(2).all(|w| w[0] >= w[1]));
                    let (up, down) = svd.factors(n)?;
                    let left = frobenius(&(up.matmul(&down)? - &m)?)?;
                    assert!(left <= 1e-6 * frobenius(&m)?, "n {n}: {left:.1e} of {:.1e}", frobenius(&m)?);
                    let square = down.matmul(&down.t()?)?;
                    let far =
                        frobenius(&(&square - Tensor::eye(square.dim(0)?, DType::F32, &Device::Cpu)?)?)?;
                    assert!(far < 1e-5, "n {n}: {far:.1e}");
                }
            }
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let bad = Tensor::new(&[[1.0, bad]], &Device::Cpu)?;
            assert!(Svd::of_matrix(&bad).is_err() && Svd::of_product(&bad.t()?, &bad).is_err());
        }
        Ok(())
    }

    #[test]
    fn the_randomised_one_finds_what_the_exact_one_finds() -> Result<()> {
        // A spectrum that falls slowly, as differences of checkpoints have.
        let (u, v) = (Svd::of_matrix(&random(120, 120, 3)?)?, Svd::of_matrix(&random(90, 90, 4)?)?);
        let spectrum = Tensor::from_vec((0..90).map(|i| 0.96f32.powi(i)).collect(), (90, 1), &Device::Cpu)?;
        let m = u.factors(90)?.1.t()?.matmul(&v.factors(90)?.1.broadcast_mul(&spectrum)?)?;
        let (exact, fast) = (Svd::of_matrix(&m)?, Svd::leading(&m, 8, 7)?);
        assert_eq!(fast.values().len(), 8 + OVERSAMPLING);
        close(&fast.values()[..8], &exact.values()[..8], 1e-3);
        let error = |svd: &Svd| -> Result<f64> {
            let (up, down) = svd.factors(8)?;
            frobenius(&(&m - up.matmul(&down)?)?)
        };
        assert!(error(&fast)? <= error(&exact)? * 1.001);
        Ok(())
    }
}
