//! `scumble inspect`: what an adapter's file holds, from its header and its factors, without loading a model.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde_json::json;

use super::Context;
use crate::{adapter::metadata::FileHashes, error::Result, weights::reader::SafetensorsFile};

/// Options of `inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The adapter's file
    pub file: PathBuf,
    /// Also list every tensor
    #[arg(long)]
    pub keys: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<()> {
    let console = &context.console;
    let file = SafetensorsFile::open(&args.file)?;
    let hashes = FileHashes::of(&file);
    let names: Vec<&str> = file.names().collect();
    let layers: BTreeSet<&str> = names.iter().filter_map(|n| Some(n.split_once('.')?.0)).collect();
    if console.is_json() {
        let line = json!({
            "path": args.file, "bytes": file.file_bytes().len(), "auto_v2": hashes.auto_v2,
            "auto_v3": hashes.auto_v3, "tensors": names, "metadata": file.metadata(),
        });
        console.data(&line.to_string());
        return Ok(());
    }
    console.data(&args.file.display().to_string());
    console.data(&format!("  size     {:.2} MB", file.file_bytes().len() as f64 / 1e6));
    console.data(&format!("  hash     {} (file), {} (weights)", hashes.auto_v2, hashes.auto_v3));
    console.data(&format!("  tensors  {}", names.len()));
    console.data(&format!("  layers   {}", layers.len()));
    for (what, key) in [
        ("name", "ss_output_name"),
        ("base", "ss_base_model_version"),
        ("trained", "ss_sd_model_name"),
        ("module", "ss_network_module"),
        ("rank", "ss_network_dim"),
        ("alpha", "ss_network_alpha"),
        ("steps", "ss_steps"),
        ("pictures", "ss_num_train_images"),
        ("size", "ss_resolution"),
        ("seed", "ss_seed"),
    ] {
        if let Some(value) = file.metadata().get(key) {
            console.data(&format!("  {what:<8} {value}"));
        }
    }
    let tags = tags(file.metadata());
    if !tags.is_empty() {
        console.data(&format!("  tags     {}", tags.join(", ")));
    }
    if args.keys {
        names.iter().for_each(|name| console.data(&format!("  {name}")));
    }
    Ok(())
}

/// The ten tags most used in training: where trigger words are found.
fn tags(metadata: &BTreeMap<String, String>) -> Vec<String> {
    let text = metadata.get("ss_tag_frequency").map(String::as_str).unwrap_or_default();
    let folders: BTreeMap<String, BTreeMap<String, u64>> = serde_json::from_str(text).unwrap_or_default();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (tag, count) in folders.into_values().flatten() {
        *counts.entry(tag.trim().to_owned()).or_default() += count;
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    counts.into_iter().take(10).map(|(tag, count)| format!("{tag} ({count})")).collect()
}
