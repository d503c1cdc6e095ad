//! `scumble generate --grid N`: one picture at many weights of one or two styles.

use image::RgbImage;

use super::{Context, sheet};
use crate::{
    adapter::{Blend, Strength},
    error::{Error, Result},
    pipeline::{GenerateRequest, Pipeline},
    progress::{Event, Observer as _, Stage},
};

/// More pictures than this on a side are a slip of the finger.
const MAX_SIDE: usize = 32;
/// Smaller pictures are scaled up to this many pixels a side.
const MIN_CELL_PX: u32 = 192;

/// Draws an N × N grid: the first style's weight rises from 0 to what was given from left to right, the second's from top
/// to bottom; further styles keep theirs. With one style, a single row.
pub(super) fn draw(
    n: usize,
    pipeline: &mut Pipeline,
    request: &GenerateRequest,
    context: &mut Context,
) -> Result<RgbImage> {
    let blend = pipeline.blend().clone();
    if !(2..=MAX_SIDE).contains(&n) {
        return Err(Error::invalid(format!("`--grid` must be from 2 to {MAX_SIDE}, found {n}")));
    }
    if blend.entries.is_empty() {
        return Err(Error::invalid("a grid shows the weights of one or two styles; there is none")
            .with_hint("add `--lora first.safetensors --lora second.safetensors`"));
    }
    let shares: Vec<f64> = (0..n).map(|i| i as f64 / (n - 1) as f64).collect();
    let rows = if blend.entries.len() > 1 { shares.clone() } else { vec![1.0] };
    let request = GenerateRequest { count: 1, batch: 1, ..request.clone() };
    // Its pictures are drawn without an observer, for one bar in all.
    if let Some(message) = pipeline.size().warning(&pipeline.origin, request.size_on(pipeline)?) {
        context.console.observe(&Event::Warning { message: &message });
    }
    let (stage, total) = (Stage::Sample, (rows.len() * n) as u64);
    context.console.observe(&Event::Started { stage, total });
    let mut cells = Vec::new();
    for row in &rows {
        for column in &shares {
            pipeline.set_blend(weighed(&blend, &[*column, *row]))?;
            let pictures = pipeline.generate(&request, &mut (), &context.cancel)?;
            cells.extend(pictures.into_iter().map(|p| p.image));
            context.console.observe(&Event::Advanced { stage, done: cells.len() as u64, total });
        }
    }
    context.console.observe(&Event::Finished { stage });
    let labels = |i: usize, shares: &[f64]| -> Vec<String> {
        let Some(entry) = blend.entries.get(i) else { return vec![String::new()] };
        shares.iter().map(|share| label(&entry.name, &entry.strength, *share)).collect()
    };
    let cell_px = cells.first().map_or((1, 1), |cell: &RgbImage| {
        let (w, h) = cell.dimensions();
        let scale = MIN_CELL_PX.div_ceil(w.min(h).max(1)).max(1);
        (w * scale, h * scale)
    });
    let (columns, rows) = (labels(0, &shares), labels(1, &rows));
    Ok(sheet::Sheet { columns: &columns, rows: &rows, cells: &cells, cell_px, title: &request.prompt }.draw())
}

/// The blend with its first entries' strengths times these.
fn weighed(blend: &Blend, shares: &[f64]) -> Blend {
    let mut blend = blend.clone();
    for (entry, share) in blend.entries.iter_mut().zip(shares) {
        entry.strength = entry.strength.scaled(*share);
    }
    blend
}

fn label(name: &str, strength: &Strength, share: f64) -> String {
    let weight = strength.unet().peak() * share;
    // Two digits at most, none that say nothing.
    let weight = format!("{weight:.2}");
    format!("{name} {}", weight.trim_end_matches('0').trim_end_matches('.'))
}

/// What follows the number in the grid's file name.
pub(super) fn ending(seed: u64) -> String {
    format!("{seed}-grid.png")
}
