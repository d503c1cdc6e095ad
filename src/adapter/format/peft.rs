//! diffusers' spelling: the component's name, the dotted path, PEFT's `lora_A` and `lora_B`; ranks and alphas in a
//! metadata entry of PEFT's `LoraConfig` fields.

use serde_json::{Map, Value};

use super::prefix::Component;
use crate::{
    adapter::Metadata,
    error::{Error, Result},
    nn::{LayerPath, Part},
};

/// The metadata entry that holds the configs.
pub const CONFIG_KEY: &str = "lora_adapter_metadata";

/// The component's name, before its layers'.
pub(super) fn component(part: Part) -> &'static str {
    part.name()
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
        let Value::Object(fields) = value else {
            return Err(Error::invalid(format!("metadata `{CONFIG_KEY}` must be an object, found {value}")));
        };
        for (field, patterns) in &fields {
            let patterns = patterns.as_object().filter(|_| field.ends_with("_pattern"));
            if let Some(pattern) = patterns.and_then(|p| p.keys().find(|key| is_foreign(key))) {
                let message =
                    format!("`{field}` has the regular expression `{pattern}`, expected a layer's name");
                return Err(
                    Error::invalid(message).with_hint("replace it by the names of the layers it means")
                );
            }
        }
        Ok(Self(fields))
    }

    /// alpha on a layer, such that the scale is alpha / rank also under rsLoRA (alpha / √rank).
    pub fn alpha(&self, path: &LayerPath, rank: usize) -> Option<f64> {
        self.alpha_where(path.part, rank, |key| fits(key, &path.name, '.'))
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
        self.alpha_where(part, rank, |key| fits(key, flat, '_'))
    }

    /// alpha / r, for algorithms whose tensors do not tell r.
    pub fn scale(&self, path: &LayerPath) -> Option<f64> {
        let pattern = self.setting(path.part, "rank_pattern").and_then(Value::as_object);
        let rank = pattern
            .and_then(|pattern| pattern.iter().find(|(key, _)| fits(key, &path.name, '.')))
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
        Some(modules.iter().filter_map(Value::as_str).any(|module| fits(module, &path.name, '.')))
    }

    /// Adapters with DoRA have magnitudes as tensors too; this only tells the file said so.
    pub fn mentions(&self, part: Part) -> bool {
        let prefix = format!("{}.", component(part));
        self.0.keys().any(|k| k.starts_with(&prefix))
    }
}

/// PEFT's rule, `(.*\.)?(pattern)$` as a regular expression, for the patterns that are written: names, which diffusers
/// anchors with `^`, and `.*` between parts of them.
fn fits(pattern: &str, name: &str, separator: char) -> bool {
    let inner = pattern.trim_start_matches('^').trim_end_matches('$').as_bytes();
    if pattern.starts_with('^') {
        return matches(inner, name.as_bytes());
    }
    let starts = name.match_indices(separator).map(|(at, _)| at + separator.len_utf8());
    std::iter::once(0).chain(starts).any(|at| matches(inner, &name.as_bytes()[at..]))
}

/// `.` stands for any character, as in a regular expression. Only the last `.*` is ever tried again, which suffices, so
/// that no pattern takes longer than the product of both lengths.
fn matches(mut pattern: &[u8], mut name: &[u8]) -> bool {
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern, name) {
            ([b'.', b'*', rest @ ..], _) => {
                again = Some((rest, name));
                pattern = rest;
            }
            ([], []) => return true,
            ([b'\\', b'.', rest @ ..] | [b'.', rest @ ..], [_, after @ ..]) => {
                (pattern, name) = (rest, after);
            }
            ([a, rest @ ..], [b, after @ ..]) if a == b => (pattern, name) = (rest, after),
            _ => match again {
                Some((rest, [_, after @ ..])) => {
                    again = Some((rest, after));
                    (pattern, name) = (rest, after);
                }
                _ => return false,
            },
        }
    }
}

/// True for patterns [`fits`] does not understand, or would take long for.
fn is_foreign(pattern: &str) -> bool {
    const REGEX: &[char] = &['*', '+', '?', '^', '$', '(', ')', '[', ']', '{', '}', '|', '\\'];
    let inner = pattern.trim_start_matches('^').trim_end_matches('$');
    inner.matches(".*").count() > 3 || inner.replace(".*", "").replace("\\.", "").contains(REGEX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_peft_makes_of_them() {
        let name = "down_blocks.1.attentions.0.attn2.to_k";
        for (pattern, fits_it) in [
            ("to_k", true),
            ("attn2.to_k", true),
            ("2.to_k", false),
            ("o_k", false),
            ("^down_blocks.1.attentions.0.attn2.to_k", true),
            ("^attn2.to_k", false),
            ("down_blocks.*to_k$", true),
            (".*attn2\\.to_k", true),
            ("down_blocks.*to_q", false),
        ] {
            assert_eq!(fits(pattern, name, '.'), fits_it, "{pattern}");
            assert!(!is_foreign(pattern), "{pattern}");
        }
        assert!(fits("attn2.to_k", "down_blocks_1_attn2_to_k", '_'));
        assert!(is_foreign("(to_k|to_v)") && is_foreign(".*.*.*.*") && is_foreign("to_[qk]"));
    }
}
