//! Eigenvalues of small symmetric matrices: Householder's tridiagonal form, then QR steps with Wilkinson's shift
//! (Golub and Van Loan, *Matrix Computations*, 8.3). Rows are kept together, so that both loops run along memory.

use crate::error::{Error, Result};

/// QR steps for one eigenvalue before it is given up; two or three are usual.
const MAX_STEPS: usize = 60;

/// A = Σ value · vector · vectorᵀ.
pub(super) struct Eigen {
    /// Falling.
    pub values: Vec<f64>,
    /// The vectors in rows, n × n.
    pub vectors: Vec<f64>,
}

impl Eigen {
    /// Of the symmetric n × n matrix in `a`.
    ///
    /// # Errors
    /// If it has numbers that are not finite.
    pub fn of(mut a: Vec<f64>, n: usize) -> Result<Self> {
        if a.len() != n * n || !a.iter().all(|x| x.is_finite()) {
            return Err(Error::invalid("a matrix with NaN or infinity has no singular values"));
        }
        // Squares of these must not overflow.
        let scale = a.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        if scale > 0.0 {
            a.iter_mut().for_each(|x| *x /= scale);
        }
        let (mut diagonal, mut beside, mut vectors) = tridiagonal(&mut a, n);
        diagonalise(&mut diagonal, &mut beside, &mut vectors, n)?;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|i, j| diagonal[*j].total_cmp(&diagonal[*i]));
        Ok(Self {
            values: order.iter().map(|i| diagonal[*i] * scale).collect(),
            vectors: order.iter().flat_map(|i| vectors[i * n..(i + 1) * n].iter().copied()).collect(),
        })
    }
}

/// The diagonal, what is beside it, and Qᵀ, of A = Q T Qᵀ. `a` is used up.
fn tridiagonal(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut diagonal, mut beside) = (vec![0.0; n], vec![0.0; n]);
    let mut reflections: Vec<(usize, Vec<f64>, f64)> = Vec::new();
    for k in 0..n {
        diagonal[k] = a[k * n + k];
        if k + 1 == n {
            break;
        }
        let from = k + 1;
        let mut v: Vec<f64> = (from..n).map(|i| a[i * n + k]).collect();
        let length = norm(&v);
        beside[k] = if v[0] > 0.0 { -length } else { length };
        v[0] -= beside[k];
        let square = dot(&v, &v);
        if square == 0.0 {
            continue;
        }
        let factor = 2.0 / square;
        // A − v wᵀ − w vᵀ with w = p − ½ factor (p·v) v and p = factor A v.
        let p: Vec<f64> = (from..n).map(|i| factor * dot(&a[i * n + from..(i + 1) * n], &v)).collect();
        let half = 0.5 * factor * dot(&p, &v);
        let w: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p - half * v).collect();
        for i in from..n {
            let (vi, wi) = (v[i - from], w[i - from]);
            for ((x, v), w) in a[i * n + from..(i + 1) * n].iter_mut().zip(&v).zip(&w) {
                *x -= vi * w + wi * v;
            }
        }
        reflections.push((from, v, factor));
    }
    // Qᵀ is the reflections' product in reverse; multiplied from the right, it fills from the lower right corner.
    let mut q = vec![0.0; n * n];
    (0..n).for_each(|i| q[i * n + i] = 1.0);
    for (from, v, factor) in reflections.iter().rev() {
        for row in q.chunks_exact_mut(n).skip(*from) {
            let along = factor * dot(&row[*from..], v);
            row[*from..].iter_mut().zip(v).for_each(|(x, v)| *x -= along * v);
        }
    }
    (diagonal, beside, q)
}

/// Makes what is beside the diagonal vanish, turning the rows of `vectors` along.
fn diagonalise(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64], n: usize) -> Result<()> {
    let mut high = n.saturating_sub(1);
    let mut steps = 0;
    while high > 0 {
        let small = |k: usize| beside[k].abs() <= f64::EPSILON * (diagonal[k].abs() + diagonal[k + 1].abs());
        if small(high - 1) {
            beside[high - 1] = 0.0;
            high -= 1;
            steps = 0;
            continue;
        }
        let low = (0..high - 1).rev().find(|k| small(*k)).map_or(0, |k| k + 1);
        steps += 1;
        if steps > MAX_STEPS {
            return Err(Error::invalid("the singular values do not converge"));
        }
        qr_step(diagonal, beside, (low, high), &mut |k, (c, s)| {
            let (first, second) = vectors[k * n..(k + 2) * n].split_at_mut(n);
            for (x, y) in first.iter_mut().zip(second) {
                (*x, *y) = (c * *x + s * *y, c * *y - s * *x);
            }
        });
    }
    Ok(())
}

/// One implicit QR step on the block from `low` to `high`; `turn` hears of each rotation of neighbours k and k + 1.
fn qr_step(
    d: &mut [f64],
    e: &mut [f64],
    (low, high): (usize, usize),
    turn: &mut dyn FnMut(usize, (f64, f64)),
) {
    let half = (d[high - 1] - d[high]) / 2.0;
    let last = e[high - 1];
    let shift = d[high] - last * last / (half + half.hypot(last).copysign(half));
    let (mut x, mut z) = (d[low] - shift, e[low]);
    for k in low..high {
        let r = x.hypot(z);
        let (c, s) = if r > 0.0 { (x / r, z / r) } else { (1.0, 0.0) };
        if k > low {
            e[k - 1] = r;
        }
        let (a, b, g) = (d[k], e[k], d[k + 1]);
        d[k] = c * c * a + 2.0 * c * s * b + s * s * g;
        d[k + 1] = s * s * a - 2.0 * c * s * b + c * c * g;
        e[k] = c * s * (g - a) + (c * c - s * s) * b;
        if k + 1 < high {
            (x, z) = (e[k], s * e[k + 1]);
            e[k + 1] *= c;
        }
        turn(k, (c, s));
    }
}

/// In eight sums, which a processor adds at once.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Rng, Stream};

    /// A v = λ v, vᵀ v = 1, for matrices of every kind that breaks such code.
    #[test]
    fn vectors_are_eigenvectors() -> Result<()> {
        let mut rng = Rng::new(3, Stream::Weights, 0);
        for n in [1, 2, 3, 7, 24] {
            let random: Vec<f64> = (0..n * n).map(|_| rng.unit() - 0.5).collect();
            let symmetric: Vec<f64> = (0..n * n).map(|i| random[i] + random[i % n * n + i / n]).collect();
            // Of rank 1, so that all eigenvalues but one are 0.
            let thin: Vec<f64> = (0..n * n).map(|i| 1e-9 * random[i / n] * random[i % n]).collect();
            let diagonal: Vec<f64> =
                (0..n * n).map(|i| if i / n == i % n { (i % 3) as f64 } else { 0.0 }).collect();
            let graded: Vec<f64> =
                (0..n * n).map(|i| symmetric[i] * 1e3f64.powi(-((i / n + i % n) as i32))).collect();
            for a in [symmetric, thin, diagonal, graded, vec![0.0; n * n]] {
                let size = norm(&a);
                let eigen = Eigen::of(a.clone(), n)?;
                assert!(eigen.values.windows(2).all(|w| w[0] >= w[1]));
                for (i, value) in eigen.values.iter().enumerate() {
                    let v = &eigen.vectors[i * n..(i + 1) * n];
                    let image = a.chunks_exact(n).map(|row| dot(row, v));
                    let error = image.zip(v).map(|(x, v)| (x - value * v).powi(2)).sum::<f64>().sqrt();
                    assert!(error <= 1e-13 * size, "n {n}: {error:.1e} of {size:.1e}");
                    for j in 0..=i {
                        let product = dot(v, &eigen.vectors[j * n..(j + 1) * n]);
                        let wanted = if i == j { 1.0 } else { 0.0 };
                        assert!((product - wanted).abs() < 1e-12, "n {n}, {i}·{j}: {product}");
                    }
                }
            }
        }
        assert!(Eigen::of(vec![f64::NAN], 1).is_err());
        Ok(())
    }
}
