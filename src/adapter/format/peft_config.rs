//! What PEFT writes beside a component's parameters: its `adapter_config.json`, one for all layers.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::peft_write::{IA3, LOHA, LOKR, LORA, Layer, kind};
use crate::{
    adapter::{
        Delta,
        delta::{LoKr, OftSeries},
    },
    error::{Error, Result},
    nn::Part,
};

/// One component's config, as PEFT's `adapter_config.json` has it.
///
/// # Errors
/// If its layers need more than one config.
pub(super) fn config(layers: &[Layer<'_>]) -> Result<Map<String, Value>> {
    let kinds = one(layers, "algorithms", |l| Ok(kind(l.delta)?.to_string()))?;
    let mut config = Map::new();
    let names: Vec<&str> = layers.iter().map(Layer::peft_name).collect();
    config.insert("peft_type".into(), json!(kinds));
    config.insert("target_modules".into(), json!(names));
    match kinds.as_str() {
        LORA => {
            ranks(&mut config, layers, "lora_alpha");
            let dora = |l: &Layer<'_>| Ok(matches!(l.delta, Delta::Dora(_)));
            if one(layers, "layers with and without DoRA", dora)? {
                config.insert("use_dora".into(), json!(true));
            }
            let biased = |l: &Layer<'_>| Ok(l.delta.changes_bias());
            if one(layers, "layers with and without a bias", biased)? {
                config.insert("lora_bias".into(), json!(true));
            }
        }
        LOHA | LOKR => {
            ranks(&mut config, layers, "alpha");
            let tucker = layers.iter().any(|l| l.delta.algorithm().contains("Tucker"));
            config.insert("use_effective_conv2d".into(), json!(tucker));
            if kinds == LOKR {
                kronecker(&mut config, layers)?;
            }
        }
        IA3 => {
            let on_input = |l: &&Layer<'_>| matches!(l.delta, Delta::Ia3(ia3) if ia3.on_input);
            let inputs: Vec<&str> = layers.iter().filter(on_input).map(Layer::peft_name).collect();
            config.insert("feedforward_modules".into(), json!(inputs));
        }
        _ => rotations(&mut config, layers)?,
    }
    Ok(config)
}

/// What all layers agree on.
fn one<T: PartialEq>(layers: &[Layer<'_>], what: &str, of: impl Fn(&Layer<'_>) -> Result<T>) -> Result<T> {
    let mut found: Option<(T, &Layer<'_>)> = None;
    for layer in layers {
        let value = of(layer).map_err(|e| e.context(layer.path.to_string()))?;
        match &found {
            Some((first, other)) if *first != value => {
                return Err(Error::invalid(format!(
                    "PEFT has one config for a component, so it cannot hold {what}: {} ({}) and {} ({})",
                    other.path,
                    other.delta.algorithm(),
                    layer.path,
                    layer.delta.algorithm()
                )));
            }
            Some(_) => {}
            None => found = Some((value, layer)),
        }
    }
    found.map(|(value, _)| value).ok_or_else(|| Error::invalid("a component without layers"))
}

/// The commonest rank and alpha, and where layers differ from them.
fn ranks(config: &mut Map<String, Value>, layers: &[Layer<'_>], alpha_name: &str) {
    let of = |l: &Layer<'_>| -> (f64, f64) {
        // Two whole Kronecker factors: a rank so large that PEFT stores them whole, too.
        let rank = l.delta.rank().unwrap_or_else(|| l.shape.iter().product()) as f64;
        let scale = match l.delta {
            Delta::LoKr(LoKr { whole_scale: Some(scale), .. }) if l.delta.rank().is_none() => *scale,
            _ => 1.0,
        };
        let alpha = l.delta.alpha().filter(|_| l.delta.rank().is_some());
        (rank, alpha.unwrap_or(rank * scale))
    };
    let (rank, alpha) =
        (commonest(layers.iter().map(|l| of(l).0)), commonest(layers.iter().map(|l| of(l).1)));
    let pattern = |of: &dyn Fn(&Layer<'_>) -> f64, common: f64| -> Value {
        let others = layers.iter().filter(|l| of(l) != common);
        others.map(|l| (l.peft_name().to_string(), number(of(l)))).collect()
    };
    config.insert("alpha_pattern".into(), pattern(&|l| of(l).1, alpha));
    config.insert(alpha_name.into(), number(alpha));
    config.insert("r".into(), number(rank));
    config.insert("rank_pattern".into(), pattern(&|l| of(l).0, rank));
}

/// How PEFT shall split the layers' sizes into Kronecker factors: by one number for all, from which it works out each
/// layer's factors and whether they are stored whole.
fn kronecker(config: &mut Map<String, Value>, layers: &[Layer<'_>]) -> Result<()> {
    let firsts: Vec<(&Layer<'_>, First)> =
        layers.iter().filter_map(|l| Some((l, First::of(l.delta)?))).collect();
    let both = firsts.iter().any(|(_, first)| !first.is_whole);
    let fits = |factor: usize| firsts.iter().find(|(layer, first)| !first.fits(layer, factor, both));
    let mut factors: Vec<usize> = firsts.iter().map(|(_, f)| f.outputs.max(f.inputs)).collect();
    factors.sort_unstable();
    factors.dedup();
    let Some(factor) = factors.iter().rev().find(|factor| fits(**factor).is_none()) else {
        let odd = factors.last().and_then(|factor| fits(*factor));
        let odd = odd.map(|(layer, _)| layer.path.to_string()).unwrap_or_default();
        return Err(Error::invalid(format!(
            "{odd}: PEFT splits all layers of a LoKr by one rule, which this one was not split by"
        )));
    };
    config.insert("decompose_factor".into(), json!(factor));
    config.insert("decompose_both".into(), json!(both));
    Ok(())
}

/// The first Kronecker factor's size, and how both are stored.
struct First {
    outputs: usize,
    inputs: usize,
    is_whole: bool,
    second_is_whole: bool,
    rank: Option<usize>,
}

impl First {
    fn of(delta: &Delta) -> Option<Self> {
        let stored = delta.tensors().ok()?;
        let dims = |name: &str| stored.iter().find(|(suffix, _)| *suffix == name).map(|(_, t)| t.dims());
        let (is_whole, second_is_whole) = (dims(".lokr_w1").is_some(), dims(".lokr_w2").is_some());
        let outputs = *dims(".lokr_w1").or_else(|| dims(".lokr_w1_a"))?.first()?;
        let inputs = *dims(".lokr_w1").or_else(|| dims(".lokr_w1_b"))?.get(1)?;
        Some(Self { outputs, inputs, is_whole, second_is_whole, rank: delta.rank() })
    }

    /// True if PEFT makes factors of just this kind at that setting.
    fn fits(&self, layer: &Layer<'_>, factor: usize, both: bool) -> bool {
        let (outputs, inputs) = (split(layer.shape[0], factor), split(layer.shape[1], factor));
        let small = |size: usize| self.rank.is_some_and(|rank| 2 * rank < size);
        (outputs.0, inputs.0) == (self.outputs, self.inputs)
            && self.is_whole != (both && small(self.outputs.max(self.inputs)))
            && self.second_is_whole != small(outputs.1.max(inputs.1))
    }
}

/// A size as a product of two, the first no larger than about `factor`.
fn split(size: usize, factor: usize) -> (usize, usize) {
    if factor > 0 && size.is_multiple_of(factor) {
        return (factor, size / factor);
    }
    let (mut m, mut n) = (1, size);
    while m < n {
        let Some(next) = (m + 1..=size).find(|m| size.is_multiple_of(*m)) else { break };
        if next + size / next > 1 + size || next > factor {
            break;
        }
        (m, n) = (next, size / next);
    }
    (m.min(n), m.max(n))
}

fn rotations(config: &mut Map<String, Value>, layers: &[Layer<'_>]) -> Result<()> {
    let oft = |l: &Layer<'_>| match l.delta {
        Delta::OftV2(oft) => Ok(oft.clone()),
        other => kind(other).and_then(|_| Err(Error::invalid("not an OFT"))),
    };
    let series = one(layers, "two ways to make rotations", |l| Ok(oft(l)?.series))?;
    let stored = one(layers, "rotations of two sizes", |l| Ok(oft(l)?.skew.dims().get(1).copied()))?;
    let limit = one(layers, "two limits", |l| Ok(oft(l)?.block_limit))?;
    let shared = one(layers, "shared and single rotations", |l| {
        let width: usize = l.shape[1..].iter().product();
        Ok(oft(l)?.skew.dims()[0] == 1 && width * (width - 1) / 2 != stored.unwrap_or(0))
    })?;
    // b (b - 1) / 2 values are stored.
    let block = (1.0 + (1.0 + 8.0 * stored.unwrap_or(0) as f64).sqrt()) / 2.0;
    let mut set = |name: &str, value: Value| config.insert(name.into(), value);
    set("r", json!(0));
    set("oft_block_size", number(block.round()));
    set("block_share", json!(shared));
    set("use_cayley_neumann", json!(series != OftSeries::Exact));
    if let OftSeries::Neumann(terms) = series {
        set("num_cayley_neumann_terms", json!(terms));
    }
    if let Some(limit) = limit {
        set("coft", json!(true));
        set("eps", json!(limit));
    }
    Ok(())
}

/// The class PEFT notes for a component.
pub(super) fn base_model(part: Part) -> Value {
    let (class, library) = match part {
        Part::Unet => ("UNet2DConditionModel", "diffusers.models.unets.unet_2d_condition"),
        Part::TextEncoder => ("CLIPTextModel", "transformers.models.clip.modeling_clip"),
        Part::TextEncoder2 => ("CLIPTextModelWithProjection", "transformers.models.clip.modeling_clip"),
    };
    json!({ "base_model_class": class, "parent_library": library })
}

/// Whole numbers as JSON integers: PEFT wants its rank so.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

fn commonest(values: impl Iterator<Item = f64>) -> f64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value.to_bits()).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(0.0, |(bits, _)| f64::from_bits(bits))
}
