//! Scalar functions without branches, calls or tables, so that loops over them vectorise.
//! `FMA` is what [`simd!`](super::simd) found: multiply and add in one, where the processor does.

/// eˣ within 2 ulp (Cephes' `expf`); 0 below -87.3, finite up to 88.3 and clamped above.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to a whole number and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = madd::<FMA>(clamped, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    // ln 2 in two parts, the first exact in products with n.
    let r = madd::<FMA>(n, 2.121_944_4e-4, madd::<FMA>(n, -0.693_359_4, clamped));
    let mut p = 1.987_569_2e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = madd::<FMA>(p, r, c);
    }
    let mantissa = madd::<FMA>(p, r * r, r) + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(127);
    let y = mantissa * f32::from_bits((exponent << 23) as u32);
    if x < -87.3 { 0.0 } else { y }
}

/// a b + c.
#[inline(always)]
fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The normal distribution's Φ(x) and φ(x), absolute error below 2e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let gauss = exp::<FMA>(-z * z);
    let t = 1.0 / madd::<FMA>(0.327_591_1, z, 1.0);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = madd::<FMA>(p, t, c);
    }
    let tail = 0.5 * p * t * gauss;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, gauss * 0.398_942_3)
}

/// The sum, in sixteen lanes.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Σ f(xᵢ, yᵢ), in sixteen lanes.
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| f(*x, *y)).sum();
    for (x, y) in xs.zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(*x, *y);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The largest value, -∞ for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    lanes.iter().fold(rest, |a, b| if *b > a { *b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_a_few_ulp() {
        for exp in [exp::<false>, exp::<true>] {
            for i in -8700..=8800 {
                let x = i as f32 * 0.01;
                let exact = f64::from(x).exp();
                assert!(((f64::from(exp(x)) - exact) / exact).abs() < 3e-7, "exp({x})");
            }
            assert_eq!(exp(f32::NEG_INFINITY), 0.0);
            assert_eq!(exp(0.0), 1.0);
            assert!(exp(f32::NAN).is_nan() && exp(1000.0).is_finite());
        }
    }

    /// Reference values from Python: `math.erf(x / 2**0.5) / 2 + 0.5`.
    #[test]
    fn normal_matches_known_values() {
        for normal in [normal::<false>, normal::<true>] {
            for (x, cdf) in [
                (-3.0, 0.001_349_898),
                (-1.0, 0.158_655_25),
                (0.0, 0.5),
                (0.5, 0.691_462_46),
                (2.0, 0.977_249_9),
            ] {
                assert!((normal(x).0 - cdf).abs() < 2e-7, "cdf({x}) = {}", normal(x).0);
            }
            assert!((normal(1.0).1 - 0.241_970_72).abs() < 1e-7);
        }
    }
}
