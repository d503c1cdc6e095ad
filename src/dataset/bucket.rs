//! Aspect buckets: sizes of about the same area, so that pictures keep their shape and a batch has one size.
//!
//! The list is kohya's `make_bucket_resolutions` (after NovelAI's). Two deliberate differences: the distance of two
//! aspects is taken on a log scale, so that a portrait and its transposed landscape get transposed buckets, and with
//! `no_upscale` a picture smaller than one step still gets a bucket (and is reported) instead of a size of zero.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A training size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bucket {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// How a picture fills its bucket: resized to `resized_px` (which covers the bucket), then cropped to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The size trained at.
    pub bucket: Bucket,
    /// Width and height before the crop.
    pub resized_px: (u32, u32),
    /// True if the picture is enlarged, which blurs it.
    pub upscaled: bool,
}

/// Which sizes are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketOptions {
    /// Width and height whose area no bucket exceeds.
    pub resolution: (u32, u32),
    /// False: every picture is cropped to `resolution`.
    pub enabled: bool,
    /// The shortest side allowed; 0 stands for half the resolution's shorter side.
    pub min_px: u32,
    /// The longest side allowed; 0 stands for twice the resolution's longer side.
    pub max_px: u32,
    /// Every side is a multiple of this: 64 for SD, 8 × 2^(levels - 1) for a UNet with fewer levels.
    pub step_px: u32,
    /// Never enlarge: buckets follow the pictures' own sizes.
    pub no_upscale: bool,
}

impl Default for BucketOptions {
    fn default() -> Self {
        Self { resolution: (512, 512), enabled: true, min_px: 0, max_px: 0, step_px: 64, no_upscale: false }
    }
}

impl BucketOptions {
    /// Buckets of a square's area, with the defaults for the rest.
    pub fn square(side_px: u32, step_px: u32) -> Self {
        Self { resolution: (side_px, side_px), step_px, ..Self::default() }
    }

    fn limits(&self) -> (u32, u32) {
        let (w, h) = self.resolution;
        let min = if self.min_px == 0 { w.min(h) / 2 } else { self.min_px };
        let max = if self.max_px == 0 { w.max(h).saturating_mul(2) } else { self.max_px };
        // A bucket starts on a step, so the limits do too.
        (min.max(1).next_multiple_of(self.step_px), max / self.step_px * self.step_px)
    }
}

/// The buckets of some options.
#[derive(Debug, Clone)]
pub struct Buckets {
    options: BucketOptions,
    sizes: Vec<Bucket>,
}

impl Buckets {
    /// Lists the buckets.
    ///
    /// # Errors
    /// If the options allow no size at all.
    pub fn new(options: &BucketOptions) -> Result<Self> {
        let &BucketOptions { resolution: (w, h), step_px: step, .. } = options;
        if step == 0 || step % 8 != 0 {
            return Err(Error::invalid(format!("bucket step must be a multiple of 8, found {step}"))
                .with_hint("64 suits SD1, SD2 and SDXL"));
        }
        if !(step..=16_384).contains(&w) || !(step..=16_384).contains(&h) || w % step != 0 || h % step != 0 {
            return Err(Error::invalid(format!(
                "resolution {w}x{h} must be multiples of the bucket step {step}"
            ))
            .with_hint(format!(
                "try {}x{}",
                nearest_multiple(w, step),
                nearest_multiple(h, step)
            )));
        }
        let (min, max) = options.limits();
        if options.enabled && (min > w.min(h) || max < w.max(h)) {
            return Err(Error::invalid(format!(
                "bucket sides from {min} to {max} px leave out the resolution {w}x{h}"
            ))
            .with_hint("lower the minimum or raise the maximum bucket side"));
        }
        let sizes = if options.enabled { sizes(options) } else { vec![Bucket { width: w, height: h }] };
        Ok(Self { options: *options, sizes })
    }

    /// Every predefined size, smallest width first.
    pub fn sizes(&self) -> &[Bucket] {
        &self.sizes
    }

    /// Puts a picture into the bucket with the nearest aspect.
    pub fn place(&self, (width, height): (u32, u32)) -> Placement {
        let bucket = if self.options.enabled && self.options.no_upscale {
            self.own_size(width, height)
        } else {
            self.nearest(width, height)
        };
        let scale =
            (f64::from(bucket.width) / f64::from(width)).max(f64::from(bucket.height) / f64::from(height));
        let side = |px: u32, least: u32| ((f64::from(px) * scale).round() as u32).max(least);
        let resized_px = (side(width, bucket.width), side(height, bucket.height));
        Placement { bucket, resized_px, upscaled: scale > 1.0 }
    }

    fn nearest(&self, width: u32, height: u32) -> Bucket {
        let error = |b: &Bucket| aspect_error(b, width, height);
        // Sizes come sorted by width; on a tie the larger area wins.
        let best = self.sizes.iter().copied().min_by(|a, b| {
            let area = |b: &Bucket| b.width * b.height;
            error(a).total_cmp(&error(b)).then(area(b).cmp(&area(a)))
        });
        best.unwrap_or(Bucket { width: self.options.resolution.0, height: self.options.resolution.1 })
    }

    /// The picture's own size, shrunk to the area and the longest side, cut to steps.
    fn own_size(&self, width: u32, height: u32) -> Bucket {
        let (w, h) = (f64::from(width), f64::from(height));
        let area = f64::from(self.options.resolution.0) * f64::from(self.options.resolution.1);
        let longest = f64::from(self.options.limits().1);
        let scale = (area / (w * h)).sqrt().min(longest / w.max(h)).min(1.0);
        let step = self.options.step_px;
        // The epsilon keeps 512.0 from becoming 511.99… and losing a step.
        let cut = |side: f64| ((side * scale + 1e-6) as u32 / step * step).max(step);
        Bucket { width: cut(w), height: cut(h) }
    }
}

/// How far a bucket's shape is from a picture's: 0 = equal, ln 2 = twice as wide or as tall.
pub fn aspect_error(bucket: &Bucket, width: u32, height: u32) -> f64 {
    let aspect = |w: u32, h: u32| f64::from(w).ln() - f64::from(h).ln();
    (aspect(bucket.width, bucket.height) - aspect(width, height)).abs()
}

fn sizes(options: &BucketOptions) -> Vec<Bucket> {
    let (w, h) = options.resolution;
    let step = options.step_px;
    let (min, max) = options.limits();
    let area = u64::from(w) * u64::from(h);
    let mut sizes = vec![Bucket { width: w, height: h }];
    for width in (min..=max).step_by(step as usize) {
        let height = ((area / u64::from(width)) as u32 / step * step).min(max);
        if height >= min {
            sizes.extend([Bucket { width, height }, Bucket { width: height, height: width }]);
        }
    }
    let square = (area as f64).sqrt() as u32 / step * step;
    sizes.push(Bucket { width: square, height: square });
    sizes.sort();
    sizes.dedup();
    sizes
}

fn nearest_multiple(px: u32, step: u32) -> u32 {
    ((px.min(16_384) + step / 2) / step * step).max(step)
}
