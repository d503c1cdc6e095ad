//! Labelled tables of pictures as one picture.

use std::path::Path;

use image::{Rgb, RgbImage, imageops};

use super::font;
use crate::{
    error::{Error, Result},
    files,
};

const GAP: u32 = 12;
const DOT: u32 = 2;
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);

/// Pictures in rows and columns, with words above and on the left.
#[derive(Debug)]
pub(super) struct Sheet<'a> {
    /// Above the columns.
    pub columns: &'a [String],
    /// On the left of the rows.
    pub rows: &'a [String],
    /// Row by row; what is missing stays blank.
    pub cells: &'a [RgbImage],
    /// Width and height of a cell in pixels; pictures of another size are scaled.
    pub cell_px: (u32, u32),
    /// A line at the top, if it is not empty.
    pub title: &'a str,
}

impl Sheet<'_> {
    pub fn draw(&self) -> RgbImage {
        let (w, h) = self.cell_px;
        let left = self.rows.iter().map(|s| font::width(s, DOT)).max().unwrap_or(0) + 2 * GAP;
        let title = if self.title.is_empty() { 0 } else { font::height(DOT) + GAP };
        let top = title + font::height(DOT) + 2 * GAP;
        let (columns, rows) = (self.columns.len() as u32, self.rows.len() as u32);
        let width = (left + columns * (w + GAP)).max(font::width(self.title, DOT) + 2 * GAP);
        let mut sheet = RgbImage::from_pixel(width, top + rows * (h + GAP), PAPER);
        font::draw(&mut sheet, self.title, (GAP, GAP), DOT);
        for (column, label) in (0u32..).zip(self.columns) {
            let middle = left + column * (w + GAP) + w.saturating_sub(font::width(label, DOT)) / 2;
            font::draw(&mut sheet, label, (middle, title + GAP), DOT);
        }
        for (row, label) in (0u32..).zip(self.rows) {
            let y = top + row * (h + GAP);
            font::draw(&mut sheet, label, (GAP, y + h.saturating_sub(font::height(DOT)) / 2), DOT);
            for column in 0..columns {
                let Some(cell) = self.cells.get((row * columns + column) as usize) else { continue };
                let x = left + column * (w + GAP);
                if cell.dimensions() == self.cell_px {
                    imageops::replace(&mut sheet, cell, i64::from(x), i64::from(y));
                } else {
                    let cell = imageops::resize(cell, w, h, imageops::FilterType::CatmullRom);
                    imageops::replace(&mut sheet, &cell, i64::from(x), i64::from(y));
                }
            }
        }
        sheet
    }
}

pub(super) fn write_png(path: &Path, picture: &RgbImage) -> Result<()> {
    files::write_bytes(path, &encode_png(picture).map_err(|e| e.context(path.display().to_string()))?)
}

pub(super) fn encode_png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|e| Error::invalid(format!("the picture cannot be encoded: {e}")))?;
    Ok(bytes.into_inner())
}
