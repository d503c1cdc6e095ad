//! Adapters at full size, of random numbers: blending on the 192 layers kohya trains by default on SD 1.5's UNet, and
//! resizing an SDXL adapter with everything kohya's LoRA can train.
//!
//! `cargo bench --bench adapter [-- fuse|live|look|resize]`. The targets are for 2 CPU cores.
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
        Adapter, Blend, Delta, Group, Live, LowRank, NameTable, Parts, Strength, attach,
        delta::{Dora, MagnitudeAxis},
        fuse,
        layers::Progress,
        resize,
        truncate::{RankLimit, total_error},
    },
    nn::{Adaptable, LayerPath, Linear, Part, adaptable::Visitor},
    pipeline::layers,
    progress::CancelToken,
    random::{Rng, Stream},
    weights::{Family, MemoryStore, Weights},
};

const RANK: usize = 16;

/// The layers, by path.
struct Layers(Vec<(String, Linear)>);

impl Adaptable for Layers {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.0.iter_mut().try_for_each(|(name, layer)| layer.visit(&path.join(&*name), f))
    }
}

/// Layers kohya's LoRA trains by default, and what they read and write.
fn trained(table: &NameTable) -> Vec<(LayerPath, [usize; 2])> {
    let wanted = |path: &LayerPath| Group::of(path).is_some_and(|group| group != Group::Convolution);
    let all = table.layers().filter(|(path, shape)| wanted(path) && shape.len() > 1);
    all.map(|(path, shape)| (path.clone(), [shape[0], shape[1]])).collect()
}

fn sd15() -> Result<Vec<(LayerPath, [usize; 2])>> {
    let all = trained(&layers::of_family(Family::Sd1)?);
    Ok(all.into_iter().filter(|(path, _)| path.part == Part::Unet).collect())
}

fn random(seed: u64, shape: [usize; 2]) -> Result<Tensor> {
    Rng::new(1, Stream::Weights, seed).uniform(-0.05, 0.05, &shape[..], &Device::Cpu)
}

fn network() -> Result<Layers> {
    let layer = |(n, (path, shape)): (usize, (LayerPath, [usize; 2]))| {
        let store = BTreeMap::from([("weight".to_string(), random(n as u64, shape)?)]);
        let weights = Weights::new(Arc::new(MemoryStore(store)), DType::F32, Device::Cpu);
        Ok((path.name, Linear::load(&weights, shape[1], shape[0], false)?))
    };
    Ok(Layers(sd15()?.into_iter().enumerate().map(layer).collect::<Result<_>>()?))
}

fn adapter(seed: u64) -> Result<Arc<Adapter>> {
    let layer = |(n, (path, [out, input])): (usize, (LayerPath, [usize; 2]))| {
        let n = 10_000 * seed + 2 * n as u64;
        let (down, up) = (random(n, [RANK, input])?, random(n + 1, [out, RANK])?);
        Ok((path, Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(8.0) })))
    };
    let layers = sd15()?.into_iter().enumerate().map(layer).collect::<Result<_>>()?;
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

fn print(what: &str, [best, middle]: [Duration; 2], target: &str) {
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    println!("{what:46} {:10.3} ms at best {:10.3} ms in the middle   {target}", ms(best), ms(middle));
}

fn fusing(network: &mut Layers) -> Result<()> {
    let mut model = Parts::new().with(Part::Unet, network);
    for count in [1, 10] {
        let blend = blend(count)?;
        let target = if count == 1 { "target: under 2 s" } else { "" };
        print(&format!("fusing {count}, LoRA"), time(5, |_| fuse::fuse(&blend, &mut model))?, target);
    }
    let one = Blend::new().with("style", dora(&*adapter(1)?)?, Strength::uniform(0.5));
    print("fusing 1, DoRA", time(5, |_| fuse::fuse(&one, &mut model))?, "target: under 2 s");
    fuse::unfuse(&mut model)
}

fn live(network: &mut Layers) -> Result<()> {
    let mut model = Parts::new().with(Part::Unet, network);
    let mut live = Live::attach(&blend(10)?, &mut model)?;
    let changed = time(200, |run| {
        let strength = Strength::uniform(0.1 + run as f64 / 1000.0);
        live.set_strengths(&mut model, &std::array::from_fn::<_, 10, _>(|_| strength.clone()))
    })?;
    print("changing all strengths of 10 live", changed, "target: under 1 ms");
    attach::detach(&mut model)
}

/// What live branches cost a look at a 512 × 512 picture with guidance, against what fusing costs once: from how many
/// looks on fusing pays (`LOOKS_WORTH_FUSING` in `pipeline/blending.rs`).
fn look(network: &mut Layers) -> Result<()> {
    let mut inputs = BTreeMap::new();
    for (name, layer) in &network.0 {
        let (tokens, width) = (tokens(name), layer.weight().dims()[1]);
        inputs.insert((tokens, width), random(7, [2 * tokens, width])?.reshape((2, tokens, width))?);
    }
    let look = |network: &Layers| {
        network.0.iter().try_for_each(|(name, layer)| {
            layer.forward(&inputs[&(tokens(name), layer.weight().dims()[1])]).map(drop)
        })
    };
    look(network)?;
    for count in [1, 3, 10] {
        let blend = blend(count)?;
        let once = time(3, |_| fuse::fuse(&blend, &mut Parts::new().with(Part::Unet, &mut *network)))?;
        let fused = time(5, |_| look(network))?;
        Live::attach(&blend, &mut Parts::new().with(Part::Unet, &mut *network))?;
        let live = time(5, |_| look(network))?;
        attach::detach(&mut Parts::new().with(Part::Unet, &mut *network))?;
        print(&format!("these layers in a look, {count} fused"), fused, "");
        let more = live[0].saturating_sub(fused[0]).as_secs_f64();
        let pays = format!("fusing pays from {:.1} looks on", once[0].as_secs_f64() / more);
        print(&format!("these layers in a look, {count} live"), live, &pays);
    }
    Ok(())
}

/// Of a layer's input: places of the picture at its level, or words of the prompt.
fn tokens(name: &str) -> usize {
    if name.ends_with("attn2.to_k") || name.ends_with("attn2.to_v") {
        return 77;
    }
    let level = name.split('.').nth(1).and_then(|level| level.parse().ok()).unwrap_or(0);
    match name.split('.').next() {
        Some("down_blocks") => 4096 >> (2 * level),
        Some("up_blocks") => 64 << (2 * level),
        _ => 64,
    }
}

fn resizing() -> Result<()> {
    let (from, to) = (128, 32);
    let table = layers::of_family(Family::Sdxl)?;
    // Layers of one shape share their numbers: what takes time is not making them.
    let mut factors: BTreeMap<[usize; 2], Tensor> = BTreeMap::new();
    let mut factor = |shape: [usize; 2]| -> Result<Tensor> {
        if let Some(tensor) = factors.get(&shape) {
            return Ok(tensor.clone());
        }
        let tensor = random((shape[0] << 20 | shape[1]) as u64, shape)?.to_dtype(DType::F16)?;
        factors.insert(shape, tensor.clone());
        Ok(tensor)
    };
    let mut big = Adapter::default();
    for (path, [out, input]) in trained(&table) {
        let is_conv = table.shape(&path).is_some_and(|shape| shape.len() == 4);
        let (mut down, mut up) = (factor([from, input])?, factor([out, from])?);
        if is_conv {
            (down, up) = (down.reshape((from, input, 1, 1))?, up.reshape((out, from, 1, 1))?);
        }
        big.layers.insert(path, Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(64.0) }));
    }
    println!("SDXL: {} layers", big.layers.len());
    let mut error = 0.0;
    let taken = time(1, |_| {
        let mut progress = Progress { observer: &mut (), cancel: &CancelToken::default() };
        let cut = resize::resize(&big, &table, &RankLimit::fixed(to), &mut progress)?;
        error = total_error(&cut.losses);
        Ok(())
    })?;
    print(&format!("resizing SDXL, rank {from} to {to}"), taken, "target: under 60 s");
    println!("  relative error {:.6} (random factors: nothing to be kept)", error);
    Ok(())
}

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let wanted = |what: &str| what.contains(&filter);
    let mut network = network()?;
    let parameters: usize = network.0.iter().map(|(_, layer)| layer.weight().elem_count()).sum();
    println!("SD 1.5: {} layers, {} million weights, rank {RANK}", network.0.len(), parameters / 1_000_000);
    if wanted("fuse") {
        fusing(&mut network)?;
    }
    if wanted("live") {
        live(&mut network)?;
    }
    if wanted("look") {
        look(&mut network)?;
    }
    if wanted("resize") {
        resizing()?;
    }
    Ok(())
}
