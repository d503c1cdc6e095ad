//! Folders as people have them, and files that lie.

use std::{fs, io::Cursor, path::Path};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use scumble::{
    dataset::{
        BucketOptions, CaptionOptions, Dataset, LatentCache, Limits, Problem, ScanOptions, View, doctor,
    },
    error::{Error, Result},
    progress::{CancelToken, Event},
};
use tempfile::TempDir;

fn options() -> ScanOptions {
    ScanOptions { buckets: BucketOptions::square(128, 32), ..ScanOptions::default() }
}

fn scan(root: &Path) -> Result<Dataset> {
    Dataset::scan(root, &options(), &mut (), &CancelToken::default())
}

/// A picture whose left half is dark and right half light, so that mirroring shows.
fn picture(width: u32, height: u32) -> DynamicImage {
    RgbImage::from_fn(width, height, |x, y| {
        let light = if x * 2 < width { 20 } else { 220 };
        Rgb([light, (y * 255 / height) as u8, 90])
    })
    .into()
}

fn bytes(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn put(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn reasons(dataset: &Dataset) -> Vec<String> {
    dataset.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn flat_folder_reads_every_format_and_skips_hidden_files() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("10_cats");
    let formats = [
        ("a.png", ImageFormat::Png),
        ("b.JPG", ImageFormat::Jpeg),
        ("c.webp", ImageFormat::WebP),
        ("d.bmp", ImageFormat::Bmp),
        ("e.gif", ImageFormat::Gif),
        ("f.tiff", ImageFormat::Tiff),
        // The content decides, not the name.
        ("g.png", ImageFormat::Jpeg),
    ];
    for (name, format) in formats {
        put(&root, name, bytes(&picture(140, 130), format));
    }
    put(&root, ".hidden.png", "junk");
    put(&root, "._a.png", "junk");
    put(&root, "notes.json", "{}");
    put(&root, "phone.heic", "junk");
    put(&root, "a.txt", "\u{feff}  a tabby,\n asleep ");
    put(&root, "b.JPG.caption", "a black cat");
    put(&root, "c.txt", " \n");
    let dataset = scan(&root).unwrap();
    assert_eq!(dataset.len(), formats.len());
    assert_eq!(dataset.item(0).caption, "a tabby, asleep");
    assert_eq!(dataset.item(1).caption, "a black cat");
    assert_eq!((dataset.item(2).caption.as_str(), dataset.item(2).captioned), ("cats", false));
    assert_eq!(dataset.samples_per_epoch(), 70, "the folder's own name asks for 10 repeats");
    assert_eq!(reasons(&dataset).len(), 1, "{:?}", reasons(&dataset));
    assert!(reasons(&dataset)[0].contains("phone.heic"));
}

#[test]
fn kohya_folders_repeat_and_strangers_are_named() {
    let dir = TempDir::new().unwrap();
    let good = bytes(&picture(128, 128), ImageFormat::Png);
    put(dir.path(), "3_red_fox/1.png", &good);
    put(dir.path(), "3_red_fox/2.png", &good);
    put(dir.path(), "2_owl/1.png", bytes(&picture(200, 100), ImageFormat::Png));
    put(dir.path(), "regularisation/1.png", &good);
    put(dir.path(), "log/events", "x");
    let dataset = scan(dir.path()).unwrap();
    assert_eq!(dataset.samples_per_epoch(), 8);
    assert_eq!(dataset.item(1).caption, "red_fox");
    assert!(reasons(&dataset).iter().any(|r| r.contains("regularisation") && r.contains("10_name")));
    assert!(!reasons(&dataset).iter().any(|r| r.contains("log")));
    assert_eq!(dataset.tag_frequency()["3_red_fox"]["red_fox"], 2);

    put(dir.path(), "loose.png", &good);
    let mixed = scan(dir.path()).unwrap();
    assert_eq!(mixed.samples_per_epoch(), 9);
    assert!(mixed.problems().iter().any(|p| matches!(p, Problem::Layout { .. })), "a mix is reported");
}

#[test]
fn batches_are_reproducible_lose_nothing_and_keep_one_bucket() {
    let dir = TempDir::new().unwrap();
    for i in 0..7u32 {
        let size = if i % 3 == 0 { (200, 100) } else { (128, 128) };
        put(dir.path(), &format!("5_x/{i}.png"), bytes(&picture(size.0, size.1), ImageFormat::Png));
    }
    let dataset = scan(dir.path()).unwrap();
    let batches = dataset.batches(0, 4, 9);
    assert_eq!(batches, dataset.batches(0, 4, 9));
    assert_ne!(batches, dataset.batches(1, 4, 9));
    assert_ne!(batches, dataset.batches(0, 4, 10));
    for index in 0..dataset.len() {
        assert_eq!(batches.iter().flatten().filter(|i| **i == index).count(), 5);
    }
    for batch in &batches {
        let bucket = |i: usize| dataset.item(i).placement.bucket;
        assert!(batch.len() <= 4 && batch.iter().all(|i| bucket(*i) == bucket(batch[0])));
    }
}

#[test]
fn hostile_pictures_are_skipped_and_named() {
    let dir = TempDir::new().unwrap();
    let jpeg = bytes(&picture(200, 200), ImageFormat::Jpeg);
    let png = bytes(&picture(200, 200), ImageFormat::Png);
    let mut garbled = jpeg.clone();
    garbled[2..120].fill(0xa5);
    // A PNG header that promises 2^31 - 1 by 2^31 - 1 pixels.
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("bomb.png", bomb, "above the limit"),
        ("cut.jpg", jpeg[..jpeg.len() * 2 / 3].to_vec(), "stops early"),
        ("cut.png", png[..png.len() / 2].to_vec(), "broken picture"),
        ("dot.png", bytes(&picture(1, 1), ImageFormat::Png), "1x1 px is too small"),
        ("empty.png", Vec::new(), "the file is empty"),
        ("garbled.jpg", garbled, "picture"),
        ("page.jpg", b"<!DOCTYPE html><html>not found</html>".to_vec(), "not a picture"),
        ("text.png", b"just some text".to_vec(), "not a picture"),
        ("header.webp", b"RIFF\xff\xff\xff\xffWEBPVP8 ".to_vec(), "picture"),
    ];
    for (name, content, _) in &cases {
        put(dir.path(), name, content);
    }
    let error = scan(dir.path()).unwrap_err();
    assert!(error.to_string().contains("all 9 pictures had to be skipped"), "{error}");

    put(dir.path(), "good.jpg", &jpeg);
    let mut warnings = Vec::new();
    let mut observer = |e: &Event<'_>| {
        if let Event::Warning { message } = e {
            warnings.push((*message).to_owned());
        }
    };
    let dataset = Dataset::scan(dir.path(), &options(), &mut observer, &CancelToken::default()).unwrap();
    assert_eq!(dataset.len(), 1);
    for (name, _, reason) in &cases {
        let named = |w: &&String| w.contains(name) && w.contains(reason);
        assert!(warnings.iter().any(|w| named(&w)), "{name}: {reason} not in {warnings:#?}");
    }
}

#[test]
fn a_panorama_of_20000_px_is_read_and_an_absurd_one_refused() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "wide.png", bytes(&DynamicImage::new_rgb8(20_000, 64), ImageFormat::Png));
    let dataset = scan(dir.path()).unwrap();
    let shape = dataset.pixels(0, View::CENTRE).unwrap().pixels.dims().to_vec();
    let bucket = dataset.item(0).placement.bucket;
    assert_eq!(shape, [bucket.height as usize, bucket.width as usize, 3]);
    assert!(bucket.width > bucket.height);

    let limits = Limits { max_pixels: 1_000_000, ..Limits::default() };
    let small = ScanOptions { limits, ..options() };
    let error = Dataset::scan(dir.path(), &small, &mut (), &CancelToken::default()).unwrap_err();
    assert!(
        error.to_string().contains("wide.png: 20000x64 px is above the limit of 1 megapixels"),
        "{error}"
    );
}

#[test]
fn folders_without_pictures_say_what_to_do() {
    let dir = TempDir::new().unwrap();
    let hinted = |root: &Path, message: &str, hint: &str| {
        let error = scan(root).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
    };
    hinted(dir.path(), "the folder is empty", "10_cat/photo.jpg");
    hinted(&dir.path().join("nowhere"), "nowhere", "a folder of pictures");
    put(dir.path(), "readme.md", "hello");
    hinted(dir.path(), "no pictures found", "N_name");
    hinted(&dir.path().join("readme.md"), "found a file", "N_name");
    put(dir.path(), "cats/a.png", "x");
    hinted(dir.path(), "no pictures found", "rename it to `10_cats`");
    fs::remove_dir_all(dir.path().join("cats")).unwrap();
    put(dir.path(), "img/10_cat/a.png", "x");
    hinted(dir.path(), "no pictures found", "there are pictures below `img`: pass");
}

#[test]
fn orientation_and_transparency_are_applied() {
    let dir = TempDir::new().unwrap();
    // EXIF orientation 6: shown turned by 90° clockwise.
    let mut turned = bytes(&picture(192, 96), ImageFormat::Jpeg);
    let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    turned.splice(2..2, exif.iter().copied());
    put(dir.path(), "turned.jpg", turned);
    let clear = RgbaImage::from_pixel(128, 128, Rgba([0, 0, 0, 0]));
    put(dir.path(), "clear.png", bytes(&clear.into(), ImageFormat::Png));
    let dataset = scan(dir.path()).unwrap();
    let (clear, turned) = (dataset.item(0), dataset.item(1));
    assert_eq!(turned.size_px, (96, 192));
    assert!(turned.placement.bucket.height > turned.placement.bucket.width);
    assert!(clear.alpha && !turned.alpha);
    let white =
        dataset.pixels(0, View::CENTRE).unwrap().pixels.min_all().unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(white, 1.0);
}

#[test]
fn views_crop_and_mirror() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "a.png", bytes(&picture(128, 128), ImageFormat::Png));
    let dataset = scan(dir.path()).unwrap();
    let plain = dataset.pixels(0, View::CENTRE).unwrap().pixels.to_vec3::<f32>().unwrap();
    let flipped =
        dataset.pixels(0, View { flip: true, ..View::CENTRE }).unwrap().pixels.to_vec3::<f32>().unwrap();
    for (row, mirrored) in plain.iter().zip(&flipped) {
        assert!(row.iter().eq(mirrored.iter().rev()));
    }
    assert!(plain[0][0][0] < -0.8 && plain[0][127][0] > 0.7, "dark left, light right");
    assert_eq!(View::random(3, 5, false, false), View::CENTRE);
    assert_eq!(View::random(3, 5, true, true), View::random(3, 5, true, true));
}

#[test]
fn captions_vary_only_as_asked_and_by_seed() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "a.png", bytes(&picture(128, 128), ImageFormat::Png));
    put(dir.path(), "a.txt", "fox, one, two, three, four, five");
    let with = |captions: CaptionOptions| {
        let options = ScanOptions { captions, ..options() };
        Dataset::scan(dir.path(), &options, &mut (), &CancelToken::default()).unwrap()
    };
    let trigger = Some("inkstyle".to_owned());
    let shuffled = with(CaptionOptions {
        trigger: trigger.clone(),
        shuffle: true,
        keep_tokens: 2,
        ..Default::default()
    });
    let captions: Vec<String> = (0..20).map(|sample| shuffled.caption(0, 1, sample)).collect();
    assert!(captions.iter().all(|c| c.starts_with("inkstyle, fox, ") && c.contains("three")));
    assert!(captions.iter().any(|c| *c != captions[0]));
    assert_eq!(captions[7], shuffled.caption(0, 1, 7));

    let dropping = with(CaptionOptions { dropout: 0.5, ..Default::default() });
    let dropped = (0..400).filter(|sample| dropping.caption(0, 1, *sample).is_empty()).count();
    assert!((150..250).contains(&dropped), "{dropped} of 400");

    put(dir.path(), "a.txt", "a Fox in Inkstyle");
    assert_eq!(with(CaptionOptions { trigger, ..Default::default() }).item(0).caption, "a Fox in Inkstyle");
}

#[test]
fn the_doctor_finds_what_is_doubtful() {
    let dir = TempDir::new().unwrap();
    let same = bytes(&picture(128, 128), ImageFormat::Png);
    put(dir.path(), "a.png", &same);
    put(dir.path(), "b.png", &same);
    put(dir.path(), "small.png", bytes(&picture(40, 40), ImageFormat::Png));
    put(dir.path(), "a.txt", "word ".repeat(90));
    put(dir.path(), "b.txt", [0xff, 0xfe, 0x00]);
    let report = doctor::examine(&scan(dir.path()).unwrap(), Some(&|c| c.split_whitespace().count()));
    let has =
        |what: &dyn Fn(&Problem) -> bool| assert!(report.problems.iter().any(what), "{:#?}", report.problems);
    has(&|p| matches!(p, Problem::Duplicate { paths } if paths.len() == 2));
    has(&|p| matches!(p, Problem::LongCaption { tokens: 90, .. }));
    has(&|p| matches!(p, Problem::MissingCaptions { paths, .. } if paths.len() == 2));
    has(&|p| matches!(p, Problem::BadCaption { .. }));
    has(&|p| matches!(p, Problem::Upscaled { paths, .. } if paths.len() == 1));
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains("\"kind\":\"duplicate\"") && json.contains("\"128x128\":3"), "{json}");
}

#[test]
fn latents_are_cached_by_content_and_broken_entries_made_again() {
    let (dir, store) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(dir.path(), "a.png", bytes(&picture(128, 128), ImageFormat::Png));
    put(dir.path(), "b.png", bytes(&picture(256, 128), ImageFormat::Png));
    let fill = |model: &str| -> (usize, LatentCache) {
        let dataset = scan(dir.path()).unwrap();
        let (mut made, mut cache) = (0, LatentCache::new(Some(store.path()), model).unwrap());
        let encode = |pixels: &candle_core::Tensor| {
            made += 1;
            Ok(pixels.mean_keepdim(3)?)
        };
        cache.fill(&dataset, true, encode, &mut (), &CancelToken::default()).unwrap();
        (made, cache)
    };
    let (made, first) = fill("vae-1");
    assert_eq!(made, 4);
    let (made, again) = fill("vae-1");
    assert_eq!(made, 0);
    let values = |c: &LatentCache| c.get(1, true).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&first), values(&again));
    assert_eq!(fill("vae-2").0, 4, "another model has other latents");

    let entry = fs::read_dir(store.path()).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&entry).unwrap();
    for broken in [&whole[..whole.len() / 2], &[0xff; 40], &[]] {
        fs::write(&entry, broken).unwrap();
        assert_eq!(fill("vae-1").0 + fill("vae-2").0, 1);
        assert_eq!(fs::read(&entry).unwrap(), whole);
    }

    let dataset = scan(dir.path()).unwrap();
    let mut cache = LatentCache::new(None, "vae-1").unwrap();
    let nan = |p: &candle_core::Tensor| Ok(p.affine(f64::NAN, 0.0)?);
    let error = cache.fill(&dataset, false, nan, &mut (), &CancelToken::default()).unwrap_err();
    assert!(error.to_string().contains("a.png") && error.to_string().contains("not finite"), "{error}");
}

#[test]
fn cancel_stops_a_scan() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "a.png", bytes(&picture(128, 128), ImageFormat::Png));
    let cancel = CancelToken::default();
    cancel.cancel();
    assert!(matches!(Dataset::scan(dir.path(), &options(), &mut (), &cancel), Err(Error::Cancelled)));
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}
