//! `scumble check-blend`: how much a blend changes each block, which adapters add up, before anything is drawn.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{
    Context, heat_map,
    loras::{self, BlendArgs},
    setup,
};
use crate::{
    adapter::guard::{BlendReport, LIMIT, Warning},
    error::{Error, Result},
    pipeline::{infotext::LoraUse, sheet},
};

/// Options of `check-blend`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A prompt whose <lora:…> tags are part of the blend
    pub prompt: Option<String>,
    /// mini, sd15, sdxl, a hub id, a diffusers folder, or a .safetensors file
    #[arg(long, short, default_value = "mini")]
    pub model: String,
    #[command(flatten)]
    pub blending: BlendArgs,
    /// Draw the table as a picture
    #[arg(long, value_name = "FILE.png")]
    pub heat_map: Option<PathBuf>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let named = args.prompt.as_deref().map(LoraUse::extract).transpose()?;
    let wanted = args.blending.wanted(named.map(|(_, named)| named).unwrap_or_default())?;
    if wanted.files.is_empty() && wanted.named.is_empty() {
        return Err(Error::invalid("there is no adapter to check")
            .with_hint("name some: `--lora a.safetensors:0.8 --lora b.safetensors:0.6`"));
    }
    let found = loras::find(&wanted, context)?;
    let (mut pipeline, _) = setup::open_model(&args.model, context)?;
    let (blend, used) = loras::load(&wanted, found, &mut pipeline, context)?;
    pipeline.set_blend(blend)?;
    let report = pipeline.blend_report()?;
    let console = &context.console;
    if console.is_json() {
        console.data(&as_json(&report, &used).to_string());
    } else {
        table(&report).iter().for_each(|line| console.data(line));
    }
    if let Some(path) = &args.heat_map {
        sheet::write_png(path, &heat_map::draw(&report))?;
        console.result(&path.display().to_string(), &json!({ "event": "heat map", "path": path }));
    }
    if report.is_fine() {
        return Ok(());
    }
    let warnings: Vec<String> = report.warnings.iter().map(|warning| format!("\n  {warning}")).collect();
    Err(Error::invalid(format!("this blend may look overcooked:{}", warnings.concat()))
        .with_hint("lower the weights of those named, or keep the sum in bounds with `--normalize`"))
}

/// Percent of the base weights' norm, root of the sum of squares over a block's layers.
fn table(report: &BlendReport) -> Vec<String> {
    let width = report.names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max(9);
    let percent = |value: &f64| format!("{:>width$.2}", value * 100.0);
    let row = |first: &str, cells: &[String]| format!("{first:<8}{}", cells.join("  "));
    let mut head: Vec<String> = report.names.iter().map(|name| format!("{name:>width$}")).collect();
    head.extend(["sum", "unrelated", "limit"].map(|word| format!("{word:>width$}")));
    let mut lines = vec![row("percent", &head)];
    for block in &report.blocks {
        let limit = block.reach * LIMIT;
        let values = block.each.iter().chain([&block.total, &block.unrelated, &limit]);
        let mut line = row(&block.block, &values.map(percent).collect::<Vec<_>>());
        if block.total > limit {
            line.push_str("  too much");
        }
        lines.push(line);
    }
    for overlap in &report.overlaps {
        let [a, b] = [overlap.pair.0, overlap.pair.1].map(|i| report.names[i].as_str());
        lines.push(format!("{a} and {b}: cosine {:.3}, most in {}", overlap.cosine, overlap.block));
    }
    lines
}

fn as_json(report: &BlendReport, used: &[LoraUse]) -> Value {
    let adapters: Vec<Value> = used
        .iter()
        .map(|lora| json!({ "name": lora.name, "weight": lora.strength.to_string(), "hash": lora.hash }))
        .collect();
    let blocks: Vec<Value> = report
        .blocks
        .iter()
        .map(|b| {
            json!({ "block": b.block, "each": b.each, "sum": b.total, "unrelated": b.unrelated,
                "limit": b.reach * LIMIT })
        })
        .collect();
    let overlaps: Vec<Value> = report
        .overlaps
        .iter()
        .map(|o| {
            let pair = [o.pair.0, o.pair.1].map(|i| report.names[i].as_str());
            json!({ "pair": pair, "cosine": o.cosine, "block": o.block })
        })
        .collect();
    let warnings: Vec<Value> = report
        .warnings
        .iter()
        .map(|warning| {
            let message = warning.to_string();
            match warning {
                Warning::TooMuch { block, times, culprits } => {
                    json!({ "kind": "too much", "block": block, "times": times, "culprits": culprits, "message": message })
                }
                Warning::Alike { pair, cosine, block } => {
                    json!({ "kind": "alike", "pair": pair, "cosine": cosine, "block": block, "message": message })
                }
            }
        })
        .collect();
    json!({ "event": "blend", "adapters": adapters, "blocks": blocks, "overlaps": overlaps, "warnings": warnings })
}
