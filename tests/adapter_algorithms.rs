//! Every algorithm on real layers: live equals fused, files return what was written, and at weight 0 the model is its
//! base, bit for bit.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Result,
    adapter::{
        Adapter, Blend, Delta, Live, LoadOptions, LowRank, NameTable, Parts, SaveOptions, Strength,
        delta::{
            Beside, Boft, Dora, Full, Glora, HadamardFactor, Ia3, KroneckerFactor, LoHa, LoKr, MagnitudeAxis,
            Norm, Oft, OftForm, OftSeries, OftV2, Sparse,
        },
        fuse,
    },
    nn::{Adaptable, Conv2d, Embedding, LayerNorm, LayerPath, Linear, Part, adaptable::Visitor},
    ops::Conv2dGeometry,
    random::{Rng, Stream},
    weights::{MemoryStore, Weights},
};

const TABLE: &str = "down_blocks.0.table";
const CONV: &str = "down_blocks.0.resnets.0.conv1";
const NORM: &str = "down_blocks.0.attentions.0.transformer_blocks.0.norm1";
const TO_Q: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
const SHAPES: [(&str, &[usize]); 4] =
    [(TABLE, &[5, 4]), (CONV, &[6, 4, 3, 3]), (NORM, &[6]), (TO_Q, &[6, 6])];

/// Ids through a table, a convolution, a normalisation and a linear layer without a bias.
struct Net {
    table: Embedding,
    conv: Conv2d,
    norm: LayerNorm,
    to_q: Linear,
}

impl Net {
    fn new(dtype: DType) -> Result<Self> {
        let mut store = BTreeMap::new();
        for (i, (name, shape)) in SHAPES.iter().enumerate() {
            let mut rng = Rng::new(11, Stream::Weights, i as u64);
            store.insert(format!("{name}.weight"), rng.normal(*shape, &Device::Cpu)?);
            store.insert(format!("{name}.bias"), rng.normal(shape[0], &Device::Cpu)?);
        }
        let weights = Weights::new(Arc::new(MemoryStore(store)), dtype, Device::Cpu);
        Ok(Self {
            table: Embedding::load(&weights.pp(TABLE), 5, 4)?,
            conv: Conv2d::load(&weights.pp(CONV), 4, 6, 3, Conv2dGeometry::new(1, 1))?,
            norm: LayerNorm::load(&weights.pp(NORM), 6, 1e-5)?,
            to_q: Linear::load(&weights.pp(TO_Q), 6, 6, false)?,
        })
    }

    fn forward(&self) -> Result<Vec<f32>> {
        let ids: Vec<u32> = (0..12).map(|i| i * 7 % 5).collect();
        let x = self.table.forward(&Tensor::from_vec(ids, (1, 12), &Device::Cpu)?)?;
        let x = self.conv.forward(&x.reshape((1, 4, 3, 4))?)?;
        let y = self.to_q.forward(&self.norm.forward(&x)?)?;
        Ok(y.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::new().with(Part::Unet, self)
    }

    fn names() -> Result<NameTable> {
        NameTable::of(&mut Self::new(DType::F32)?.parts())
    }
}

impl Adaptable for Net {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.table.visit(&path.join(TABLE), f)?;
        self.conv.visit(&path.join(CONV), f)?;
        self.norm.visit(&path.join(NORM), f)?;
        self.to_q.visit(&path.join(TO_Q), f)
    }
}

fn layer(name: &str) -> LayerPath {
    LayerPath { part: Part::Unet, name: name.into() }
}

/// Draws tensors one after another.
struct Draw(u64);

impl Draw {
    fn tensor(&mut self, dims: &[usize]) -> Result<Tensor> {
        self.0 += 1;
        Ok((Rng::new(3, Stream::Weights, self.0).normal(dims, &Device::Cpu)? * 0.4)?)
    }

    fn low_rank(&mut self, shape: &[usize]) -> Result<Delta> {
        let down = [&[2], &shape[1..]].concat();
        let up = [&[shape[0], 2], &vec![1; shape.len() - 2][..]].concat();
        let (down, up) = (self.tensor(&down)?, self.tensor(&up)?);
        Ok(Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(1.5) }))
    }

    fn loha(&mut self, shape: &[usize]) -> Result<Delta> {
        let inputs: usize = shape[1..].iter().product();
        let mut factor = || -> Result<HadamardFactor> {
            Ok(HadamardFactor { a: self.tensor(&[shape[0], 2])?, b: self.tensor(&[2, inputs])?, core: None })
        };
        Ok(Delta::LoHa(LoHa { first: factor()?, second: factor()?, alpha: Some(1.0) }))
    }

    /// One of each for a shape of six outputs.
    fn every(&mut self, shape: &[usize]) -> Result<Vec<Delta>> {
        let inputs: usize = shape[1..].iter().product();
        let ones = vec![1; shape.len() - 2];
        let low_rank = self.low_rank(shape)?;
        let dora = |draw: &mut Self, inner: &Delta, axis| -> Result<Delta> {
            let dims = match axis {
                MagnitudeAxis::Output => [&[6, 1], &ones[..]].concat(),
                MagnitudeAxis::Input => [&[1, shape[1]], &ones[..]].concat(),
            };
            Ok(Delta::Dora(Dora { inner: Box::new(inner.clone()), magnitude: draw.tensor(&dims)?, axis }))
        };
        let loha = self.loha(shape)?;
        let lokr = Delta::LoKr(LoKr {
            first: KroneckerFactor::Whole(self.tensor(&[2, 2])?),
            second: KroneckerFactor::Product { a: self.tensor(&[3, 1])?, b: self.tensor(&[1, inputs / 2])? },
            alpha: Some(0.5),
            whole_scale: None,
        });
        let whole = Delta::LoKr(LoKr {
            first: KroneckerFactor::Whole(self.tensor(&[3, 2])?),
            second: KroneckerFactor::Whole(self.tensor(&[&[2, shape[1] / 2], &shape[2..]].concat())?),
            alpha: Some(1.0),
            whole_scale: None,
        });
        let sparse = Sparse {
            indices: Tensor::new(&[[1i16, 5], [0, 3]], &Device::Cpu)?,
            values: Tensor::new(&[0.5f32, -0.75], &Device::Cpu)?,
            size: Tensor::new(&[6i16, inputs as i16], &Device::Cpu)?,
        };
        let beside = Beside {
            inner: Box::new(low_rank.clone()),
            residual: Some(sparse),
            bias: Some(self.tensor(&[6])?),
        };
        Ok(vec![
            dora(self, &low_rank, MagnitudeAxis::Output)?,
            dora(self, &low_rank, MagnitudeAxis::Input)?,
            dora(self, &loha, MagnitudeAxis::Output)?,
            dora(self, &lokr, MagnitudeAxis::Input)?,
            low_rank,
            loha,
            lokr,
            whole,
            Delta::Glora(Glora {
                a1: self.tensor(&[&[shape[1], 2], &ones[..]].concat())?,
                a2: self.tensor(&[&[2, shape[1]], &ones[..]].concat())?,
                b1: self.tensor(&[&[6, 2], &ones[..]].concat())?,
                b2: self.tensor(&[&[2], &shape[1..]].concat())?,
                core: None,
                alpha: Some(2.0),
            }),
            Delta::Ia3(Ia3 { scale: self.tensor(&[6])?, on_input: false, scales_bias: false }),
            Delta::Oft(Oft::new(
                self.tensor(&[2, 3, 3])?,
                OftForm::Cayley { constraint: Some(0.125) },
                Some(self.tensor(&[&[6, 1], &ones[..]].concat())?),
            )),
            Delta::Boft(Boft { blocks: self.tensor(&[1, 3, 2, 2])?, constraint: None, rescale: None }),
            Delta::OftV2(OftV2 {
                skew: self.tensor(&[inputs / 2, 1])?,
                series: OftSeries::Neumann(5),
                scaled: true,
                opposite: shape.len() == 4,
                block_limit: None,
            }),
            Delta::Full(Full { weight: Some(self.tensor(shape)?), bias: Some(self.tensor(&[6])?) }),
            Delta::Full(Full { weight: None, bias: Some(self.tensor(&[6])?) }),
            Delta::Beside(beside),
        ])
    }
}

fn adapter(layers: Vec<(&str, Delta)>) -> Arc<Adapter> {
    let layers = layers.into_iter().map(|(name, delta)| (layer(name), delta)).collect();
    Arc::new(Adapter { layers, ..Adapter::default() })
}

/// An adapter for each algorithm, on all four layers.
fn every_adapter() -> Result<Vec<(String, Arc<Adapter>)>> {
    let mut draw = Draw(0);
    let (conv, linear) = (draw.every(SHAPES[1].1)?, draw.every(SHAPES[3].1)?);
    conv.into_iter()
        .zip(linear)
        .enumerate()
        .map(|(i, (conv, linear))| {
            let name = format!("{i} {}", conv.algorithm());
            let norm = Norm(Full { weight: Some(draw.tensor(&[6])?), bias: Some(draw.tensor(&[6])?) });
            let table = Full { weight: Some(draw.tensor(&[5, 4])?), bias: None };
            let layers =
                vec![(CONV, conv), (TO_Q, linear), (NORM, Delta::Norm(norm)), (TABLE, Delta::Full(table))];
            Ok((name, adapter(layers)))
        })
        .collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let max = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / max
}

#[test]
fn live_equals_fused_for_every_algorithm_and_order() -> Result<()> {
    let mut net = Net::new(DType::F32)?;
    let base = net.forward()?;
    let lora =
        adapter(vec![(CONV, Draw(100).low_rank(SHAPES[1].1)?), (TO_Q, Draw(110).low_rank(SHAPES[3].1)?)]);
    for (name, adapter) in every_adapter()? {
        let mut outputs = Vec::new();
        for order in 0..2 {
            let one = |blend: Blend| blend.with(&name, adapter.clone(), Strength::uniform(0.7));
            let two = |blend: Blend| blend.with("lora", lora.clone(), Strength::uniform(-0.4));
            let blend = if order == 0 { two(one(Blend::new())) } else { one(two(Blend::new())) };
            Live::attach(&blend, &mut net.parts())?;
            let live = net.forward()?;
            scumble::adapter::attach::detach(&mut net.parts())?;
            assert_eq!(net.forward()?, base, "{name}");
            fuse::fuse(&blend, &mut net.parts())?;
            let fused = net.forward()?;
            fuse::unfuse(&mut net.parts())?;
            assert_eq!(net.forward()?, base, "{name}");
            assert!(difference(&live, &fused) < 2e-5, "{name}: {:e}", difference(&live, &fused));
            assert!(difference(&live, &base) > 0.05, "{name} must matter");
            outputs.push(fused);
        }
        let additive = adapter.layers.values().all(Delta::is_additive);
        let moved = difference(&outputs[0], &outputs[1]);
        assert_eq!(moved < 1e-5, additive, "{name}: order moves it by {moved:e}");
    }
    Ok(())
}

#[test]
fn adapters_act_on_what_the_one_before_left() -> Result<()> {
    let shape = SHAPES[1].1;
    let mut draw = Draw(50);
    let base = draw.tensor(shape)?;
    let deltas = draw.every(shape)?;
    for rotation in 0..deltas.len() {
        let order: Vec<&Delta> = deltas.iter().cycle().skip(rotation).take(4).collect();
        let (mut blend, mut expected) = (Blend::new(), base.clone());
        for (i, delta) in order.iter().enumerate() {
            let strength = 0.5 - 0.2 * i as f64;
            let one = adapter(vec![(CONV, (*delta).clone())]);
            blend = blend.with(i.to_string(), one, Strength::uniform(strength));
            expected = delta.apply(&expected, strength)?;
        }
        let found = fuse::fused_weight(&blend, &layer(CONV), &base)?.expect("a change");
        let (found, expected) =
            (found.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);
        assert!(difference(&found, &expected) < 1e-6);
    }
    Ok(())
}

#[test]
fn a_thousand_changes_of_everything_leave_no_trace() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let mut net = Net::new(dtype)?;
        let base = net.forward()?;
        let adapters = every_adapter()?;
        let mut blend = Blend::new();
        for (name, adapter) in adapters.iter().step_by(3) {
            blend = blend.with(name, adapter.clone(), Strength::uniform(0.1));
        }
        let count = blend.entries.len();
        let mut live = Live::attach(&blend, &mut net.parts())?;
        let before = net.forward()?;
        let mut rng = Rng::new(5, Stream::Shuffle, 0);
        for _ in 0..1_000 {
            let strengths: Vec<Strength> =
                (0..count).map(|_| Strength::uniform(rng.unit() * 0.4 - 0.2)).collect();
            live.set_strengths(&mut net.parts(), &strengths)?;
        }
        assert!(difference(&net.forward()?, &before) > 0.0);
        live.set_strengths(&mut net.parts(), &blend.strengths())?;
        assert_eq!(net.forward()?, before);
        live.set_strengths(&mut net.parts(), &vec![Strength::uniform(0.0); count])?;
        assert_eq!(net.forward()?, base);
    }
    Ok(())
}

#[test]
fn a_failed_change_is_made_good_by_the_next() -> Result<()> {
    let mut net = Net::new(DType::F16)?;
    let base = net.forward()?;
    let huge = Full { weight: Some(Tensor::full(60_000f32, (6, 6), &Device::Cpu)?), bias: None };
    let blend = Blend::new().with("huge", adapter(vec![(TO_Q, Delta::Full(huge))]), Strength::uniform(0.0));
    let mut live = Live::attach(&blend, &mut net.parts())?;
    let refused = live.set_strengths(&mut net.parts(), &[Strength::uniform(3.0)]);
    let message = refused.expect_err("beyond what f16 can hold").to_string();
    assert!(message.contains("huge") && message.contains("overflows F16"), "{message}");
    live.set_strengths(&mut net.parts(), &[Strength::uniform(0.0)])?;
    assert_eq!(net.forward()?, base);
    Ok(())
}

#[test]
fn files_return_every_algorithm() -> Result<()> {
    let (folder, names) = (tempfile::tempdir().expect("a temporary folder"), Net::names()?);
    for (name, adapter) in every_adapter()? {
        let path = folder.path().join("a.safetensors");
        adapter.save(&path, &names, &SaveOptions::default())?;
        let back = Adapter::load(&path, &names, &LoadOptions::default()).map_err(|e| e.context(&name))?;
        assert_eq!(back.report.coverage(), 1.0, "{name}");
        assert!(back.report.warnings.is_empty(), "{name}: {:?}", back.report.warnings);
        for (path, delta) in &adapter.layers {
            let again = &back.layers[path];
            assert_eq!(again.algorithm(), delta.algorithm(), "{name}");
            let shape = SHAPES.iter().find(|(n, _)| *n == path.name).expect("a layer").1;
            let base = Draw(200).tensor(shape)?;
            let values =
                |d: &Delta| -> Result<Vec<f32>> { Ok(d.apply(&base, 0.9)?.flatten_all()?.to_vec1()?) };
            assert_eq!(values(again)?, values(delta)?, "{name} on {path}");
            let bias = |d: &Delta| -> Result<Option<Vec<f32>>> {
                Ok(d.apply_bias(None, 0.9)?.map(|b| b.to_vec1()).transpose()?)
            };
            assert_eq!(bias(again)?, bias(delta)?, "{name} on {path}");
        }
    }
    Ok(())
}
