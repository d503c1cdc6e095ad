//! Blending at full size: the 192 layers kohya trains by default on SD 1.5's UNet, with random weights.
//!
//! `cargo bench --bench adapter`. Fusing adapters of rank 16, then changing all strengths of ten live ones.
#![allow(clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Result,
    adapter::{
        Adapter, Blend, Delta, Live, LowRank, Parts, Strength, attach,
        delta::{Dora, MagnitudeAxis},
        fuse,
    },
    nn::{Adaptable, LayerPath, Linear, Part, adaptable::Visitor},
    random::{Rng, Stream},
    weights::{MemoryStore, Weights},
};

const RANK: usize = 16;

/// The layers, by path.
struct Layers(Vec<(String, Linear)>);

impl Adaptable for Layers {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.0.iter_mut().try_for_each(|(name, layer)| layer.visit(&path.join(&*name), f))
    }
}

/// Names and shapes (out, in).
fn shapes() -> Vec<(String, [usize; 2])> {
    let blocks = [
        ("down_blocks.0", 320, 2),
        ("down_blocks.1", 640, 2),
        ("down_blocks.2", 1280, 2),
        ("mid_block", 1280, 1),
        ("up_blocks.1", 1280, 3),
        ("up_blocks.2", 640, 3),
        ("up_blocks.3", 320, 3),
    ];
    let mut all = Vec::new();
    for (block, width, attentions) in blocks {
        for n in 0..attentions {
            let inner = "transformer_blocks.0";
            let mut add = |name: &str, out: usize, input: usize| {
                all.push((format!("{block}.attentions.{n}.{name}"), [out, input]));
            };
            add("proj_in", width, width);
            for (attention, context) in [("attn1", width), ("attn2", 768)] {
                for (name, input) in
                    [("to_q", width), ("to_k", context), ("to_v", context), ("to_out.0", width)]
                {
                    add(&format!("{inner}.{attention}.{name}"), width, input);
                }
            }
            add(&format!("{inner}.ff.net.0.proj"), 8 * width, width);
            add(&format!("{inner}.ff.net.2"), width, 4 * width);
            add("proj_out", width, width);
        }
    }
    all
}

fn random(seed: u64, shape: [usize; 2]) -> Result<Tensor> {
    Rng::new(1, Stream::Weights, seed).uniform(-0.05, 0.05, &shape[..], &Device::Cpu)
}

fn network() -> Result<Layers> {
    let layer = |(n, (name, shape)): (usize, (String, [usize; 2]))| {
        let store = BTreeMap::from([("weight".to_string(), random(n as u64, shape)?)]);
        let weights = Weights::new(Arc::new(MemoryStore(store)), DType::F32, Device::Cpu);
        Ok((name, Linear::load(&weights, shape[1], shape[0], false)?))
    };
    Ok(Layers(shapes().into_iter().enumerate().map(layer).collect::<Result<_>>()?))
}

fn adapter(seed: u64) -> Result<Arc<Adapter>> {
    let layer = |(n, (name, [out, input])): (usize, (String, [usize; 2]))| {
        let n = 10_000 * seed + 2 * n as u64;
        let (down, up) = (random(n, [RANK, input])?, random(n + 1, [out, RANK])?);
        let delta = Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(8.0) });
        Ok((LayerPath { part: Part::Unet, name }, delta))
    };
    let layers = shapes().into_iter().enumerate().map(layer).collect::<Result<_>>()?;
    Ok(Arc::new(Adapter { layers, ..Adapter::default() }))
}

/// The same with magnitudes, which makes the result depend on the weight.
fn dora(of: &Adapter) -> Result<Arc<Adapter>> {
    let layer = |(path, inner): (&LayerPath, &Delta)| {
        let outputs = inner.tensors()?.iter().map(|(_, t)| t.elem_count() / RANK).next_back().unwrap_or(1);
        let magnitude = Tensor::ones(outputs, DType::F32, &Device::Cpu)?;
        let inner = Box::new(inner.clone());
        Ok((path.clone(), Delta::Dora(Dora { inner, magnitude, axis: MagnitudeAxis::Output })))
    };
    let layers = of.layers.iter().map(layer).collect::<Result<_>>()?;
    Ok(Arc::new(Adapter { layers, ..Adapter::default() }))
}

fn blend(count: u64) -> Result<Blend> {
    (1..=count).try_fold(Blend::new(), |blend, n| {
        Ok(blend.with(format!("style {n}"), adapter(n)?, Strength::uniform(0.5)))
    })
}

/// The fastest and the middle of some runs.
fn time(runs: usize, mut f: impl FnMut(usize) -> Result<()>) -> Result<[Duration; 2]> {
    let mut times = Vec::new();
    for run in 0..runs {
        let start = Instant::now();
        f(run)?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok([times[0], times[runs / 2]])
}

fn print(what: &str, [best, middle]: [Duration; 2]) {
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    println!("{what:44} {:10.3} ms at best {:10.3} ms in the middle", ms(best), ms(middle));
}

fn main() -> Result<()> {
    let mut network = network()?;
    let parameters: usize = network.0.iter().map(|(_, layer)| layer.weight().elem_count()).sum();
    println!("{} layers, {} million weights, rank {RANK}", network.0.len(), parameters / 1_000_000);
    let mut model = Parts::new().with(Part::Unet, &mut network);
    for count in [1, 10] {
        let blend = blend(count)?;
        let fused = time(5, |_| fuse::fuse(&blend, &mut model))?;
        print(&format!("fusing {count}"), fused);
        fuse::unfuse(&mut model)?;
    }
    let style = dora(&*adapter(1)?)?;
    let one = Blend::new().with("style", style, Strength::uniform(0.5));
    print("fusing 1 with DoRA", time(5, |_| fuse::fuse(&one, &mut model))?);
    fuse::unfuse(&mut model)?;
    let blend = blend(10)?;
    let mut live = Live::attach(&blend, &mut model)?;
    let changed = time(200, |run| {
        let strength = Strength::uniform(0.1 + run as f64 / 1000.0);
        live.set_strengths(&mut model, &std::array::from_fn::<_, 10, _>(|_| strength.clone()))
    })?;
    print("changing all strengths of 10 live", changed);
    attach::detach(&mut model)
}
