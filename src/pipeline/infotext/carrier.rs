//! Where a picture file keeps its recipe: a PNG text chunk called `parameters`, a JPEG's or WebP's EXIF comment.

use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use image::{ImageDecoder, ImageFormat, ImageReader, RgbImage};

use crate::error::{Error, Result};
use crate::files;

use super::Recipe;

const KEYWORD: &str = "parameters";

/// Writes a picture with its recipe, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write_png(path: &Path, picture: &RgbImage, recipe: &Recipe) -> Result<()> {
    files::write_bytes(path, &encode_png(picture, recipe)?)
}

/// A picture and its recipe as the bytes of a PNG file.
///
/// # Errors
/// When the picture is empty.
pub fn encode_png(picture: &RgbImage, recipe: &Recipe) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encode(&mut bytes, picture, &recipe.to_text()).map_err(|e| Error::invalid(format!("PNG: {e}")))?;
    Ok(bytes)
}

/// The recipe text of a PNG, JPEG or WebP file, if it has one; [`Recipe::parse`] reads it.
///
/// # Errors
/// When the file cannot be read or is not a picture.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let file = files::open_regular(path, "a picture")?;
    let picture =
        ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(|e| Error::io(path, e))?;
    let broken = |e: &dyn std::fmt::Display| Error::file(path, format!("the picture cannot be read: {e}"));
    match picture.format() {
        Some(ImageFormat::Png) => png_text(picture.into_inner()).map_err(|e| broken(&e)),
        Some(_) => {
            let mut decoder = picture.into_decoder().map_err(|e| broken(&e))?;
            let exif = decoder.exif_metadata().map_err(|e| broken(&e))?;
            Ok(exif.and_then(|exif| exif_comment(&exif)))
        }
        None => Err(Error::file(path, "expected a PNG, JPEG or WebP picture, found something else")),
    }
}

fn encode(bytes: &mut Vec<u8>, picture: &RgbImage, text: &str) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // tEXt holds Latin-1 only. Others look there first, so iTXt is for what does not fit.
    if text.chars().all(|c| u32::from(c) <= 0xFF) {
        encoder.add_text_chunk(KEYWORD.to_owned(), text.to_owned())?;
    } else {
        encoder.add_itxt_chunk(KEYWORD.to_owned(), text.to_owned())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()
}

/// Text chunks may stand before or after the pixels; what follows a broken end is given up.
fn png_text<R: BufRead + Seek>(source: R) -> Result<Option<String>, png::DecodingError> {
    let mut reader = png::Decoder::new(source).read_info()?;
    if let Some(text) = find_chunk(reader.info()) {
        return Ok(Some(text));
    }
    match reader.finish() {
        Ok(()) => Ok(find_chunk(reader.info())),
        Err(_) => Ok(None),
    }
}

fn find_chunk(info: &png::Info<'_>) -> Option<String> {
    let utf8 = info.utf8_text.iter().find(|c| c.keyword == KEYWORD).and_then(|c| c.get_text().ok());
    let plain =
        || info.uncompressed_latin1_text.iter().find(|c| c.keyword == KEYWORD).map(|c| c.text.clone());
    let packed =
        || info.compressed_latin1_text.iter().find(|c| c.keyword == KEYWORD).and_then(|c| c.get_text().ok());
    utf8.or_else(plain).or_else(packed)
}

/// The `UserComment` of an EXIF block (a TIFF directory: header, IFD0, from there the EXIF IFD).
fn exif_comment(tiff: &[u8]) -> Option<String> {
    const EXIF_IFD: u16 = 0x8769;
    const USER_COMMENT: u16 = 0x9286;
    let tiff = Tiff { bytes: tiff, big: tiff.starts_with(b"MM") };
    let (_, exif) = tiff.entry(tiff.u32(4)?, EXIF_IFD)?;
    let (length, start) = tiff.entry(exif, USER_COMMENT)?;
    let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
    let comment = tiff.bytes.get(start..start.checked_add(length)?)?;
    let (encoding, text) = comment.split_at_checked(8)?;
    let text =
        if encoding.starts_with(b"UNICODE") { utf16(text) } else { String::from_utf8_lossy(text).into() };
    Some(text.trim_end_matches('\0').to_owned()).filter(|t| !t.is_empty())
}

/// The standard leaves the byte order open and writers differ from their own header: most prompts are mostly ASCII,
/// so the side with more zero bytes is the high one.
fn utf16(bytes: &[u8]) -> String {
    let zeros = |offset| bytes.iter().skip(offset).step_by(2).filter(|b| **b == 0).count();
    let read = if zeros(0) >= zeros(1) { u16::from_be_bytes } else { u16::from_le_bytes };
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| read([pair[0], pair[1]])).collect();
    String::from_utf16_lossy(&units)
}

struct Tiff<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl Tiff<'_> {
    /// Count and value (or offset) of a tag in the directory at `at`.
    fn entry(&self, at: u32, tag: u16) -> Option<(u32, u32)> {
        let at = usize::try_from(at).ok()?;
        let entries = (0..usize::from(self.u16(at)?)).map(|i| at + 2 + i * 12);
        let found = entries.into_iter().find(|e| self.u16(*e) == Some(tag))?;
        Some((self.u32(found + 4)?, self.u32(found + 8)?))
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let pair = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let four = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) })
    }
}
