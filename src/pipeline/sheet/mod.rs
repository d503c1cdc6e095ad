//! Labelled tables of pictures as one picture.

pub mod font;

use std::{borrow::Cow, path::Path};

use image::{Rgb, RgbImage, imageops};

use crate::{
    error::{Error, Result},
    files,
};

const GAP: u32 = 12;
const DOT: u32 = 2;
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);
/// A title is cut to the table's width, or to this many pixels if the table is narrower.
const TITLE_PX: u32 = 960;

/// Pictures in rows and columns, with words above and on the left.
#[derive(Debug)]
pub struct Sheet<'a> {
    /// Above the columns.
    pub columns: &'a [String],
    /// On the left of the rows.
    pub rows: &'a [String],
    /// Width and height of a cell in pixels; pictures of another size are scaled.
    pub cell_px: (u32, u32),
    /// A line at the top, if it is not empty.
    pub title: &'a str,
}

impl Sheet<'_> {
    /// With all of its pictures, row by row; what is missing stays blank.
    pub fn draw(&self, cells: &[RgbImage]) -> RgbImage {
        let mut sheet = self.blank();
        cells.iter().enumerate().for_each(|(index, cell)| self.put(&mut sheet, index, cell));
        sheet
    }

    /// Words alone.
    pub fn blank(&self) -> RgbImage {
        let ((w, h), (left, top)) = (self.cell_px, self.corner());
        let (columns, rows) = (self.columns.len() as u32, self.rows.len() as u32);
        let table = left + columns * (w + GAP);
        let letters = font::letters(table.max(TITLE_PX) - 2 * GAP, DOT);
        let title: String = self.title.chars().take(letters).collect();
        let width = table.max(font::width(&title, DOT) + 2 * GAP);
        let mut sheet = RgbImage::from_pixel(width, top + rows * (h + GAP), PAPER);
        font::draw(&mut sheet, &title, (GAP, GAP), DOT);
        for (column, label) in (0u32..).zip(self.columns) {
            let middle = left + column * (w + GAP) + w.saturating_sub(font::width(label, DOT)) / 2;
            font::draw(&mut sheet, label, (middle, top - GAP - font::height(DOT)), DOT);
        }
        for (row, label) in (0u32..).zip(self.rows) {
            let y = top + row * (h + GAP) + h.saturating_sub(font::height(DOT)) / 2;
            font::draw(&mut sheet, label, (GAP, y), DOT);
        }
        sheet
    }

    /// Puts a picture into its place, counted row by row, on what [`Sheet::blank`] made.
    pub fn put(&self, sheet: &mut RgbImage, index: usize, cell: &RgbImage) {
        let ((w, h), (left, top)) = (self.cell_px, self.corner());
        let columns = self.columns.len().max(1);
        let (column, row) = ((index % columns) as u32, (index / columns) as u32);
        let at = (i64::from(left + column * (w + GAP)), i64::from(top + row * (h + GAP)));
        if cell.dimensions() == self.cell_px {
            imageops::replace(sheet, cell, at.0, at.1);
        } else {
            let cell = imageops::resize(cell, w, h, imageops::FilterType::CatmullRom);
            imageops::replace(sheet, &cell, at.0, at.1);
        }
    }

    /// Where the first picture's upper left corner lies.
    fn corner(&self) -> (u32, u32) {
        let words = self.rows.iter().map(|s| font::width(s, DOT)).max().unwrap_or(0);
        let title = if self.title.is_empty() { 0 } else { font::height(DOT) + GAP };
        (words + 2 * GAP, title + font::height(DOT) + 2 * GAP)
    }
}

/// A picture no longer than this on any side.
pub fn small(picture: &RgbImage, longest_px: u32) -> Cow<'_, RgbImage> {
    let (w, h) = picture.dimensions();
    if w.max(h) <= longest_px {
        return Cow::Borrowed(picture);
    }
    let scale = f64::from(longest_px) / f64::from(w.max(h));
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    Cow::Owned(imageops::thumbnail(picture, side(w), side(h)))
}

/// Writes a sheet as PNG, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write_png(path: &Path, picture: &RgbImage) -> Result<()> {
    files::write_bytes(path, &encode_png(picture).map_err(|e| e.at(path))?)
}

fn encode_png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|e| Error::invalid(format!("the picture cannot be encoded: {e}")))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_where_their_labels_are_and_long_titles_are_cut() {
        let words = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        let (columns, rows, title) = (words(2), words(3), "x".repeat(10_000));
        let layout = Sheet { columns: &columns, rows: &rows, cell_px: (20, 10), title: &title };
        let red = RgbImage::from_pixel(40, 20, Rgb([255, 0, 0]));
        let mut sheet = layout.blank();
        layout.put(&mut sheet, 3, &red);
        assert!(sheet.width() <= TITLE_PX, "{}", sheet.width());
        let (left, top) = layout.corner();
        let (x, y) = (left + 20 + GAP, top + 10 + GAP);
        assert_eq!(sheet.get_pixel(x, y).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(x + 19, y + 9).0, [255, 0, 0]);
        assert_eq!((*sheet.get_pixel(x - 1, y), *sheet.get_pixel(x, y - 1)), (PAPER, PAPER));
        assert_eq!(layout.draw(&[red]).dimensions(), sheet.dimensions());
    }
}
