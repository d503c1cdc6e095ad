//! Each algorithm against its formula, summed by hand.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::random::{Rng, Stream};

/// A tensor and its values, to be read by index.
struct Known {
    tensor: Tensor,
    values: Vec<f64>,
    dims: Vec<usize>,
}

impl Known {
    fn of(tensor: &Tensor) -> Result<Self> {
        let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        Ok(Self { tensor: tensor.clone(), values, dims: tensor.dims().to_vec() })
    }

    fn random(seed: u64, dims: &[usize]) -> Result<Self> {
        Self::of(&(Rng::new(7, Stream::Weights, seed).normal(dims, &Device::Cpu)? * 0.5)?)
    }

    /// Row-major, missing trailing indices 0.
    fn at(&self, index: &[usize]) -> f64 {
        let place = self
            .dims
            .iter()
            .enumerate()
            .fold(0, |place, (dim, size)| place * size + index.get(dim).copied().unwrap_or(0));
        self.values[place]
    }

    fn reshaped(&self, dims: &[usize]) -> Result<Tensor> {
        Ok(self.tensor.reshape(dims)?)
    }
}

/// The weight whose value at (o, i, k) is `f`, k running over the kernel.
fn weight_of(shape: &[usize], f: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    let kernel: usize = shape[2..].iter().product();
    let at = |place: usize| f(place / (shape[1] * kernel), place / kernel % shape[1], place % kernel);
    (0..shape[0] * shape[1] * kernel).map(at).collect()
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: &[f64]) {
    let found = Known::of(found).expect("values").values;
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 2e-6 * largest, "{what}: {a} is not {b}");
    }
}

/// Checks, the weight, W' at two strengths, and that 0 is the base, bit for bit.
#[track_caller]
fn assert_additive(what: &str, delta: &Delta, shape: &[usize], expected: &[f64]) {
    let test = || -> Result<()> {
        delta.check(shape)?;
        assert!(delta.is_additive());
        assert_close(what, &delta.weight(shape)?, expected);
        let base = Known::random(90, shape)?;
        for m in [1.0, -0.7] {
            let sum: Vec<f64> = base.values.iter().zip(expected).map(|(w, d)| w + m * d).collect();
            assert_close(what, &delta.apply(&base.tensor, m)?, &sum);
        }
        // Convolutions lie channels-last in the networks.
        if shape.len() == 4 {
            let last = base.tensor.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))?;
            let sum: Vec<f64> = base.values.iter().zip(expected).map(|(w, d)| w + d).collect();
            assert_close(what, &delta.apply(&last, 1.0)?, &sum);
        }
        assert_unchanged_at_zero(delta, &base.tensor)
    };
    test().unwrap_or_else(|e| panic!("{what}: {e}"));
}

fn assert_unchanged_at_zero(delta: &Delta, base: &Tensor) -> Result<()> {
    let after: Vec<f32> = delta.apply(base, 0.0)?.flatten_all()?.to_vec1()?;
    assert_eq!(after, base.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

const LINEAR: &[usize] = &[6, 4];
const POINT: &[usize] = &[6, 4, 1, 1];
const CONV: &[usize] = &[6, 4, 3, 2];

#[test]
fn low_rank_in_every_storage() -> Result<()> {
    for (shape, r) in [(LINEAR, 3), (POINT, 2), (CONV, 3), (CONV, 9)] {
        let (o, i, kernel) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
        let (down, up) = (Known::random(1, &[r, i, kernel])?, Known::random(2, &[o, r])?);
        let expected = weight_of(shape, |o, i, k| {
            1.5 / r as f64 * (0..r).map(|a| up.at(&[o, a]) * down.at(&[a, i, k])).sum::<f64>()
        });
        let mut downs = vec![down.reshaped(&[r, i * kernel])?];
        if shape.len() == 4 {
            downs.push(down.reshaped(&[r, i, shape[2], shape[3]])?);
        }
        if kernel == 1 {
            downs.push(down.reshaped(&[r, i, 1, 1])?);
        }
        for down in &downs {
            for up in [up.tensor.clone(), up.reshaped(&[o, r, 1, 1])?] {
                let delta = Delta::LowRank(LowRank { down: down.clone(), up, mid: None, alpha: Some(1.5) });
                assert_additive("LoRA", &delta, shape, &expected);
            }
        }
    }
    let (down, mid, up) = (
        Known::random(3, &[2, 4, 1, 1])?,
        Known::random(4, &[2, 2, 3, 2])?,
        Known::random(5, &[6, 2, 1, 1])?,
    );
    let expected = weight_of(CONV, |o, i, k| {
        let mut sum = 0.0;
        for a in 0..2 {
            for b in 0..2 {
                sum += up.at(&[o, a]) * mid.at(&[a, b, k / 2, k % 2]) * down.at(&[b, i]);
            }
        }
        sum
    });
    let delta =
        Delta::LowRank(LowRank { down: down.tensor, up: up.tensor, mid: Some(mid.tensor), alpha: None });
    assert_additive("LoCon", &delta, CONV, &expected);
    Ok(())
}

#[test]
fn loha_plain_and_with_cores() -> Result<()> {
    for (shape, four) in [(LINEAR, false), (CONV, false), (CONV, true)] {
        let (o, i, kernel, r) = (shape[0], shape[1], shape[2..].iter().product::<usize>(), 3);
        let a = [Known::random(1, &[o, r])?, Known::random(2, &[o, r])?];
        let b = [Known::random(3, &[r, i, kernel])?, Known::random(4, &[r, i, kernel])?];
        let expected = weight_of(shape, |o, i, k| {
            let part = |n: usize| (0..r).map(|p| a[n].at(&[o, p]) * b[n].at(&[p, i, k])).sum::<f64>();
            2.0 / 3.0 * part(0) * part(1)
        });
        let factor = |n: usize| -> Result<HadamardFactor> {
            let (a_dims, b_dims) = if four {
                (vec![o, r, 1, 1], vec![r, i, shape[2], shape[3]])
            } else {
                (vec![o, r], vec![r, i * kernel])
            };
            Ok(HadamardFactor { a: a[n].reshaped(&a_dims)?, b: b[n].reshaped(&b_dims)?, core: None })
        };
        let delta = Delta::LoHa(LoHa { first: factor(0)?, second: factor(1)?, alpha: Some(2.0) });
        assert_additive("LoHa", &delta, shape, &expected);
    }
    let a = [Known::random(1, &[3, 6])?, Known::random(2, &[3, 6])?];
    let b = [Known::random(3, &[3, 4])?, Known::random(4, &[3, 4])?];
    let t = [Known::random(5, &[3, 3, 3, 2])?, Known::random(6, &[3, 3, 3, 2])?];
    let expected = weight_of(CONV, |o, i, k| {
        let part = |n: usize| {
            let mut sum = 0.0;
            for p in 0..3 {
                for q in 0..3 {
                    sum += t[n].at(&[p, q, k / 2, k % 2]) * a[n].at(&[p, o]) * b[n].at(&[q, i]);
                }
            }
            sum
        };
        part(0) * part(1)
    });
    let factor = |n: usize| HadamardFactor {
        a: a[n].tensor.clone(),
        b: b[n].tensor.clone(),
        core: Some(t[n].tensor.clone()),
    };
    let delta = Delta::LoHa(LoHa { first: factor(0), second: factor(1), alpha: None });
    assert_additive("LoHa (Tucker)", &delta, CONV, &expected);
    Ok(())
}

#[test]
fn lokr_in_every_form_and_its_scale() -> Result<()> {
    use KroneckerFactor::{Product, Tucker, Whole};
    // (2 × 2) ⊗ (3 × 2) = 6 × 4
    let (a, b) = (Known::random(1, &[2, 2])?, Known::random(2, &[2, 2])?);
    let w1_product = |o: usize, i: usize| (0..2).map(|p| a.at(&[o, p]) * b.at(&[p, i])).sum::<f64>();
    let whole1 = Known::random(3, &[2, 2])?;
    let (c, d) = (Known::random(4, &[3, 1])?, Known::random(5, &[1, 2, 6])?);
    let whole2 = Known::random(6, &[3, 2, 3, 2])?;
    let (ta, tb, tc) =
        (Known::random(7, &[1, 3])?, Known::random(8, &[1, 2])?, Known::random(9, &[1, 1, 3, 2])?);
    let kron = |w1: &dyn Fn(usize, usize) -> f64, w2: &dyn Fn(usize, usize, usize) -> f64, s: f64| {
        weight_of(CONV, |o, i, k| s * w1(o / 3, i / 2) * w2(o % 3, i % 2, k))
    };
    let product = |x: &Known, y: &Known| Product { a: x.tensor.clone(), b: y.tensor.clone() };
    let d_flat = Known::of(&d.reshaped(&[1, 12])?)?;
    let w2_product = |o: usize, i: usize, k: usize| c.at(&[o, 0]) * d.at(&[0, i, k]);
    let w2_whole = |o: usize, i: usize, k: usize| whole2.at(&[o, i, k / 2, k % 2]);
    let w2_tucker =
        |o: usize, i: usize, k: usize| tc.at(&[0, 0, k / 2, k % 2]) * ta.at(&[0, o]) * tb.at(&[0, i]);
    let tucker = || Tucker { a: ta.tensor.clone(), b: tb.tensor.clone(), core: tc.tensor.clone() };
    let w1_whole = |o: usize, i: usize| whole1.at(&[o, i]);
    let make = |first: KroneckerFactor, second: KroneckerFactor| LoKr {
        first,
        second,
        alpha: Some(0.5),
        whole_scale: None,
    };
    for (what, lokr, expected) in [
        (
            "both whole: 1",
            make(Whole(whole1.tensor.clone()), Whole(whole2.tensor.clone())),
            kron(&w1_whole, &w2_whole, 1.0),
        ),
        (
            "second factored: alpha / its rank",
            make(Whole(whole1.tensor.clone()), product(&c, &d_flat)),
            kron(&w1_whole, &w2_product, 0.5),
        ),
        (
            "both factored: the second's rank",
            make(product(&a, &b), product(&c, &d_flat)),
            kron(&w1_product, &w2_product, 0.5),
        ),
        (
            "first factored: alpha / its rank",
            make(product(&a, &b), Whole(whole2.tensor.clone())),
            kron(&w1_product, &w2_whole, 0.25),
        ),
        ("Tucker", make(Whole(whole1.tensor.clone()), tucker()), kron(&w1_whole, &w2_tucker, 0.5)),
    ] {
        assert_additive(what, &Delta::LoKr(lokr), CONV, &expected);
    }
    let other =
        LoKr { whole_scale: Some(0.125), ..make(Whole(whole1.tensor.clone()), Whole(whole2.tensor.clone())) };
    assert_additive("override", &Delta::LoKr(other), CONV, &kron(&w1_whole, &w2_whole, 0.125));
    Ok(())
}

#[test]
fn glora_in_both_layouts() -> Result<()> {
    for shape in [LINEAR, CONV] {
        let (o, i, kernel, r) = (shape[0], shape[1], shape[2..].iter().product::<usize>(), 2);
        let w = Known::random(1, &[o, i, kernel])?;
        let (a1, a2) = (Known::random(2, &[i, r])?, Known::random(3, &[r, i])?);
        let (b1, b2) = (Known::random(4, &[o, r])?, Known::random(5, &[r, i, kernel])?);
        let expected = |m: f64| {
            weight_of(shape, |o, j, k| {
                let mut sum = 0.0;
                for p in 0..r {
                    sum += b1.at(&[o, p]) * b2.at(&[p, j, k]);
                    sum += (0..i).map(|x| w.at(&[o, x, k]) * a1.at(&[x, p])).sum::<f64>() * a2.at(&[p, j]);
                }
                w.at(&[o, j, k]) + m * 1.5 * sum
            })
        };
        let base = w.reshaped(shape)?;
        let b2_stored = b2.reshaped(&[&[r, i], &shape[2..]].concat())?;
        let new = Glora {
            a1: a1.tensor.clone(),
            a2: a2.tensor.clone(),
            b1: b1.tensor.clone(),
            b2: b2_stored,
            core: None,
            alpha: Some(3.0),
        };
        let old = Glora {
            a1: new.a2.clone(),
            a2: new.a1.clone(),
            b1: new.b2.clone(),
            b2: new.b1.clone(),
            ..new.clone()
        };
        for glora in [new, old] {
            let delta = Delta::Glora(glora.of_either_layout(shape)?);
            delta.check(shape)?;
            assert!(delta.weight(shape).is_err_and(|e| e.hint().is_some()));
            for m in [1.0, -0.6] {
                assert_close("GLoRA", &delta.apply(&base, m)?, &expected(m));
            }
            assert_unchanged_at_zero(&delta, &base)?;
        }
    }
    Ok(())
}

#[test]
fn ia3_full_and_norm() -> Result<()> {
    let (w, b) = (Known::random(1, CONV)?, Known::random(2, &[6])?);
    for (on_input, scales_bias, length) in [(false, false, 6), (false, true, 6), (true, true, 4)] {
        let scale = Known::random(3, &[length])?;
        let stored = scale.reshaped(&[1, length, 1, 1])?;
        let delta = Delta::Ia3(Ia3 { scale: stored, on_input, scales_bias });
        delta.check(CONV)?;
        let channel = |o: usize, i: usize| scale.at(&[if on_input { i } else { o }]);
        let expected = weight_of(CONV, |o, i, k| w.at(&[o, i, k / 2, k % 2]) * (1.0 + 0.8 * channel(o, i)));
        assert_close("IA³", &delta.apply(&w.tensor, 0.8)?, &expected);
        let bias = delta.apply_bias(Some(&b.tensor), 0.8)?;
        assert_eq!(bias.is_some(), scales_bias && !on_input);
        if let Some(bias) = bias {
            let expected: Vec<f64> = (0..6).map(|o| b.at(&[o]) * (1.0 + 0.8 * scale.at(&[o]))).collect();
            assert_close("IA³'s bias", &bias, &expected);
        }
    }
    let (diff, diff_b) = (Known::random(4, POINT)?, Known::random(5, &[6])?);
    let full = Full { weight: Some(diff.tensor.clone()), bias: Some(diff_b.tensor.clone()) };
    assert_additive("full", &Delta::Full(full), LINEAR, &diff.values);
    let alone = Delta::Full(Full { weight: None, bias: Some(diff_b.tensor.clone()) });
    alone.check(LINEAR)?;
    let made = alone.apply_bias(None, -2.0)?.expect("a bias where there was none");
    assert_close("a new bias", &made, &diff_b.values.iter().map(|x| -2.0 * x).collect::<Vec<_>>());
    let norm = Delta::Norm(Norm(Full { weight: Some(diff_b.tensor.clone()), bias: None }));
    norm.check(&[6])?;
    assert!(norm.check(LINEAR).is_err());
    let sum: Vec<f64> = b.values.iter().zip(&diff_b.values).map(|(w, d)| w + 0.5 * d).collect();
    assert_close("norm", &norm.apply(&b.tensor, 0.5)?, &sum);
    Ok(())
}

type Matrix = Vec<Vec<f64>>;

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let cell = |i: usize, j: usize| (0..b.len()).map(|k| a[i][k] * b[k][j]).sum::<f64>();
    (0..a.len()).map(|i| (0..b[0].len()).map(|j| cell(i, j)).collect()).collect()
}

fn identity(n: usize) -> Matrix {
    (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect()
}

/// a + scale · b.
fn plus(a: &Matrix, scale: f64, b: &Matrix) -> Matrix {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + scale * b).collect()).collect()
}

/// (I + Q)(I - Q)⁻¹ as a long series, for Q small.
fn rotation_of(q: &Matrix) -> Matrix {
    let (mut sum, mut power) = (identity(q.len()), identity(q.len()));
    for _ in 0..200 {
        power = product(&power, q);
        sum = plus(&sum, 2.0, &power);
    }
    sum
}

fn skew(blocks: &Known, block: &[usize], b: usize, scale: f64) -> Matrix {
    let at = |i: usize, j: usize| blocks.at(&[block, &[i, j]].concat());
    (0..b).map(|i| (0..b).map(|j| scale * (at(i, j) - at(j, i))).collect()).collect()
}

/// `scale` of Q under a constraint on the norm of all blocks.
fn capped(blocks: &Known, b: usize, limit: f64) -> f64 {
    let count = blocks.values.len() / (b * b);
    let flat =
        Known { tensor: blocks.tensor.clone(), values: blocks.values.clone(), dims: vec![count, b, b] };
    let squares: f64 = (0..count).flat_map(|n| skew(&flat, &[n], b, 1.0)).flatten().map(|x| x * x).sum();
    (limit / squares.sqrt()).min(1.0)
}

#[test]
fn oft_turns_blocks_of_outputs() -> Result<()> {
    let (w, b, n) = (Known::random(1, CONV)?, 3, 2);
    let blocks = Known::of(&(Known::random(2, &[n, b, b])?.tensor * 0.2)?)?;
    let rescale = Known::random(3, &[6, 1, 1, 1])?;
    for (constraint, with_rescale, m) in
        [(None, false, 1.0), (None, true, 1.0), (Some(0.05), false, 1.0), (Some(1e3), false, 0.3)]
    {
        let scale = constraint.map_or(1.0, |c| capped(&blocks, b, c * 6.0));
        let rotations: Vec<Matrix> = (0..n)
            .map(|j| {
                plus(&identity(b), m, &plus(&rotation_of(&skew(&blocks, &[j], b, scale)), -1.0, &identity(b)))
            })
            .collect();
        let expected = weight_of(CONV, |o, i, k| {
            let (block, row) = (o / b, o % b);
            let turned: f64 =
                (0..b).map(|x| rotations[block][x][row] * w.at(&[block * b + x, i, k / 2, k % 2])).sum();
            if with_rescale { turned * (1.0 + m * (rescale.at(&[o]) - 1.0)) } else { turned }
        });
        let delta = Delta::Oft(Oft::new(
            blocks.tensor.clone(),
            OftForm::Cayley { constraint },
            with_rescale.then(|| rescale.tensor.clone()),
        ));
        delta.check(CONV)?;
        assert_close("OFT", &delta.apply(&w.tensor, m)?, &expected);
        assert_unchanged_at_zero(&delta, &w.tensor)?;
    }
    Ok(())
}

#[test]
fn finished_rotations_and_residuals_agree() -> Result<()> {
    let blocks = (Known::random(2, &[2, 3, 3])?.tensor * 0.1)?;
    let eye = Tensor::eye(3, DType::F32, &Device::Cpu)?;
    let rotations = blocks.broadcast_add(&eye)?;
    let (form_r, form_d) = (OftForm::of_oft_diag(&rotations)?, OftForm::of_oft_diag(&blocks)?);
    assert_eq!((form_r, form_d), (OftForm::Rotation, OftForm::Residual));
    assert!(OftForm::of_oft_diag(&rotations.affine(1.0, 0.6)?).is_err());
    let w = Known::random(1, LINEAR)?;
    let expected = weight_of(LINEAR, |o, i, _| {
        let r = Known::of(&rotations).expect("values");
        (0..3).map(|x| r.at(&[o / 3, x, o % 3]) * w.at(&[o / 3 * 3 + x, i])).sum()
    });
    for (blocks, form) in [(rotations.clone(), form_r), (blocks, form_d)] {
        let delta = Delta::Oft(Oft::new(blocks, form, None));
        assert_close("oft_diag", &delta.apply(&w.tensor, 1.0)?, &expected);
    }
    Ok(())
}

#[test]
fn boft_turns_rows_at_growing_distances() -> Result<()> {
    let shape = &[8, 3];
    let (w, b, n, factors, m) = (Known::random(1, shape)?, 2, 4, 3, 0.6);
    let blocks = Known::of(&(Known::random(2, &[factors, n, b, b])?.tensor * 0.3)?)?;
    let scale = capped(&blocks, b, 0.1 * 8.0);
    let mut rows: Matrix = (0..8).map(|o| (0..3).map(|i| w.at(&[o, i])).collect()).collect();
    for factor in 0..factors {
        let half = (b / 2) << factor;
        // Row (c, g, h) of (·, 2, half) comes at place (c, h, g).
        let place = |row: usize| {
            let (c, g, h) = (row / (2 * half), row / half % 2, row % half);
            c * 2 * half + h * 2 + g
        };
        let mut ordered = rows.clone();
        for (row, values) in rows.iter().enumerate() {
            ordered[place(row)].clone_from(values);
        }
        let mut turned = ordered.clone();
        for block in 0..n {
            let r = rotation_of(&skew(&blocks, &[factor, block], b, scale));
            let r = plus(&identity(b), m, &plus(&r, -1.0, &identity(b)));
            for x in 0..b {
                for i in 0..3 {
                    turned[block * b + x][i] = (0..b).map(|y| r[x][y] * ordered[block * b + y][i]).sum();
                }
            }
        }
        for row in 0..8 {
            rows[row].clone_from(&turned[place(row)]);
        }
    }
    let delta = Delta::Boft(Boft { blocks: blocks.tensor.clone(), constraint: Some(0.1), rescale: None });
    delta.check(shape)?;
    assert_close("BOFT", &delta.apply(&w.tensor, m)?, &rows.concat());
    assert_unchanged_at_zero(&delta, &w.tensor)
}

#[test]
fn oft_v2_turns_blocks_of_inputs() -> Result<()> {
    for (shape, shared, opposite) in [(LINEAR, false, false), (CONV, false, true), (CONV, true, false)] {
        let inputs: usize = shape[1..].iter().product();
        let (b, m) = (4, 0.7);
        let n = if shared { 1 } else { inputs / b };
        let w = Known::random(1, &[shape[0], inputs])?;
        let stored = Known::of(&(Known::random(2, &[n, b * (b - 1) / 2])?.tensor * 0.2)?)?;
        let q = |block: usize, scale: f64| -> Matrix {
            let mut q = vec![vec![0.0; b]; b];
            let upper = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
            for (next, (i, j)) in upper.enumerate() {
                let value = scale * stored.at(&[if shared { 0 } else { block }, next]);
                (q[i][j], q[j][i]) = (value, -value);
            }
            q
        };
        let five_terms = |q: &Matrix| {
            let (q2, one) = (product(q, q), identity(b));
            let (q3, q4) = (product(&q2, q), product(&q2, &q2));
            plus(&plus(&plus(&plus(&one, 2.0, q), 2.0, &q2), 2.0, &q3), 1.0, &q4)
        };
        for (series, scaled) in
            [(OftSeries::Neumann(5), false), (OftSeries::Neumann(5), true), (OftSeries::Exact, false)]
        {
            let scale = if scaled { 0.5 / (b as f64 - 1.0).sqrt() } else { 1.0 };
            let rotation = |block: usize| match series {
                OftSeries::Neumann(_) => five_terms(&q(block, scale)),
                // The inverse of the Cayley transform is that of -Q.
                OftSeries::Exact => rotation_of(&q(block, -scale)),
            };
            let expected: Vec<f64> = (0..shape[0] * inputs)
                .map(|place| {
                    let (o, column) = (place / inputs, place % inputs);
                    let r = plus(&identity(b), m, &plus(&rotation(column / b), -1.0, &identity(b)));
                    (0..b)
                        .map(|x| {
                            let turn = if opposite { r[x][column % b] } else { r[column % b][x] };
                            w.at(&[o, column / b * b + x]) * turn
                        })
                        .sum()
                })
                .collect();
            let skew = stored.tensor.clone();
            let delta = Delta::OftV2(OftV2 { skew, series, scaled, opposite, block_limit: None });
            delta.check(shape)?;
            let base = w.reshaped(shape)?;
            assert_close("OFTv2", &delta.apply(&base, m)?, &expected);
            assert_unchanged_at_zero(&delta, &base)?;
        }
    }
    Ok(())
}

#[test]
fn dora_on_both_axes_over_anything_additive() -> Result<()> {
    let w = Known::random(1, CONV)?;
    let low_rank = Delta::LowRank(LowRank {
        down: Known::random(2, &[2, 4, 3, 2])?.tensor,
        up: Known::random(3, &[6, 2, 1, 1])?.tensor,
        mid: None,
        alpha: Some(1.0),
    });
    let loha = Delta::LoHa(LoHa {
        first: HadamardFactor {
            a: Known::random(4, &[6, 2])?.tensor,
            b: Known::random(5, &[2, 24])?.tensor,
            core: None,
        },
        second: HadamardFactor {
            a: Known::random(6, &[6, 2])?.tensor,
            b: Known::random(7, &[2, 24])?.tensor,
            core: None,
        },
        alpha: Some(1.0),
    });
    let lokr = Delta::LoKr(LoKr {
        first: KroneckerFactor::Whole(Known::random(8, &[2, 2])?.tensor),
        second: KroneckerFactor::Whole(Known::random(9, &[3, 2, 3, 2])?.tensor),
        alpha: None,
        whole_scale: None,
    });
    for inner in [low_rank, loha, lokr] {
        let v = Known::of(&(&w.tensor + inner.weight(CONV)?)?)?;
        for axis in [MagnitudeAxis::Output, MagnitudeAxis::Input] {
            let length = if axis == MagnitudeAxis::Output { 6 } else { 4 };
            let magnitude = Known::random(10, &[length])?;
            let channel = |o: usize, i: usize| if axis == MagnitudeAxis::Output { o } else { i };
            let mut squares = vec![0.0; length];
            for (place, value) in v.values.iter().enumerate() {
                squares[channel(place / 24, place / 6 % 4)] += value * value;
            }
            for m in [1.0, 0.4] {
                let expected = weight_of(CONV, |o, i, k| {
                    let at = [o, i, k / 2, k % 2];
                    let c = channel(o, i);
                    let goal = magnitude.at(&[c]) * v.at(&at) / squares[c].sqrt();
                    w.at(&at) + m * (goal - w.at(&at))
                });
                let delta = Delta::Dora(Dora {
                    inner: Box::new(inner.clone()),
                    magnitude: magnitude.tensor.clone(),
                    axis,
                });
                delta.check(CONV)?;
                assert_close(delta.algorithm(), &delta.apply(&w.tensor, m)?, &expected);
                assert_unchanged_at_zero(&delta, &w.tensor)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_magnitudes_axis_is_told_by_key_then_by_shape() -> Result<()> {
    use MagnitudeAxis::{Input, Output};
    let square: &[usize] = &[4, 4, 3, 3];
    for (dims, peft, shape, expected) in [
        (&[6, 1][..], false, LINEAR, Some(Output)),
        (&[1, 4], false, LINEAR, Some(Input)),
        (&[6, 1, 1, 1], false, CONV, Some(Output)),
        (&[1, 4, 1, 1], false, CONV, Some(Input)),
        // The same tensor under two names.
        (&[1, 4, 1, 1], false, square, Some(Input)),
        (&[1, 4, 1, 1], true, square, Some(Output)),
        (&[1, 6, 1, 1], true, CONV, Some(Output)),
        (&[6], false, LINEAR, Some(Output)),
        (&[4], false, LINEAR, Some(Input)),
        (&[4], true, &[4, 4], Some(Output)),
        (&[5], false, LINEAR, None),
        (&[1, 5], true, LINEAR, None),
        (&[2, 3], false, LINEAR, None),
    ] {
        assert_eq!(MagnitudeAxis::of(dims, peft, shape).ok(), expected, "{dims:?} {peft} {shape:?}");
    }
    Ok(())
}

#[test]
fn a_sparse_residual_is_added_once() -> Result<()> {
    let (down, up) = (Known::random(1, &[2, 4])?, Known::random(2, &[6, 2])?);
    let inner = LowRank { down: down.tensor.clone(), up: up.tensor.clone(), mid: None, alpha: Some(2.0) };
    let residual = |rows: [i64; 2], columns: [i64; 2], size: [i64; 2]| -> Result<Delta> {
        let sparse = Sparse {
            indices: Tensor::new(&[rows, columns], &Device::Cpu)?,
            values: Tensor::new(&[0.25f32, -3.0], &Device::Cpu)?,
            size: Tensor::new(&size, &Device::Cpu)?,
        };
        let inner = Box::new(Delta::LowRank(inner.clone()));
        Ok(Delta::Beside(Beside { inner, residual: Some(sparse), bias: None }))
    };
    let mut expected =
        weight_of(LINEAR, |o, i, _| (0..2).map(|a| up.at(&[o, a]) * down.at(&[a, i])).sum::<f64>());
    expected[1] += 0.25;
    expected[5 * 4 + 3] -= 3.0;
    assert_additive("sparse residual", &residual([0, 5], [1, 3], [6, 4])?, LINEAR, &expected);
    for (rows, columns, size) in [
        ([0, 6], [1, 3], [6, 4]),
        ([0, -1], [1, 3], [6, 4]),
        ([0, 5], [1, 4], [6, 4]),
        ([0, 5], [1, 3], [4, 6]),
    ] {
        assert!(residual(rows, columns, size)?.check(LINEAR).is_err());
    }
    Ok(())
}
