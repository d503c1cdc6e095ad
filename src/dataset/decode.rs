//! Pictures from files that may be anything: sizes are checked before memory is taken, the format is read from the
//! content and not from the name, EXIF orientation is applied, transparency is laid on white.

use std::{
    io::{Cursor, Read as _},
    path::Path,
    sync::{Mutex, PoisonError},
};

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, RgbImage, error::LimitErrorKind};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;

/// Endings that are read. The content decides what the picture is.
pub const EXTENSIONS: [&str; 9] = ["png", "jpg", "jpeg", "jfif", "webp", "bmp", "gif", "tif", "tiff"];

/// Endings of pictures that people have but nobody here reads; named, not ignored.
pub const UNSUPPORTED: [&str; 14] =
    ["heic", "heif", "avif", "jxl", "svg", "psd", "xcf", "exr", "cr2", "nef", "dng", "arw", "tga", "jp2"];

/// A file above this is refused unread.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Pictures above this many pixels are decoded one at a time, so that many threads do not add up.
const LARGE_PIXELS: u64 = 16_000_000;
static LARGE: Mutex<()> = Mutex::new(());

/// What is too small or too large to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Pictures with a shorter side are skipped: there is nothing to learn from a dot.
    pub min_side_px: u32,
    /// Pictures with more pixels are skipped: decoding takes up to 8 bytes for each.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { min_side_px: 16, max_pixels: 128_000_000 }
    }
}

/// A decoded picture.
#[derive(Debug, Clone)]
pub struct Picture {
    /// What is seen, upright, on white.
    pub pixels: RgbImage,
    /// True if some pixel was not opaque.
    pub alpha: bool,
}

/// Reads and decodes a file; of an animation, the first frame.
///
/// # Errors
/// If the file cannot be read, is no picture, is broken, or is beyond the limits.
pub fn read(path: &Path, limits: &Limits) -> Result<Picture> {
    decode(path, &load(path)?, limits)
}

/// The file's bytes, unless it is absurdly large.
///
/// # Errors
/// If it cannot be read or is above 1 GiB.
pub fn load(path: &Path) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let mut file = files::open_regular(path, "a picture")?;
    let len = file.metadata().map_err(io)?.len();
    if len > MAX_FILE_BYTES {
        return Err(Error::file(path, format!("{} MiB is too large for a training picture", len >> 20)));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Decodes a file's bytes; `path` is for messages.
///
/// # Errors
/// As [`read`].
pub fn decode(path: &Path, bytes: &[u8], limits: &Limits) -> Result<Picture> {
    if bytes.is_empty() {
        return Err(Error::file(path, "the file is empty"));
    }
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| Error::io(path, e))?;
    // A decoder's own limit must not refuse before the size could be named.
    reader.limits(allocation(limits.max_pixels));
    let Some(format) = reader.format() else {
        return Err(Error::file(path, "not a picture (the content is no known image format)"));
    };
    let broken = |e: ImageError| Error::file(path, reason(&e));
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        return Err(Error::file(
            path,
            format!("{width}x{height} px is above the limit of {} megapixels", limits.max_pixels / 1_000_000),
        )
        .with_hint("shrink it: training never uses more than a few megapixels"));
    }
    if width.min(height) < limits.min_side_px {
        return Err(Error::file(
            path,
            format!(
                "{width}x{height} px is too small to train on (at least {} px a side)",
                limits.min_side_px
            ),
        ));
    }
    decoder.set_limits(allocation(pixels)).map_err(broken)?;
    let _one_at_a_time =
        (pixels > LARGE_PIXELS).then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let orientation = decoder.orientation().map_err(broken)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    if format == image::ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(Error::file(path, "broken picture: the JPEG data stops early"));
    }
    picture.apply_orientation(orientation);
    Ok(on_white(picture))
}

/// Memory for a picture of 16-bit RGBA and a decoder's own buffers.
fn allocation(pixels: u64) -> image::Limits {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(pixels.saturating_mul(16).saturating_add(64 << 20));
    limits
}

/// The JPEG decoder fills what is missing with grey and says nothing, so the file is walked to its end marker:
/// segments carry their length; inside a scan, FF is followed by 00 or a restart marker.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let (Some(0xff), Some(&marker)) = (bytes.get(at), bytes.get(at + 1)) {
        match marker {
            0xd9 => return true,
            0xff => at += 1, // fill byte
            0x01 | 0xd0..=0xd8 => at += 2,
            _ => {
                let Some(length) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                if marker == 0xda {
                    let scan = bytes.get(at..).unwrap_or_default();
                    let is_end = |w: &[u8]| w[0] == 0xff && !matches!(w[1], 0x00 | 0xd0..=0xd7 | 0xff);
                    let Some(length) = scan.windows(2).position(is_end) else { return false };
                    at += length;
                }
            }
        }
    }
    false
}

fn on_white(picture: DynamicImage) -> Picture {
    if !picture.color().has_alpha() {
        return Picture { pixels: picture.into_rgb8(), alpha: false };
    }
    let rgba = picture.into_rgba8();
    let mut alpha = false;
    let mut pixels = RgbImage::new(rgba.width(), rgba.height());
    for (from, to) in rgba.pixels().zip(pixels.pixels_mut()) {
        let a = u32::from(from[3]);
        alpha |= a < 255;
        for (f, t) in from.0.iter().zip(&mut to.0) {
            *t = ((u32::from(*f) * a + 255 * (255 - a) + 127) / 255) as u8;
        }
    }
    Picture { pixels, alpha }
}

fn reason(error: &ImageError) -> String {
    match error {
        ImageError::Limits(e) if e.kind() == LimitErrorKind::InsufficientMemory => {
            "the size in the header is absurd, or far above the limit".into()
        }
        ImageError::Unsupported(e) => format!("unsupported picture: {e}"),
        e => format!("broken picture: {e}"),
    }
}
