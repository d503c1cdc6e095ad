//! Singular values of what an adapter changes, by way of its factors wherever they are known: a delta of rank r comes
//! down to two r × r matrices, and nothing as large as the layer is ever decomposed.

use candle_core::{DType, Device, Tensor};

use super::eigen::Eigen;
use crate::{
    error::{Error, Result},
    random::{Rng, Stream},
};

/// Columns the randomised decomposition computes beyond the wanted rank.
const OVERSAMPLING: usize = 16;
/// How often it multiplies by the matrix and its transpose: sharpens slowly falling singular values.
const POWER_ITERATIONS: usize = 3;
/// Directions shorter than this, relative to the longest, are rounding: what f64 leaves of the root of a square.
const NOTHING: f64 = 1e-8;

/// M = U · diag(values) · Vᵀ of an (o, n) matrix, the values falling. U · diag(values) and Vᵀ are multiplied out for the
/// wanted rank only.
#[derive(Debug)]
pub struct Svd {
    values: Vec<f64>,
    /// U · diag(values) = up (o, r) · left (r, k).
    up: Tensor,
    left: Tensor,
    /// Vᵀ = right (k, r) · down (r, n).
    right: Tensor,
    down: Tensor,
}

impl Svd {
    /// Of `up` (o, r) times `down` (r, n), at the cost of two products and two symmetric r × r eigenproblems.
    ///
    /// With down · downᵀ = V Λ Vᵀ and D = Λ^½ Vᵀ, down is Dᵀ Q for an orthonormal Q = Λ^-½ Vᵀ · down; and where
    /// D · upᵀ up · Dᵀ = W Σ² Wᵀ, the product is (up Dᵀ W) · (Wᵀ Q): the first is U Σ, the second Vᵀ. In f64, squares
    /// cost no digit that factors in f32 have.
    ///
    /// # Errors
    /// If shapes disagree or the iteration does not converge (numbers that are not finite).
    pub fn of_product(up: &Tensor, down: &Tensor) -> Result<Self> {
        let (up, down) = (f64_of(up)?, f64_of(down)?);
        let ((_, left), (right, _)) = (up.dims2()?, down.dims2()?);
        if left != right {
            return Err(Error::invalid(format!(
                "the rank is {right} in the down factor and {left} in the up factor"
            )));
        }
        let (lengths, v) = roots(&down.matmul(&down.t()?)?)?; // k 1, k r
        let d = v.broadcast_mul(&lengths)?; // Λ^½ Vᵀ
        let q = v.broadcast_div(&lengths)?; // Λ^-½ Vᵀ
        let core = d.matmul(&up.t()?.matmul(&up)?)?.matmul(&d.t()?)?;
        let (squares, w) = eigen(&core)?; // Wᵀ
        // A product has no more singular values than it has rows or columns, whatever the rank.
        let most = up.dim(0)?.min(down.dim(1)?);
        let values = squares.iter().take(most).map(|x| x.max(0.0).sqrt()).collect();
        Ok(Self { values, left: d.t()?.matmul(&w.t()?)?, right: w.matmul(&q)?, up, down })
    }

    /// Of a whole matrix (o, n): exact, and slow for large ones.
    ///
    /// # Errors
    /// If it has other than two dimensions or numbers that are not finite.
    pub fn of_matrix(m: &Tensor) -> Result<Self> {
        let (o, n) = m.dims2()?;
        let one = Tensor::eye(o.min(n), DType::F64, &Device::Cpu)?;
        if n <= o { Self::of_product(m, &one) } else { Self::of_product(&one, m) }
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
        let m = m.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
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
        let up = self.up.matmul(&self.left.narrow(1, 0, rank)?.contiguous()?)?;
        let down = self.right.narrow(0, 0, rank)?.contiguous()?.matmul(&self.down)?;
        Ok((up.to_dtype(DType::F32)?, down.to_dtype(DType::F32)?))
    }
}

/// Eigenvalues, falling, of a symmetric (n, n) matrix, with the eigenvectors in rows (n, n).
fn eigen(matrix: &Tensor) -> Result<(Vec<f64>, Tensor)> {
    let n = matrix.dim(0)?;
    let Eigen { values, vectors } = Eigen::of(matrix.flatten_all()?.to_vec1()?, n)?;
    Ok((values, Tensor::from_vec(vectors, (n, n), &Device::Cpu)?))
}

/// Of a matrix of squares: the roots (k, 1) of those eigenvalues that are something, and their vectors in rows (k, n).
fn roots(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let (values, vectors) = eigen(matrix)?;
    let least = values.first().copied().unwrap_or_default() * NOTHING * NOTHING;
    // One is kept of a matrix that is all 0, divided by 1 instead of 0.
    let k = values.iter().take_while(|x| **x > least && **x > 0.0).count().max(1);
    let roots: Vec<f64> = values[..k].iter().map(|x| if *x > 0.0 { x.sqrt() } else { 1.0 }).collect();
    Ok((Tensor::from_vec(roots, (k, 1), &Device::Cpu)?, vectors.narrow(0, 0, k)?.contiguous()?))
}

/// Orthonormal columns (f32) that span the same space; fewer if the given ones depend on each other.
fn orthonormal(t: &Tensor) -> Result<Tensor> {
    let t = f64_of(t)?;
    let (lengths, vectors) = roots(&t.t()?.matmul(&t)?)?;
    Ok(t.matmul(&vectors.broadcast_div(&lengths)?.t()?)?.to_dtype(DType::F32)?)
}

fn f64_of(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Result<Tensor> {
        Rng::new(seed, Stream::Weights, 0).normal((rows, columns), &Device::Cpu)
    }

    fn norm(t: &Tensor) -> Result<f64> {
        Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
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
                    let left = norm(&(&product - up.matmul(&down)?)?)?;
                    let tail = svd.values()[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
                    assert!(
                        (left - tail).abs() < 1e-4 * norm(&product)?,
                        "{o}x{n} rank {rank}: {left}, {tail}"
                    );
                }
            }
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
            norm(&(&m - up.matmul(&down)?)?)
        };
        assert!(error(&fast)? <= error(&exact)? * 1.001);
        Ok(())
    }
}
