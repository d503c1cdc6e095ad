//! The overcook guard's report as a picture: blocks down, adapters and their sum across, the redder the more.

use image::{Rgb, RgbImage};

use crate::{
    adapter::guard::{BlendReport, BlockEnergy, LIMIT},
    pipeline::sheet::{Sheet, font},
};

/// A cell's size in pixels.
const CELL: (u32, u32) = (112, 36);
const DOT: u32 = 2;
/// Letters of an adapter's name that fit above a column.
const NAME: usize = 9;
/// From nothing over the strength of the strongest adapter alone to the guard's limit and beyond.
const COLOURS: [[f64; 3]; 4] =
    [[255.0, 253.0, 245.0], [253.0, 205.0, 120.0], [238.0, 108.0, 62.0], [176.0, 24.0, 40.0]];

/// Numbers are percent of the base weights' norm. Colours count in reaches: what the block's strongest adapter changes
/// at weight 1; dark red is [`LIMIT`] of them.
pub(super) fn draw(report: &BlendReport) -> RgbImage {
    let short = |name: &String| name.chars().take(NAME).collect::<String>();
    let mut columns: Vec<String> = report.names.iter().map(short).collect();
    columns.push("sum".into());
    columns.push("unrelated".into());
    let rows: Vec<String> = report.blocks.iter().map(|b| b.block.clone()).collect();
    let cells: Vec<RgbImage> = report.blocks.iter().flat_map(row).collect();
    let title = "change of each block, percent of its weights";
    Sheet { columns: &columns, rows: &rows, cell_px: CELL, title }.draw(&cells)
}

fn row(block: &BlockEnergy) -> Vec<RgbImage> {
    let values = block.each.iter().chain([&block.total, &block.unrelated]);
    let reach = block.reach.max(f64::MIN_POSITIVE);
    values.map(|value| cell(value * 100.0, value / reach / LIMIT)).collect()
}

/// `heat` is 1 at the limit.
fn cell(percent: f64, heat: f64) -> RgbImage {
    let mut cell = RgbImage::from_pixel(CELL.0, CELL.1, colour(heat));
    let text = format!("{percent:.1}");
    let (x, y) = ((CELL.0 - font::width(&text, DOT).min(CELL.0)) / 2, (CELL.1 - font::height(DOT)) / 2);
    let ink = if heat > 0.6 { Rgb([255, 255, 255]) } else { Rgb([36, 36, 42]) };
    font::draw_in(ink, &mut cell, &text, (x, y), DOT);
    if heat > 1.0 {
        frame(&mut cell);
    }
    cell
}

fn colour(heat: f64) -> Rgb<u8> {
    let at = heat.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let from = (at.floor() as usize).min(COLOURS.len() - 2);
    let share = at - from as f64;
    Rgb([0, 1, 2].map(|i| (COLOURS[from][i] * (1.0 - share) + COLOURS[from + 1][i] * share).round() as u8))
}

/// Cells beyond the limit stand out without colour too.
fn frame(cell: &mut RgbImage) {
    let (w, h) = cell.dimensions();
    for (x, y) in (0..w * h).map(|n| (n % w, n / w)) {
        if x < 3 || y < 3 || x >= w - 3 || y >= h - 3 {
            cell.put_pixel(x, y, Rgb([36, 36, 42]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hotter_is_darker_and_the_limit_is_framed() {
        let shade = |heat: f64| colour(heat).0.iter().map(|v| u32::from(*v)).sum::<u32>();
        let shades: Vec<u32> = (0..=10).map(|i| shade(f64::from(i) / 10.0)).collect();
        assert!(shades.windows(2).all(|w| w[0] > w[1]), "{shades:?}");
        assert_ne!(cell(10.0, 1.1).get_pixel(0, 0), cell(10.0, 0.9).get_pixel(0, 0));
    }
}
