//! What is written beside the weights: configs, and how the model was made.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::{
    adapter::{Blend, Lineage, merge},
    error::{Error, Result},
    files,
    weights::{Checkpoint, Family, detect::PredictionHint, tree::Tree},
};

/// Everything of a diffusers model that is no weight. Components this program does not read are not taken along, and the
/// index says they are absent.
pub(super) fn copy_configs(tree: &Tree, family: Family, to: &Path) -> Result<()> {
    let mut index = tree.json("model_index.json")?.unwrap_or_default();
    let mut folders: Vec<String> = family.components().iter().map(|c| c.name().to_string()).collect();
    folders.extend(["tokenizer", "tokenizer_2", "scheduler", "feature_extractor"].map(String::from));
    if let Value::Object(entries) = &mut index {
        for (name, value) in entries {
            if value.is_array() && !folders.contains(name) {
                *value = json!([null, null]);
            }
        }
    }
    let text = serde_json::to_string_pretty(&index).map_err(|e| Error::invalid(e.to_string()))?;
    files::write_bytes(to.join("model_index.json"), text.as_bytes())?;
    for folder in folders {
        for name in tree.list(&folder) {
            let weights = [".safetensors", ".bin", ".index.json", ".msgpack", ".onnx", ".h5"];
            if weights.iter().any(|ending| name.ends_with(ending)) {
                continue;
            }
            if let Some(bytes) = tree.read(&format!("{folder}/{name}"))? {
                files::write_bytes(to.join(&folder).join(&name), &bytes)?;
            }
        }
    }
    Ok(())
}

/// The files of a folder for a base that brings none.
pub(super) fn write_configs(configs: &[(String, String)], to: &Path) -> Result<()> {
    if configs.is_empty() {
        return Err(Error::invalid("a single-file model has no configs to make a diffusers folder of"));
    }
    configs.iter().try_for_each(|(path, text)| files::write_bytes(to.join(path), text.as_bytes()))
}

/// How the file was made, so that it can be made again.
pub(super) fn recipe(metadata: &mut BTreeMap<String, String>, base: &Checkpoint, blend: &Blend) {
    // Of the weights before.
    for stale in ["modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"] {
        metadata.remove(stale);
    }
    let base = base.name();
    let from: Vec<String> =
        std::iter::once(base.clone()).chain(blend.entries.iter().map(|e| e.name.clone())).collect();
    metadata.insert(
        "scumble_bake".into(),
        json!({ "base": base, "adapters": merge::ingredients(blend) }).to_string(),
    );
    metadata.insert("modelspec.merged_from".into(), from.join(", "));
}

pub(super) fn is_v(hint: &PredictionHint) -> bool {
    hint.prediction_type.as_deref() == Some("v_prediction")
}

/// What a single file without configs must say of itself. <https://github.com/Stability-AI/ModelSpec>
pub(super) fn model_spec(family: Family, hint: &PredictionHint) -> BTreeMap<String, String> {
    let v = is_v(hint);
    let architecture = Lineage::from(family).labels(v).architecture;
    let entries = [
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.architecture", architecture),
        ("modelspec.prediction_type", if v { "v" } else { "epsilon" }),
    ];
    entries.into_iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}
