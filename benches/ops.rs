//! Each op against the same arithmetic in plain candle: forward, and forward with backward, at the embedded model's sizes.
//!
//! `cargo bench --bench ops [-- FILTER]`. Best of several runs, in milliseconds; the last column is how many times faster.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use candle_core::{D, Device, Tensor, Var};
use scumble::{
    Result,
    ops::{self, Conv2dGeometry, LowRank, Mask},
    random::{Rng, Stream},
};

type Op<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

struct Case<'a> {
    name: String,
    x: Tensor,
    ours: Op<'a>,
    plain: Op<'a>,
}

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    println!("{:44} {:>18} {:>18}", "", "forward", "with backward");
    println!("{:44} {:>6} {:>6} {:>5} {:>6} {:>6} {:>5}", "", "plain", "ours", "x", "plain", "ours", "x");
    let cases = convolutions()?
        .into_iter()
        .chain(linears()?)
        .chain(attentions()?)
        .chain(norms()?)
        .chain(pointwise()?);
    for case in cases.filter(|c| c.name.contains(&filter)) {
        let forward = |op: &Op<'_>| time(|| op(&case.x).map(drop));
        let leaf = Var::from_tensor(&case.x)?;
        let both = |op: &Op<'_>| {
            time(|| {
                ops::backward(&op(&leaf)?)?;
                Ok(())
            })
        };
        let times = [forward(&case.plain)?, forward(&case.ours)?, both(&case.plain)?, both(&case.ours)?];
        let [a, b, c, d] = times.map(|t| t.as_secs_f64() * 1e3);
        println!("{:44} {a:6.2} {b:6.2} {:5.1} {c:6.2} {d:6.2} {:5.1}", case.name, a / b, c / d);
    }
    Ok(())
}

/// The fastest of as many runs as fit half a second.
fn time(mut f: impl FnMut() -> Result<()>) -> Result<Duration> {
    f()?;
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while start.elapsed() < Duration::from_millis(400) {
        let t = Instant::now();
        f()?;
        best = best.min(t.elapsed());
    }
    Ok(best)
}

fn random(index: u64, shape: &[usize]) -> Result<Tensor> {
    Rng::new(1, Stream::Weights, index).normal(shape, &Device::Cpu)
}

fn var(index: u64, shape: &[usize]) -> Result<Tensor> {
    Ok(Var::from_tensor(&random(index, shape)?)?.as_tensor().clone())
}

fn convolutions() -> Result<Vec<Case<'static>>> {
    let sizes = [
        (4, 16, 64, 64),
        (4, 16, 128, 128),
        (4, 8, 192, 192),
        (1, 8, 192, 192),
        (1, 128, 64, 64),
        (1, 128, 64, 3),
    ];
    let mut cases = Vec::new();
    for (b, side, i, o) in sizes {
        for (stride, rank) in [(1, 0), (1, 8), (2, 0)] {
            let weight = ops::conv2d::channels_last(&(random(1, &[o, i, 3, 3])? * 0.05)?)?;
            let plain_weight = weight.contiguous()?;
            let bias = random(2, &[o])?;
            let plain_bias = bias.clone();
            let r = rank.max(1);
            let (down, up, scale) = (var(3, &[r, i, 3, 3])?, var(4, &[o, r])?, random(5, &[r])?);
            let (down2, up2, scale2) = (down.clone(), up.clone(), scale.clone());
            let geometry = Conv2dGeometry::new(stride, 1);
            cases.push(Case {
                name: format!("conv2d 3x3 {b}x{side}x{side} {i}->{o} stride {stride} rank {rank}"),
                x: random(0, &[b, side, side, i])?,
                ours: Box::new(move |x| {
                    let branch = (rank > 0).then_some(LowRank { down: &down, up: &up, scale: &scale });
                    ops::conv2d(x, &weight, Some(&bias), geometry, branch)
                }),
                plain: Box::new(move |x| {
                    let x = x.permute((0, 3, 1, 2))?.contiguous()?;
                    let y = x.conv2d(&plain_weight, 1, stride, 1, 1)?.permute((0, 2, 3, 1))?;
                    let y = y.broadcast_add(&plain_bias)?;
                    if rank == 0 {
                        return Ok(y.contiguous()?);
                    }
                    let z =
                        x.conv2d(&down2, 1, stride, 1, 1)?.permute((0, 2, 3, 1))?.broadcast_mul(&scale2)?;
                    Ok((y + z.contiguous()?.broadcast_matmul(&up2.t()?)?)?)
                }),
            });
        }
    }
    Ok(cases)
}

fn linears() -> Result<Vec<Case<'static>>> {
    let mut cases = Vec::new();
    for (rows, i, o) in [(1024, 64, 64), (1024, 128, 512), (256, 192, 1536), (77, 192, 192)] {
        for rank in [0, 8] {
            let (weight, bias) = ((random(1, &[o, i])? * 0.05)?, random(2, &[o])?);
            let r = rank.max(1);
            let (down, up, scale) = (var(3, &[r, i])?, var(4, &[o, r])?, random(5, &[r])?);
            let (weight2, bias2, down2, up2, scale2) =
                (weight.clone(), bias.clone(), down.clone(), up.clone(), scale.clone());
            cases.push(Case {
                name: format!("linear {rows} {i}->{o} rank {rank}"),
                x: random(0, &[rows, i])?,
                ours: Box::new(move |x| {
                    let branch = (rank > 0).then_some(LowRank { down: &down, up: &up, scale: &scale });
                    ops::linear(x, &weight, Some(&bias), branch)
                }),
                plain: Box::new(move |x| {
                    let y = x.matmul(&weight2.t()?)?.broadcast_add(&bias2)?;
                    if rank == 0 {
                        return Ok(y);
                    }
                    let z = x.matmul(&down2.t()?)?.broadcast_mul(&scale2)?;
                    Ok((y + z.matmul(&up2.t()?)?)?)
                }),
            });
        }
    }
    Ok(cases)
}

fn attentions() -> Result<Vec<Case<'static>>> {
    let mut cases = Vec::new();
    for (b, n, m, d, heads) in
        [(4, 256, 256, 128, 4), (4, 256, 77, 128, 4), (4, 64, 64, 192, 4), (1, 1024, 1024, 64, 1)]
    {
        let (k, v) = (random(1, &[b, m, d])?, random(2, &[b, m, d])?);
        let (k2, v2) = (k.clone(), v.clone());
        cases.push(Case {
            name: format!("attention {b}x{n}x{m} width {d} heads {heads}"),
            x: random(0, &[b, n, d])?,
            ours: Box::new(move |q| ops::attention(q, &k, &v, heads, Mask::None)),
            plain: Box::new(move |q| {
                let split = |t: &Tensor| t.reshape((b, (), heads, d / heads))?.transpose(1, 2)?.contiguous();
                let (q, k, v) = (split(q)?, split(&k2)?, split(&v2)?);
                let scores = (q.matmul(&k.t()?)? / ((d / heads) as f64).sqrt())?;
                let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
                Ok(weights.matmul(&v)?.transpose(1, 2)?.reshape((b, n, d))?)
            }),
        });
    }
    Ok(cases)
}

fn norms() -> Result<Vec<Case<'static>>> {
    let mut cases = Vec::new();
    for (b, side, c) in [(4, 16, 64), (4, 8, 192), (1, 128, 64)] {
        let (weight, bias) = (random(1, &[c])?, random(2, &[c])?);
        let (weight2, bias2) = (weight.clone(), bias.clone());
        cases.push(Case {
            name: format!("group_norm + silu {b}x{side}x{side}x{c}"),
            x: random(0, &[b, side, side, c])?,
            ours: Box::new(move |x| ops::group_norm(x, &weight, &bias, 32, 1e-5, true)),
            plain: Box::new(move |x| {
                let g = x.reshape((b, side * side, 32, c / 32))?;
                let centred = g.broadcast_sub(&g.mean_keepdim((1, 3))?)?;
                let std = (centred.sqr()?.mean_keepdim((1, 3))? + 1e-5)?.sqrt()?;
                let y = centred.broadcast_div(&std)?.reshape((b, side, side, c))?;
                Ok(y.broadcast_mul(&weight2)?.broadcast_add(&bias2)?.silu()?)
            }),
        });
    }
    for (rows, d) in [(1024, 128), (256, 192)] {
        let (weight, bias) = (random(1, &[d])?, random(2, &[d])?);
        let (weight2, bias2) = (weight.clone(), bias.clone());
        cases.push(Case {
            name: format!("layer_norm {rows}x{d}"),
            x: random(0, &[rows, d])?,
            ours: Box::new(move |x| ops::layer_norm(x, &weight, &bias, 1e-5)),
            plain: Box::new(move |x| {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
                Ok(centred.broadcast_div(&std)?.broadcast_mul(&weight2)?.broadcast_add(&bias2)?)
            }),
        });
    }
    Ok(cases)
}

fn pointwise() -> Result<Vec<Case<'static>>> {
    let case =
        |name: &str, x: Tensor, ours: fn(&Tensor) -> Result<Tensor>, plain: fn(&Tensor) -> Result<Tensor>| {
            Case { name: name.to_owned(), x, ours: Box::new(ours), plain: Box::new(plain) }
        };
    let (hidden, picture) = (random(0, &[1024, 1024])?, random(0, &[1, 64, 64, 64])?);
    Ok(vec![
        case("geglu 1024x1024", hidden.clone(), ops::geglu, |x| {
            let halves = x.chunk(2, D::Minus1)?;
            Ok((&halves[0] * halves[1].contiguous()?.gelu_erf()?)?)
        }),
        case("gelu 1024x1024", hidden.clone(), ops::gelu, |x| Ok(x.gelu_erf()?)),
        case("quick_gelu 1024x1024", hidden.clone(), ops::quick_gelu, |x| {
            Ok((x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?)
        }),
        case("silu 1024x1024", hidden, ops::silu, |x| Ok(x.silu()?)),
        case(
            "upsample 64x64x64",
            picture,
            |x| ops::upsample_nearest(x, 128, 128),
            |x| {
                let y = x.reshape((1, 64, 1, 64, 1, 64))?.broadcast_as((1, 64, 2, 64, 2, 64))?;
                Ok(y.reshape((1, 128, 128, 64))?)
            },
        ),
    ])
}
