//! diffusers' spelling: the component's name, the dotted path, PEFT's `lora_A` and `lora_B`; ranks and alphas in a
//! metadata entry of PEFT's `LoraConfig` fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::prefix::Component;
use crate::{
    adapter::{Adapter, Metadata},
    error::{Error, Result},
    nn::{LayerPath, Part},
};

/// The metadata entry that holds the configs.
pub const CONFIG_KEY: &str = "lora_adapter_metadata";

/// The parameter names, in the order down, up.
pub(super) const PARAMS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];

/// The module's name in a file.
pub fn module_name(path: &LayerPath) -> String {
    path.to_string()
}

fn component(part: Part) -> String {
    let root = LayerPath::root(part).to_string();
    root.trim_end_matches('.').to_string()
}

/// The ranks and alphas a diffusers file states beside its tensors.
#[derive(Debug, Default)]
pub struct Config(Map<String, Value>);

impl Config {
    /// Reads the metadata entry; files without one have scale 1 everywhere.
    ///
    /// # Errors
    /// If there is one and it is not a JSON object.
    pub fn of(metadata: &Metadata) -> Result<Self> {
        let Some(text) = metadata.get(CONFIG_KEY) else { return Ok(Self::default()) };
        let value: Value = serde_json::from_str(text)
            .map_err(|e| Error::invalid(format!("metadata `{CONFIG_KEY}` is not JSON: {e}")))?;
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(Error::invalid(format!("metadata `{CONFIG_KEY}` must be an object, found {other}"))),
        }
    }

    /// alpha on a layer, such that the scale is alpha / rank also under rsLoRA (alpha / √rank).
    pub fn alpha(&self, path: &LayerPath, rank: usize) -> Option<f64> {
        self.alpha_where(path.part, rank, |key| ends_at(&path.name, key, '.'))
    }

    fn alpha_where(&self, part: Part, rank: usize, is_meant: impl Fn(&str) -> bool) -> Option<f64> {
        let prefix = component(part);
        let field = |name: &str| self.0.get(&format!("{prefix}.{name}"));
        let pattern = field("alpha_pattern").and_then(Value::as_object);
        let alpha = pattern
            .and_then(|pattern| pattern.iter().find(|(key, _)| is_meant(key)))
            .map(|(_, alpha)| alpha)
            .or_else(|| field("lora_alpha"))
            .or_else(|| field("alpha")) // LoHa, LoKr
            .and_then(Value::as_f64)?;
        let rank_stabilised = field("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        Some(if rank_stabilised { alpha * (rank as f64).sqrt() } else { alpha })
    }

    /// [`Config::alpha`] for a layer of which only the flat name is known.
    pub fn alpha_of_flat(&self, component: Component, flat: &str, rank: usize) -> Option<f64> {
        let part = match component {
            Component::TextEncoder | Component::OnlyTextEncoder => Part::TextEncoder,
            Component::TextEncoder2 => Part::TextEncoder2,
            Component::Unet | Component::Unsaid => Part::Unet,
        };
        self.alpha_where(part, rank, |key| ends_at(flat, &key.replace('.', "_"), '_'))
    }

    /// alpha / r, for algorithms whose tensors do not tell r.
    pub fn scale(&self, path: &LayerPath) -> Option<f64> {
        let pattern = self.setting(path.part, "rank_pattern").and_then(Value::as_object);
        let rank = pattern
            .and_then(|pattern| pattern.iter().find(|(key, _)| ends_at(&path.name, key, '.')))
            .map(|(_, rank)| rank)
            .or_else(|| self.setting(path.part, "r"))
            .and_then(Value::as_u64)
            .filter(|rank| *rank > 0)?;
        Some(self.alpha(path, rank as usize)? / rank as f64)
    }

    /// A field of a component's config.
    pub fn setting(&self, part: Part, name: &str) -> Option<&Value> {
        self.0.get(&format!("{}.{name}", component(part)))
    }

    /// True if a field that lists modules names this layer; `None` without such a field.
    pub fn lists(&self, path: &LayerPath, name: &str) -> Option<bool> {
        let modules = self.setting(path.part, name)?.as_array()?;
        Some(modules.iter().filter_map(Value::as_str).any(|module| ends_at(&path.name, module, '.')))
    }

    /// Adapters with DoRA have magnitudes as tensors too; this only tells the file said so.
    pub fn mentions(&self, part: Part) -> bool {
        let prefix = format!("{}.", component(part));
        self.0.keys().any(|k| k.starts_with(&prefix))
    }
}

/// PEFT's pattern rule, `(.*\.)?key$`, for keys that are plain names.
fn ends_at(name: &str, key: &str, separator: char) -> bool {
    name.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with(separator))
}

/// The metadata entry for an adapter: what diffusers passes to PEFT's `LoraConfig`.
pub fn config_text(adapter: &Adapter) -> String {
    let mut configs = Map::new();
    for part in [Part::Unet, Part::TextEncoder, Part::TextEncoder2] {
        let layers: Vec<(&str, usize, f64)> = adapter
            .layers
            .iter()
            .filter(|(path, _)| path.part == part)
            .filter_map(|(path, delta)| {
                let rank = delta.rank()?;
                Some((path.name.as_str(), rank, delta.alpha().unwrap_or(rank as f64)))
            })
            .collect();
        if layers.is_empty() {
            continue;
        }
        let rank = commonest(layers.iter().map(|(_, r, _)| *r as f64));
        let alpha = commonest(layers.iter().map(|(_, _, a)| *a));
        let pattern = |other: &dyn Fn(&(&str, usize, f64)) -> f64, common: f64| -> Value {
            layers
                .iter()
                .filter(|l| other(l) != common)
                .map(|l| (l.0.to_string(), number(other(l))))
                .collect()
        };
        let targets: Vec<&str> = layers.iter().map(|(name, ..)| *name).collect();
        let prefix = component(part);
        for (name, value) in [
            ("alpha_pattern", pattern(&|l| l.2, alpha)),
            ("lora_alpha", number(alpha)),
            ("peft_type", json!("LORA")),
            ("r", number(rank)),
            ("rank_pattern", pattern(&|l| l.1 as f64, rank)),
            ("target_modules", json!(targets)),
        ] {
            configs.insert(format!("{prefix}.{name}"), value);
        }
    }
    Value::Object(configs).to_string()
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
