//! Live and fused blending on real layers: equal to each other, and at weight 0 equal to the base, bit for bit.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device};
use scumble::{
    Result,
    adapter::{
        Adapter, Blend, Delta, Group, Live, LowRank, Metadata, NameTable, Parts, SaveOptions, Strength,
        Trainable, TrainableSpec, fuse,
    },
    nn::{Adaptable, Conv2d, LayerPath, Linear, Part, adaptable::Visitor},
    ops::Conv2dGeometry,
    random::{Rng, Stream},
    weights::{MemoryStore, Weights},
};

/// A picture through a convolution and two linear layers, named as in a UNet.
#[derive(Debug, Clone)]
struct Net {
    conv: Conv2d,
    to_q: Linear,
    proj: Linear,
}

const NAMES: [&str; 3] = [
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.attentions.0.attn1.to_q",
    "down_blocks.0.attentions.0.proj_out",
];
const SHAPES: [&[usize]; 3] = [&[6, 3, 3, 3], &[5, 6], &[7, 5]];

impl Net {
    fn new(dtype: DType) -> Result<Self> {
        let mut store = BTreeMap::new();
        for (i, (name, shape)) in NAMES.iter().zip(SHAPES).enumerate() {
            let mut rng = Rng::new(11, Stream::Weights, i as u64);
            store.insert(format!("{name}.weight"), rng.normal(shape, &Device::Cpu)?);
            store.insert(format!("{name}.bias"), rng.normal(shape[0], &Device::Cpu)?);
        }
        let weights = Weights::new(Arc::new(MemoryStore(store)), dtype, Device::Cpu);
        Ok(Self {
            conv: Conv2d::load(&weights.pp(NAMES[0]), 3, 6, 3, Conv2dGeometry::new(2, 1))?,
            to_q: Linear::load(&weights.pp(NAMES[1]), 6, 5, true)?,
            proj: Linear::load(&weights.pp(NAMES[2]), 5, 7, true)?,
        })
    }

    fn forward(&self) -> Result<Vec<f32>> {
        let x = Rng::new(12, Stream::Weights, 0).normal((2, 9, 7, 3), &Device::Cpu)?;
        let x = self.conv.forward(&x.to_dtype(self.conv.weight().dtype())?)?;
        let y = self.proj.forward(&self.to_q.forward(&x)?)?;
        Ok(y.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::new().with(Part::Unet, self)
    }
}

impl Adaptable for Net {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.conv.visit(&path.join(NAMES[0]), f)?;
        self.to_q.visit(&path.join(NAMES[1]), f)?;
        self.proj.visit(&path.join(NAMES[2]), f)
    }
}

/// Rank 4, alpha 2.5, everything non-zero.
fn adapter(seed: u64) -> Result<Arc<Adapter>> {
    let mut layers = BTreeMap::new();
    for (i, (name, shape)) in NAMES.iter().zip(SHAPES).enumerate() {
        let mut rng = Rng::new(seed, Stream::Weights, i as u64);
        let down: Vec<usize> = std::iter::once(4).chain(shape[1..].iter().copied()).collect();
        let low_rank = LowRank {
            down: rng.normal(down, &Device::Cpu)?,
            up: rng.normal((shape[0], 4), &Device::Cpu)?,
            mid: None,
            alpha: Some(2.5),
        };
        layers.insert(LayerPath { part: Part::Unet, name: (*name).into() }, Delta::LowRank(low_rank));
    }
    Ok(Arc::new(Adapter { layers, ..Adapter::default() }))
}

fn two(a: f64, b: f64) -> Result<Blend> {
    Ok(Blend::new().with("a", adapter(1)?, Strength::uniform(a)).with("b", adapter(2)?, Strength::uniform(b)))
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let max = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / max
}

#[test]
fn live_equals_fused() -> Result<()> {
    let mut net = Net::new(DType::F32)?;
    let base = net.forward()?;
    for (a, b) in [(1.0, 0.0), (0.7, -1.3), (2.0, 0.4)] {
        let blend = two(a, b)?;
        Live::attach(&blend, &mut net.parts())?;
        let live = net.forward()?;
        scumble::adapter::attach::detach(&mut net.parts())?;
        fuse::fuse(&blend, &mut net.parts())?;
        let fused = net.forward()?;
        assert!(difference(&live, &fused) < 1e-5, "{:e}", difference(&live, &fused));
        assert!(difference(&live, &base) > 0.1, "the adapters must matter");
        fuse::unfuse(&mut net.parts())?;
        assert_eq!(net.forward()?, base);
    }
    Ok(())
}

#[test]
fn a_thousand_changes_leave_no_trace() -> Result<()> {
    for dtype in [DType::F32, DType::F16] {
        let mut net = Net::new(dtype)?;
        let base = net.forward()?;
        let mut live = Live::attach(&two(1.0, 1.0)?, &mut net.parts())?;
        let fixed = [Strength::uniform(0.3), Strength::uniform(-0.8)];
        live.set_strengths(&mut net.parts(), &fixed)?;
        let before = net.forward()?;
        let mut rng = Rng::new(5, Stream::Shuffle, 0);
        for _ in 0..1_000 {
            let mut number = || rng.unit() * 4.0 - 2.0;
            let (first, second) = (format!("{},down.0={}", number(), number()), number());
            let second = format!("{}..{}@0-50%{}", number(), second, if second > 1.0 { "@left" } else { "" });
            let percent = 25.0 * (number() + 2.0);
            let strengths = [first, second]
                .map(|words| Ok(words.parse::<Strength>()?.on_canvas((9, 7))?.at_percent(percent)));
            let strengths = strengths.into_iter().collect::<Result<Vec<_>>>()?;
            live.set_strengths(&mut net.parts(), &strengths)?;
        }
        live.set_strengths(&mut net.parts(), &fixed)?;
        assert_eq!(net.forward()?, before);
        live.set_strengths(&mut net.parts(), &[(); 2].map(|()| Strength::uniform(0.0)))?;
        assert_eq!(net.forward()?, base);
        for _ in 0..20 {
            fuse::fuse(&two(rng.unit(), -rng.unit())?, &mut net.parts())?;
        }
        fuse::fuse(&two(0.0, 0.0)?, &mut net.parts())?;
        assert_eq!(net.forward()?, base);
        assert!(live.set_strengths(&mut net.parts(), &fixed[..1]).is_err());
    }
    Ok(())
}

#[test]
fn regions_weigh_places() -> Result<()> {
    let mut net = Net::new(DType::F32)?;
    let base = net.forward()?;
    let mut live = Live::attach(&two(0.7, -1.3)?, &mut net.parts())?;
    let plain = net.forward()?;
    let mut weigh = |words: [&str; 2]| -> Result<Vec<f32>> {
        let strengths = words.map(|w| w.parse::<Strength>()?.on_canvas((9, 7)));
        live.set_strengths(&mut net.parts(), &strengths.into_iter().collect::<Result<Vec<_>>>()?)?;
        net.forward()
    };
    // Both halves together are the whole; that holds for one linear layer, and here for all as they work place by
    // place: the convolution's output has its weights where it is written.
    let (left, right) = (weigh(["0.7@left", "-1.3@left"])?, weigh(["0.7@right", "-1.3@right"])?);
    // (2, 9, 7, 3) becomes (2, 5, 4, 7): four columns of seven numbers.
    for (i, (l, r)) in left.iter().zip(&right).enumerate() {
        let (inside, outside) = if i / 7 % 4 < 2 { (l, r) } else { (r, l) };
        assert!(
            (inside - plain[i]).abs() < 1e-4 * (1.0 + plain[i].abs()),
            "{i}: {inside}, alone {}",
            plain[i]
        );
        assert_eq!(*outside, base[i], "{i}");
    }
    let mixed = weigh(["0.7@left", "-1.3"])?;
    assert!(difference(&mixed, &plain) > 0.01 && difference(&mixed, &left) > 0.01);
    Ok(())
}

#[test]
fn overflow_in_half_precision_names_the_layer() -> Result<()> {
    let mut net = Net::new(DType::F16)?;
    let error = fuse::fuse(&two(1e5, 0.0)?, &mut net.parts()).expect_err("65504 is the end of f16");
    assert!(error.to_string().contains("overflows F16 in unet.down_blocks.0"), "{error}");
    Ok(())
}

fn spec(groups: impl IntoIterator<Item = Group>) -> TrainableSpec {
    TrainableSpec {
        groups: groups.into_iter().collect(),
        rank: 4,
        alpha: 2.0,
        conv_rank_alpha: Some((2, 1.0)),
        seed: 9,
        ..TrainableSpec::default()
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_every_tensor_learns() -> Result<()> {
    let mut net = Net::new(DType::F32)?;
    let base = net.forward()?;
    let all = spec([Group::Attention, Group::Projection, Group::Convolution]);
    let fresh = Trainable::new(&all, &mut net.parts())?;
    assert_eq!(net.forward()?, base);
    assert_eq!(fresh.vars().len(), 6);
    // conv: 2·27 + 6·2; to_q: 4·6 + 5·4; proj: 4·5 + 7·4
    assert_eq!(fresh.parameter_count(), 66 + 44 + 48);

    // An optimizer's `set` is seen without attaching again; then every factor has a gradient.
    for (i, layer) in fresh.layers.iter().enumerate() {
        let up = Rng::new(20, Stream::Weights, i as u64).normal(layer.up.shape(), &Device::Cpu)?;
        layer.up.set(&up)?;
    }
    let trained = net.forward()?;
    assert!(difference(&trained, &base) > 0.1);
    let x = Rng::new(12, Stream::Weights, 0).normal((2, 9, 7, 3), &Device::Cpu)?;
    let y = net.proj.forward(&net.to_q.forward(&net.conv.forward(&x)?)?)?;
    let gradients = scumble::ops::backward(&y.sqr()?)?;
    for var in fresh.vars() {
        let gradient = gradients.get(var.as_tensor()).expect("a gradient for every factor");
        assert!(gradient.abs()?.sum_all()?.to_scalar::<f32>()? > 0.0);
    }

    // Exported, written, read and attached as a blend it is the same model; and training can go on from it.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("style.safetensors");
    let table = NameTable::of(&mut net.parts())?;
    fresh.to_adapter(Metadata::default())?.save(&path, &table, &SaveOptions::default())?;
    let read = Adapter::load(&path, &table, &Default::default())?;
    let again = Trainable::new(&TrainableSpec { seed: 1, ..all }, &mut net.parts())?;
    again.load(&read)?;
    assert_eq!(net.forward()?, trained);
    Live::attach(&Blend::new().with("style", Arc::new(read), Strength::default()), &mut net.parts())?;
    assert_eq!(net.forward()?, trained);
    Ok(())
}

#[test]
fn two_networks_in_a_row_have_equal_targets() -> Result<()> {
    let paths = |groups: &[Group]| -> Result<Vec<String>> {
        let mut net = Net::new(DType::F32)?;
        let made = Trainable::new(&spec(groups.iter().copied()), &mut net.parts())?;
        Ok(made.layers.iter().map(|l| l.path.to_string()).collect())
    };
    let before = paths(&[Group::Attention])?;
    assert_eq!(before.len(), 1);
    assert_eq!(paths(&[Group::Attention, Group::Convolution])?.len(), 2);
    assert_eq!(paths(&[Group::Attention])?, before);
    assert!(paths(&[Group::TextMlp]).is_err());
    Ok(())
}
