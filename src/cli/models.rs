//! `scumble models`.

use serde_json::json;

use super::Context;
use crate::{
    error::Result,
    weights::{cache::HubCache, source::ALIASES},
};

/// Options of `models`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> Result<()> {
    let console = &context.console;
    let cache = HubCache::from_env();
    let cached = cache.list()?;
    if console.is_json() {
        console.data(&json!({ "model": "mini", "where": "built in" }).to_string());
        for model in cached {
            let line = json!({
                "model": model.id, "where": "cached", "bytes": model.size_bytes, "partial": model.partial,
            });
            console.data(&line.to_string());
        }
        return Ok(());
    }
    console.data("built in");
    console.data("  mini   128x128 px, draws icons of everyday things; for trying things out");
    console.data("");
    console.data(&format!("cached in {}", cache.root().display()));
    if cached.is_empty() {
        console.data("  nothing yet");
    }
    for model in cached {
        let partial = if model.partial { "  (download not finished)" } else { "" };
        console.data(&format!("  {:<52} {:>8.2} GB{partial}", model.id, model.size_bytes as f64 / 1e9));
    }
    console.data("");
    console.data("to get more, name one with --model; it is downloaded once");
    for (alias, id) in ALIASES {
        console.data(&format!("  --model {alias:<24} {id}"));
    }
    console
        .data("  --model owner/name[@revision]    Stable Diffusion 1.x, 2.x or SDXL on the Hugging Face hub");
    console.data("  --model file.safetensors         a single-file checkpoint");
    console.data("  --model folder/                  a model in diffusers' layout");
    Ok(())
}
