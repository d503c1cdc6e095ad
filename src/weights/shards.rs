//! `*.safetensors.index.json`: one component's weights over several files.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    reader::SafetensorsStore,
    store::Store as _,
    tree::{self, Tree},
};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: IndexMetadata,
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
struct IndexMetadata {
    /// Some writers store it as a float.
    total_size: Option<f64>,
}

/// Opens all shards of `folder/index`.
///
/// # Errors
/// If the index names a file elsewhere, a shard is missing, a tensor is not where the index says, is in two shards or in
/// none, or the sizes do not add up.
pub fn open(tree: &Tree, folder: &str, index: &str) -> Result<SafetensorsStore> {
    let relative = format!("{folder}/{index}");
    let path = tree.path_of(&relative);
    let text = tree.read(&relative)?.ok_or_else(|| Error::file(&path, "is missing"))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::file(&path, format!("is not an index of safetensors files: {e}")))?;

    let shards: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let mut files = Vec::new();
    for shard in &shards {
        if !tree::is_bare_name(shard) || !shard.ends_with(".safetensors") {
            let message =
                format!("names the shard {shard:?}, expected a `.safetensors` file beside the index");
            return Err(Error::file(path, message));
        }
        let relative = format!("{folder}/{shard}");
        if !tree.has(&relative) {
            return Err(Error::file(tree.path_of(&relative), "is missing, and the index names it")
                .with_hint("the download was interrupted; get it again"));
        }
        files.push(tree.safetensors(&relative)?);
    }
    let store = SafetensorsStore::new(files, tree.path_of(folder).display().to_string())?;
    check(&store, &index).map_err(|message| Error::file(path, message))?;
    Ok(store)
}

fn check(store: &SafetensorsStore, index: &Index) -> Result<(), String> {
    for (name, shard) in &index.weight_map {
        let found = store.file_of(name).map(|f| f.path().file_name().unwrap_or_default());
        if found.is_none_or(|f| f != shard.as_str()) {
            return Err(format!("tensor `{name}` is not in `{shard}`, where the index puts it"));
        }
    }
    if let Some(name) = store.names().iter().find(|n| !index.weight_map.contains_key(*n)) {
        return Err(format!("tensor `{name}` is in a shard but not in the index"));
    }
    let bytes: usize = store.files().iter().map(|f| f.data().len()).sum();
    match index.metadata.total_size {
        Some(total) if total != bytes as f64 => {
            Err(format!("says the tensors have {total} bytes in total, found {bytes}"))
        }
        _ => Ok(()),
    }
}
