//! `scumble models`.

use serde_json::json;

use super::Context;
use crate::{
    error::Result,
    weights::{
        cache::HubCache,
        installed::{Installed, installed, suggestions},
    },
};

/// Options of `models`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> Result<()> {
    let console = &context.console;
    let cache = HubCache::from_env();
    let models = installed(&cache)?;
    if console.is_json() {
        for model in &models {
            let line = json!({
                "model": model.name, "family": model.family.map(|f| f.to_string()),
                "bytes": model.size_bytes, "folder": model.folder, "partial": model.partial,
            });
            console.data(&line.to_string());
        }
        return Ok(());
    }
    console.data("models on this machine");
    for model in &models {
        console.data(&line(model));
    }
    console.data(&format!("downloads are kept in {}", cache.root().display()));
    console.data("");
    console.data("to get more, name one with --model; it is downloaded once");
    for model in suggestions(&models) {
        console.data(&format!("  --model {:<24} {}", model.name, model.id));
    }
    console
        .data("  --model owner/name[@revision]    Stable Diffusion 1.x, 2.x or SDXL on the Hugging Face hub");
    console.data("  --model file.safetensors         a single-file checkpoint");
    console.data("  --model folder/                  a model in diffusers' layout");
    Ok(())
}

fn line(model: &Installed) -> String {
    let family = model.family.map(|f| f.to_string()).unwrap_or_default();
    let place = if model.folder.is_none() { "built in" } else { "" };
    let partial = if model.partial { "download not finished" } else { "" };
    let size = model.size_bytes as f64 / 1e6;
    format!("  {:<50} {family:<8} {size:>9.1} MB  {place}{partial}", model.name).trim_end().to_owned()
}
