//! What a merged file says of itself.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::MergeOptions;
use crate::adapter::{Adapter, Blend, BlendEntry, Metadata};

/// Entries that say for which model an adapter is; merged adapters are for the same.
const MODEL: &[&str] = &[
    "ss_v2",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_new_sd_model_hash",
    "ss_resolution",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.resolution",
    "modelspec.prediction_type",
];

/// The recipe, the model, and all trigger words and tags.
pub(super) fn metadata(blend: &Blend, options: &MergeOptions) -> Metadata {
    let mut metadata = Metadata::default();
    let of = |key: &'static str| {
        blend.entries.iter().filter_map(move |e| e.adapter.metadata.get(key).map(String::from))
    };
    for key in MODEL {
        if let Some(value) = of(key).next() {
            metadata.set(key, value);
        }
    }
    let names: Vec<String> = blend.entries.iter().map(|e| format!("{}:{}", e.name, e.strength)).collect();
    metadata.set("ss_training_comment", format!("merged ({}): {}", options.method, names.join(" + ")));
    metadata.set(
        "scumble_merge",
        json!({ "method": options.method.to_string(), "density": options.density,
        "seed": options.seed, "rank": options.rank, "adapters": ingredients(blend) }),
    );
    if metadata.get("modelspec.sai_model_spec").is_some() {
        metadata.set("modelspec.title", names.join(" + "));
        metadata.set("modelspec.merged_from", names.join(", "));
    }
    let mut phrases: Vec<String> = of("modelspec.trigger_phrase").collect();
    phrases.dedup();
    if !phrases.is_empty() {
        metadata.set("modelspec.trigger_phrase", phrases.join(", "));
    }
    let mut tags: BTreeMap<String, Value> = BTreeMap::new();
    for text in of("ss_tag_frequency") {
        tags.extend(serde_json::from_str::<BTreeMap<String, Value>>(&text).unwrap_or_default());
    }
    if !tags.is_empty() {
        metadata.set("ss_tag_frequency", json!(tags));
    }
    metadata
}

/// What a blend is made of, for a recipe.
pub(crate) fn ingredients(blend: &Blend) -> Vec<Value> {
    let ingredient = |e: &BlendEntry| {
        let hash = e.adapter.metadata.get("sshs_model_hash");
        json!({ "name": e.name, "weight": e.strength.to_string(), "sshs_model_hash": hash })
    };
    blend.entries.iter().map(ingredient).collect()
}

/// Says again what rank and alpha the layers have.
pub(crate) fn record_ranks(adapter: &mut Adapter) {
    let mut metadata = std::mem::take(&mut adapter.metadata);
    for key in ["ss_network_dim", "ss_network_alpha"] {
        metadata.0.remove(key);
    }
    metadata.fill_kohya(adapter, None);
    adapter.metadata = metadata;
}
