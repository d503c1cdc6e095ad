//! Large pictures are decoded and encoded in tiles: the seams cannot be seen, and memory does not grow with the picture.

#![expect(clippy::print_stdout, reason = "what was measured, for `--nocapture`")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use candle_core::{DType, Device, Tensor};
use image::{
    RgbImage,
    imageops::{self, FilterType},
};
use scumble::{
    Result,
    models::Tiling,
    pipeline::{Pipeline, Tiles},
    progress::CancelToken,
    random::{Rng, Stream},
    weights::embedded,
};

/// Counts the bytes in use.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
/// Tests of this file run one after the other: they share the counts.
static ALONE: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(USED.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The most memory `f` has in use besides what was in use before, in bytes.
fn peak_bytes<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, usize)> {
    let before = USED.load(Relaxed);
    MOST.store(before, Relaxed);
    let value = f()?;
    Ok((value, MOST.load(Relaxed) - before))
}

const TILE: usize = 8;
/// Cuts everything larger than a tile, 2 of whose 8 latent pixels overlap.
const CUT: Tiles = Tiles { whole: TILE * TILE, tiling: Tiling { size: TILE, overlap: 0.25 } };
const WHOLE: Tiles = Tiles { whole: usize::MAX, ..CUT };

fn mini() -> Result<Pipeline> {
    Pipeline::load(&embedded::open()?, &Device::Cpu, DType::F32)
}

/// A committed picture, scaled.
fn picture(name: &str, width: u32, height: u32) -> RgbImage {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data").join(name);
    let picture = image::open(path).expect("a committed picture").to_rgb8();
    imageops::resize(&picture, width, height, FilterType::CatmullRom)
}

/// For each pixel column from the second: how differently two pictures go on from the column before, in levels of 255.
fn column_steps(a: &RgbImage, b: &RgbImage) -> Vec<f64> {
    let step = |p: &RgbImage, x: u32, y: u32, c: usize| {
        f64::from(p.get_pixel(x, y)[c]) - f64::from(p.get_pixel(x - 1, y)[c])
    };
    let one = |x: u32| {
        let all = (0..a.height()).flat_map(|y| (0..3).map(move |c| (y, c)));
        all.map(|(y, c)| (step(a, x, y, c) - step(b, x, y, c)).abs()).sum::<f64>() / f64::from(3 * a.height())
    };
    (1..a.width()).map(one).collect()
}

/// The largest at seams and the largest elsewhere. A tile begins every 48 pixels and is faded in over 16.
fn at_seams_and_elsewhere(steps: &[f64]) -> (f64, f64) {
    let (mut seams, mut elsewhere) = (0f64, 0f64);
    for (x, step) in (1..).zip(steps) {
        let largest = if x >= 48 && [0, 16].contains(&(x % 48)) { &mut seams } else { &mut elsewhere };
        *largest = largest.max(*step);
    }
    (seams, elsewhere)
}

/// Tiles as small as these see little of the picture, and yet few values are off by more than a tenth, those on the edges
/// of shapes, and where tiles meet the picture goes on as it does elsewhere. (Both are in cargo's folder for tests.)
#[test]
fn seams_cannot_be_seen() -> Result<()> {
    let _alone = ALONE.lock();
    let mut pipeline = mini()?;
    pipeline.tiles = WHOLE;
    let pixels = picture("stained-glass/owl.jpg", 176, 128);
    let latents = pipeline.encode_picture(&pixels)?;
    let whole = pipeline.decode(&latents)?;
    pipeline.tiles = CUT;
    let tiled = pipeline.decode(&latents)?;
    let stopped = CancelToken::default();
    stopped.cancel();
    assert!(pipeline.decode_until(&latents, &stopped).is_err_and(|e| e.is_cancelled()));
    let tiled_latents = pipeline.encode_picture(&pixels)?;
    for (name, picture) in [("whole", &whole), ("tiled", &tiled)] {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).with_extension("png");
        picture.save(path).expect("room for a picture");
    }

    let differences = whole.as_raw().iter().zip(tiled.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    let differences: Vec<f64> = differences.collect();
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let far = differences.iter().filter(|d| **d > 25.0).count() as f64 / differences.len() as f64;
    println!("of 255: {mean:.2} on average; {far:.4} of all values are off by more than a tenth");
    assert!(0.0 < mean && mean < 8.0 && far < 0.03, "of 255: {mean:.2} on average, {far:.4} far off");

    let turned = (imageops::rotate90(&tiled), imageops::rotate90(&whole));
    for (tiled, whole) in [(tiled, whole), turned] {
        let (seams, elsewhere) = at_seams_and_elsewhere(&column_steps(&tiled, &whole));
        println!("steps differ by {seams:.2} at seams, by {elsewhere:.2} elsewhere");
        assert!(seams < 1.5 * elsewhere, "{seams:.2} at seams, {elsewhere:.2} elsewhere");
    }

    let most = |t: &Tensor| -> Result<f32> { Ok(t.abs()?.max_all()?.to_scalar()?) };
    let off = most(&(&tiled_latents - &latents)?)? / most(&latents)?;
    println!("latents are off by {off:.3}");
    assert!(0.0 < off && off < 0.2, "latents are off by {off:.3}");
    Ok(())
}

#[test]
fn memory_does_not_grow_with_the_picture() -> Result<()> {
    let _alone = ALONE.lock();
    assert_eq!(Tiles::default().of(128, 128), None);
    assert_eq!(Tiles::default().of(128, 129), Some(&Tiling::default()));

    let mut pipeline = mini()?;
    let latents = |h: usize, w: usize| Rng::new(1, Stream::Latents, 0).normal((1, h, w, 4), &Device::Cpu);
    let mut decode = |tiles, (h, w): (usize, usize)| -> Result<usize> {
        pipeline.tiles = tiles;
        let latents = latents(h, w)?;
        let (picture, bytes) = peak_bytes(|| pipeline.decode(&latents))?;
        assert_eq!(picture.dimensions(), (8 * w as u32, 8 * h as u32));
        Ok(bytes)
    };
    decode(WHOLE, (TILE, TILE))?; // what is made once
    let tile = decode(WHOLE, (TILE, TILE))?;
    for size in [(20, 20), (20, 38)] {
        let (cut, whole) = (decode(CUT, size)?, decode(WHOLE, size)?);
        let picture = 64 * size.0 * size.1 * 3 * size_of::<f32>();
        println!("{size:?}: {cut} in tiles, {whole} whole; one tile {tile}, the picture {picture}");
        assert!(cut < tile + 3 * picture, "{cut} bytes in tiles of {tile}, for a picture of {picture}");
        assert!(whole > 3 * cut, "{whole} bytes whole, {cut} in tiles");
    }
    Ok(())
}
