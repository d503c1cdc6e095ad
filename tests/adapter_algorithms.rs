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
    weights::{MemoryStore, Weights, writer::SafetensorsWriter},
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
            Delta::Oft(Oft {
                blocks: self.tensor(&[2, 3, 3])?,
                form: OftForm::Cayley { constraint: Some(0.125) },
                rescale: Some(self.tensor(&[&[6, 1], &ones[..]].concat())?),
            }),
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
            let norm = Norm { weight: Some(draw.tensor(&[6])?), bias: Some(draw.tensor(&[6])?) };
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

const MODULE: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";

/// A file of one module, read for the model.
fn load(tensors: &[(&str, Tensor)], metadata: &[(&str, &str)], options: &LoadOptions) -> Result<Adapter> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("one.safetensors");
    let tensors: Vec<(String, &Tensor)> =
        tensors.iter().map(|(suffix, t)| (format!("{MODULE}{suffix}"), t)).collect();
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    SafetensorsWriter::new(tensors.iter().map(|(name, t)| (name.as_str(), *t)))?.write(&path, &metadata)?;
    Adapter::load(&path, &Net::names()?, options)
}

fn only(adapter: &Adapter) -> &Delta {
    adapter.layers.values().next().expect("one layer")
}

#[test]
fn incomplete_and_inconsistent_modules_are_refused() -> Result<()> {
    let mut draw = Draw(300);
    let mut t = |dims: &[usize]| draw.tensor(dims).expect("a tensor");
    let ids = |dims: &[usize]| Tensor::zeros(dims, DType::I64, &Device::Cpu).expect("a tensor");
    let number = |x: f64| Tensor::new(x, &Device::Cpu).expect("a tensor");
    let (down, up) = (t(&[2, 6]), t(&[6, 2]));
    let lora = |more: Vec<(&'static str, Tensor)>| {
        [vec![(".lora_down.weight", down.clone()), (".lora_up.weight", up.clone())], more].concat()
    };
    let cases: Vec<(Vec<(&str, Tensor)>, &str)> = vec![
        (vec![(".hada_w1_a", t(&[6, 2]))], "`.hada_w1_b` is missing"),
        (
            vec![
                (".hada_w1_a", t(&[2, 6])),
                (".hada_w1_b", t(&[2, 6])),
                (".hada_w2_a", t(&[2, 6])),
                (".hada_w2_b", t(&[2, 6])),
                (".hada_t1", t(&[2, 2, 3, 3])),
            ],
            "`.hada_t2` is missing",
        ),
        (
            vec![
                (".hada_w1_a", t(&[6, 2])),
                (".hada_w1_b", t(&[3, 6])),
                (".hada_w2_a", t(&[6, 2])),
                (".hada_w2_b", t(&[2, 6])),
            ],
            "(`.hada_w1_a` [6, 2], `.hada_w1_b` [3, 6]) do not fit the model's weight [6, 6]",
        ),
        (vec![(".lokr_w1", t(&[2, 2]))], "`.lokr_w2` is missing"),
        (vec![(".lokr_w1", t(&[2, 2])), (".lokr_w2_a", t(&[3, 1]))], "`.lokr_w2_b` is missing"),
        (
            vec![(".lokr_w1", t(&[2, 2])), (".lokr_w1_a", t(&[2, 1])), (".lokr_w2", t(&[3, 3]))],
            "`.lokr_w1` is stored both whole and factored",
        ),
        (
            vec![(".lokr_w1", t(&[4, 2])), (".lokr_w2", t(&[2, 3]))],
            "make 8 × 6, the model's weight is [6, 6]",
        ),
        (
            vec![(".lokr_w1", t(&[2, 2])), (".lokr_w2_a", t(&[3, 2])), (".lokr_w2_b", t(&[1, 3]))],
            "the rank is 2 in `.lokr_w2_a` and 1 in `.lokr_w2_b`",
        ),
        (lora(vec![(".hada_w1_a", t(&[6, 2]))]), "two algorithms on one module"),
        (lora(vec![(".diff", t(&[6, 6]))]), "two algorithms on one module"),
        (vec![(".dora_scale", t(&[6, 1]))], "stands alone, without factors"),
        (vec![(".alpha", number(1.0))], "stands alone, without factors"),
        (lora(vec![(".dora_scale", t(&[5, 1]))]), "the DoRA magnitude has shape [5, 1]"),
        (lora(vec![(".rescale", t(&[6, 1]))]), ".rescale` does not belong to LoRA"),
        (lora(vec![(".w_norm", t(&[6]))]), "two algorithms on one module"),
        (vec![(".w_norm", t(&[6]))], "are for normalisations"),
        (lora(vec![(".bias_values", t(&[2]))]), "`.bias_indices` is missing"),
        (lora(vec![(".diff_b", t(&[5]))]), "`.diff_b` has shape [5], expected [6]"),
        (lora(vec![(".alpha", number(f64::INFINITY))]), ".alpha` is inf"),
        (lora(vec![(".scale", number(-3.0))]), "alpha is -6 at rank 2"),
        (lora(vec![(".alpha", number(1e9))]), "alpha is 1000000000 at rank 2"),
        (vec![(".diff", t(&[6, 5]))], "`.diff` has shape [6, 5], the model's weight is [6, 6]"),
        (vec![(".diff", ids(&[6, 6]))], ".diff` is stored as I64, expected floats"),
        (vec![(".diff", t(&[1, 1, 1, 6, 6]))], "expected at most four dimensions"),
        (vec![(".oft_blocks", t(&[2, 3, 2]))], "are not [n, b, b] with n · b = 6"),
        (vec![(".oft_blocks", t(&[2, 2, 2]))], "are not [n, b, b] with n · b = 6"),
        (vec![(".oft_blocks", t(&[1, 2, 3, 3]))], "b even"),
        (vec![(".oft_diag", (t(&[2, 3, 3]) + 5.0)?)], "found a mean of"),
        (vec![(".oft_R.weight", t(&[2, 4]))], "expected [n, b · (b - 1) / 2]"),
        (vec![(".oft_blocks", t(&[2, 3, 3])), (".rescale", t(&[5]))], "`.rescale` has shape [5]"),
        (vec![(".a1.weight", t(&[6, 2])), (".b1.weight", t(&[6, 2]))], "`.a2.weight` is missing"),
        (
            vec![
                (".a1.weight", t(&[6, 2])),
                (".a2.weight", t(&[2, 6])),
                (".b1.weight", t(&[6, 3])),
                (".b2.weight", t(&[2, 6])),
            ],
            "share no rank in either layout",
        ),
        (vec![(".weight", t(&[5])), (".on_input", number(1.0))], "one for each of the inputs"),
        (vec![(".ia3_l", t(&[6]))], "may be for the inputs or the outputs"),
    ];
    for (tensors, expected) in cases {
        let outcome = load(&tensors, &[], &LoadOptions::default());
        let message = outcome.map(|_| ()).expect_err(expected).to_string();
        assert!(message.contains(expected) && message.contains(MODULE), "{expected:?} is not in: {message}");
    }
    Ok(())
}

#[test]
fn alphas_of_every_kind_are_read() -> Result<()> {
    let mut draw = Draw(400);
    let (down, up) = (draw.tensor(&[2, 6])?, draw.tensor(&[6, 2])?);
    let with = |more: Vec<(&'static str, Tensor)>| -> Result<Adapter> {
        let tensors = vec![(".lora_down.weight", down.clone()), (".lora_up.weight", up.clone())];
        load(&[tensors, more].concat(), &[], &LoadOptions::default())
    };
    let one = |dtype| -> Result<Tensor> { Ok(Tensor::new(1f64, &Device::Cpu)?.to_dtype(dtype)?) };
    let plain = with(vec![])?;
    let weight = |a: &Adapter| -> Result<Vec<f32>> { Ok(only(a).weight(&[6, 6])?.flatten_all()?.to_vec1()?) };
    let full: Vec<f32> = weight(&plain)?;
    for dtype in [DType::I64, DType::U8, DType::F16, DType::BF16, DType::F32, DType::F64] {
        for shape in [&[][..], &[1]] {
            let half = weight(&with(vec![(".alpha", one(dtype)?.reshape(shape)?)])?)?;
            let doubled: Vec<f32> = half.iter().map(|x| x * 2.0).collect();
            assert_eq!(doubled, full, "{dtype:?}");
        }
    }
    // A stored scale replaces alpha / r.
    let tripled = with(vec![(".alpha", one(DType::F32)?), (".scale", (one(DType::F32)? * 3.0)?)])?;
    assert!(difference(&weight(&tripled)?, &full.iter().map(|x| x * 3.0).collect::<Vec<_>>()) < 1e-6);
    let nothing = with(vec![(".alpha", (one(DType::F32)? * 0.0)?)])?;
    assert!(weight(&nothing)?.iter().all(|x| *x == 0.0));
    assert!(nothing.report.warnings[0].contains("alpha is 0"));
    Ok(())
}

#[test]
fn a_whole_lokr_warns_and_can_be_overridden() -> Result<()> {
    let mut draw = Draw(500);
    let tensors = [
        (".lokr_w1", draw.tensor(&[2, 2])?),
        (".lokr_w2", draw.tensor(&[3, 3])?),
        (".alpha", Tensor::new(1f32, &Device::Cpu)?),
    ];
    let metadata = [("ss_network_dim", "32")];
    let plain = load(&tensors, &metadata, &LoadOptions::default())?;
    assert!(plain.report.warnings[0].contains("the scale 0.03125 was meant"), "{:?}", plain.report.warnings);
    let options = LoadOptions { whole_lokr_scale: Some(1.0 / 32.0), ..LoadOptions::default() };
    let scaled = load(&tensors, &metadata, &options)?;
    assert!(scaled.report.warnings.is_empty());
    let weight = |a: &Adapter| -> Result<Vec<f32>> { Ok(only(a).weight(&[6, 6])?.flatten_all()?.to_vec1()?) };
    let expected: Vec<f32> = weight(&plain)?.iter().map(|x| x / 32.0).collect();
    assert_eq!(weight(&scaled)?, expected);
    Ok(())
}

#[test]
fn pefts_config_decides_what_the_tensors_leave_open() -> Result<()> {
    let mut draw = Draw(600);
    let config = |fields: &str| format!("{{{fields}}}");
    let read = |tensors: &[(&str, Tensor)], fields: &str| -> Result<Adapter> {
        load(tensors, &[("lora_adapter_metadata", &config(fields))], &LoadOptions::default())
    };
    let skew = [(".oft_R.weight", draw.tensor(&[3, 1])?)];
    for (fields, series) in [
        (r#""unet.use_cayley_neumann": false"#, OftSeries::Exact),
        (r#""unet.num_cayley_neumann_terms": 7"#, OftSeries::Neumann(7)),
    ] {
        let adapter = read(&skew, fields)?;
        assert!(matches!(only(&adapter), Delta::OftV2(oft) if oft.series == series), "{fields}");
    }
    let factors = [(".ia3_l", draw.tensor(&[6])?)];
    let adapter = read(&factors, r#""unet.feedforward_modules": ["to_q"]"#)?;
    assert!(matches!(only(&adapter), Delta::Ia3(ia3) if ia3.on_input));
    let whole = [(".lokr_w1", draw.tensor(&[2, 2])?), (".lokr_w2", draw.tensor(&[3, 3])?)];
    let adapter = read(&whole, r#""unet.alpha": 4, "unet.r": 16"#)?;
    assert!(matches!(only(&adapter), Delta::LoKr(lokr) if lokr.scale() == 0.25));
    let lora = [(".lora_A.weight", draw.tensor(&[4, 6])?), (".lora_B.weight", draw.tensor(&[6, 4])?)];
    let adapter = read(&lora, r#""unet.lora_alpha": 3, "unet.r": 4, "unet.use_rslora": true"#)?;
    assert!(matches!(only(&adapter), Delta::LowRank(l) if l.scale() == 1.5));
    Ok(())
}
