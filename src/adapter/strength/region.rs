//! A weight that differs from place to place of the picture.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::{GrayImage, ImageBuffer, Luma, imageops};

use crate::error::{Error, Result};

/// Where in the picture an adapter acts.
#[derive(Debug, Clone)]
pub struct Region {
    source: Source,
    picture: Option<Arc<GrayImage>>,
    masks: Option<Arc<Masks>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Source {
    /// White acts fully, black not at all; `outside` the other way round.
    File {
        path: PathBuf,
        outside: bool,
    },
    Half(Half),
}

/// Half of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The left one.
    Left,
    /// The right one.
    Right,
    /// The upper one.
    Top,
    /// The lower one.
    Bottom,
}

const HALVES: [(&str, Half); 4] =
    [("left", Half::Left), ("right", Half::Right), ("top", Half::Top), ("bottom", Half::Bottom)];

/// A region at every resolution the network works at: by the number of places n = h · w, how much of each is covered,
/// row by row.
pub type Masks = BTreeMap<usize, Vec<f32>>;

/// Times the network may halve its input.
const RESOLUTIONS: usize = 6;

impl Region {
    /// Half of the picture.
    pub fn half(half: Half) -> Self {
        Self::new(Source::Half(half))
    }

    /// Where a picture is white; where it is black if `outside`.
    pub fn mask(path: impl Into<PathBuf>, outside: bool) -> Self {
        Self::new(Source::File { path: path.into(), outside })
    }

    fn new(source: Source) -> Self {
        Self { source, picture: None, masks: None }
    }

    /// What stands behind `@`: `mask=FILE`, `outside=FILE`, `left`, `right`, `top` or `bottom`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(words: &str) -> Result<Self> {
        let (key, value) = words.split_once('=').unwrap_or((words, ""));
        let region = match (key.trim(), value.trim()) {
            ("mask" | "outside", "" | "\"\"") => {
                return Err(Error::invalid(format!("`@{key}=` names no picture")));
            }
            ("mask", path) => Self::mask(unquote(path), false),
            ("outside", path) => Self::mask(unquote(path), true),
            (name, "") => match HALVES.iter().find(|(n, _)| *n == name) {
                Some((_, half)) => Self::half(*half),
                None => return Err(unknown(name)),
            },
            (name, _) => return Err(unknown(name)),
        };
        Ok(region)
    }

    /// The half it is, if it is one.
    pub fn as_half(&self) -> Option<Half> {
        match self.source {
            Source::Half(half) => Some(half),
            Source::File { .. } => None,
        }
    }

    /// True if it acts where its mask is black.
    pub fn is_outside(&self) -> bool {
        matches!(self.source, Source::File { outside: true, .. })
    }

    /// The mask's file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::File { path, .. } => Some(path),
            Source::Half(_) => None,
        }
    }

    /// Names the mask's file differently: absolutely, for a recipe.
    pub fn set_file(&mut self, file: PathBuf) {
        if let Source::File { path, .. } = &mut self.source {
            *path = file;
        }
    }

    /// Hands over the mask's picture.
    pub fn set_picture(&mut self, picture: Arc<GrayImage>) {
        self.picture = Some(picture);
    }

    /// The region on a picture of h × w latent pixels; a mask of other proportions is stretched.
    ///
    /// # Errors
    /// If nobody has handed over the mask's picture.
    pub fn on_canvas(&self, (h, w): (usize, usize)) -> Result<Self> {
        let (mut masks, mut size) = (Masks::new(), (h, w));
        for _ in 0..RESOLUTIONS {
            masks.insert(size.0 * size.1, self.covered(size)?);
            size = (size.0.div_ceil(2), size.1.div_ceil(2));
        }
        Ok(Self { masks: Some(Arc::new(masks)), ..self.clone() })
    }

    /// The masks [`Region::on_canvas`] made.
    pub fn masks(&self) -> Option<&Arc<Masks>> {
        self.masks.as_ref()
    }

    fn covered(&self, (h, w): (usize, usize)) -> Result<Vec<f32>> {
        let (half, along) = match &self.source {
            Source::Half(half) => (*half, if matches!(half, Half::Left | Half::Right) { w } else { h }),
            Source::File { path, outside } => {
                let picture = self.picture.as_ref().ok_or_else(|| {
                    Error::invalid(format!("the mask {} has not been read", path.display()))
                })?;
                return Ok(averaged(picture, (h, w), *outside));
            }
        };
        // How much of [i, i + 1] lies before the middle.
        let first = |i: usize| (along as f32 / 2.0 - i as f32).clamp(0.0, 1.0);
        let places = (0..h * w).map(|n| (n / w, n % w));
        Ok(places
            .map(|(y, x)| match half {
                Half::Left => first(x),
                Half::Right => 1.0 - first(x),
                Half::Top => first(y),
                Half::Bottom => 1.0 - first(y),
            })
            .collect())
    }
}

/// The mean of what lies under each place.
fn averaged(picture: &GrayImage, (h, w): (usize, usize), outside: bool) -> Vec<f32> {
    let values = picture.as_raw().iter().map(|v| f32::from(*v) / 255.0);
    let values = values.map(|v| if outside { 1.0 - v } else { v }).collect();
    let wide: Option<ImageBuffer<Luma<f32>, Vec<f32>>> =
        ImageBuffer::from_raw(picture.width(), picture.height(), values);
    // The buffer has the picture's own size.
    let wide = wide.unwrap_or_default();
    let small = imageops::resize(&wide, w as u32, h as u32, imageops::FilterType::Triangle);
    small.into_raw().into_iter().map(|v| v.clamp(0.0, 1.0)).collect()
}

impl PartialEq for Region {
    /// What was asked for, not what has been made of it.
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File { path, outside } => {
                let key = if *outside { "outside" } else { "mask" };
                write!(f, "{key}={}", quote(&path.to_string_lossy()))
            }
            Source::Half(half) => {
                let name = HALVES.iter().find(|(_, h)| h == half).map_or("left", |(name, _)| name);
                write!(f, "{name}")
            }
        }
    }
}

fn unknown(name: &str) -> Error {
    Error::unknown(
        "place of an adapter's weight",
        name,
        ["mask", "outside", "left", "right", "top", "bottom"],
    )
    .with_hint("behind `@`: points such as `0-50%`, `mask=FILE`, `outside=FILE`, left, right, top or bottom")
}

/// A path as it is, or quoted where it holds a mark of the grammar. `""` inside quotes is one quote.
fn quote(path: &str) -> String {
    let marks = [',', '@', ':', '"', '<', '>', '='];
    if path.contains(marks) || path.trim() != path {
        format!("\"{}\"", path.replace('"', "\"\""))
    } else {
        path.to_owned()
    }
}

fn unquote(text: &str) -> String {
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    inner.map_or_else(|| text.to_owned(), |inner| inner.replace("\"\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resolution_covers_the_same_share() -> Result<()> {
        let mut file = Region::parse("mask=left.png")?;
        file.set_picture(Arc::new(GrayImage::from_fn(40, 40, |x, _| Luma([if x < 20 { 255 } else { 0 }]))));
        let mut outside = Region::parse("outside=left.png")?;
        outside
            .set_picture(Arc::new(GrayImage::from_fn(40, 40, |x, _| Luma([if x < 20 { 255 } else { 0 }]))));
        for (region, row) in [
            (Region::parse("left")?, [1.0, 1.0, 0.0, 0.0]),
            (Region::parse("right")?, [0.0, 0.0, 1.0, 1.0]),
            (file, [1.0, 1.0, 0.0, 0.0]),
            (outside, [0.0, 0.0, 1.0, 1.0]),
        ] {
            let region = region.on_canvas((8, 16))?;
            let masks = region.masks().expect("just made");
            for (n, mask) in masks.iter() {
                let mean = mask.iter().sum::<f32>() / *n as f32;
                assert!((mean - 0.5).abs() < 0.02, "{region}: {mean} of {n} places");
            }
            // Two rows of four: the edge of a picture is softened by less than a place.
            for (found, expected) in masks[&8].iter().zip([row, row].concat()) {
                assert!((found - expected).abs() < 0.2, "{region}: {:?}", masks[&8]);
            }
        }
        assert!(Region::parse("mask=a.png")?.on_canvas((8, 8)).is_err(), "never read");
        Ok(())
    }
}
