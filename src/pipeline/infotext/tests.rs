use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};
use proptest::prelude::*;

use super::*;
use crate::error::Result;

fn word(name: &str, hash: &str) -> EmbeddingUse {
    EmbeddingUse { name: name.into(), hash: Some(hash.into()) }
}

fn full() -> Recipe {
    let lora = |name: &str, strength, hash: Option<&str>| LoraUse {
        name: name.into(),
        strength,
        hash: hash.map(Into::into),
    };
    Recipe {
        prompt: "a (lighthouse:1.2) at dusk,\nsecond line".into(),
        negative_prompt: "blurry, low quality".into(),
        loras: vec![
            lora("my-style", Strength::uniform(0.8), Some("0123456789ab")),
            lora("other style", Strength::split(-1.0, 0.5), None),
        ],
        embeddings: vec![word("inkwash", "00112233aabb"), word("v1.5-neg", "ffeeddccbbaa")],
        steps: Some(25),
        sampler: Some("dpmpp_2m".into()),
        schedule: Some("karras".into()),
        cfg_scale: Some(7.5),
        seed: Some(u64::MAX),
        size_px: Some((512, 768)),
        model: Some("mini, the \"first\"".into()),
        model_hash: Some("abcdef0123".into()),
        denoising_strength: Some(0.7),
        clip_skip: Some(2),
        eta: Some(0.3),
        version: Some(this_version()),
        other: vec![("Hires upscale".into(), "2".into()), ("Emphasis".into(), "no_norm".into())],
    }
}

#[test]
fn text_is_the_web_uis() {
    let expected = format!(
        "a (lighthouse:1.2) at dusk,\nsecond line <lora:my-style:0.8> <lora:other style:0.5:-1>\n\
         Negative prompt: blurry, low quality\n\
         Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 18446744073709551615, \
         Size: 512x768, Model hash: abcdef0123, Model: \"mini, the \\\"first\\\"\", Denoising strength: 0.7, \
         Clip skip: 2, Eta: 0.3, Hires upscale: 2, Emphasis: no_norm, Lora hashes: \"my-style: 0123456789ab\", \
         TI hashes: \"inkwash: 00112233aabb, v1.5-neg: ffeeddccbbaa\", \
         Version: {}",
        this_version()
    );
    assert_eq!(full().to_text(), expected);
    assert_eq!(Recipe::parse(&expected), full());
}

#[test]
fn texts_found_in_the_wild() {
    let recipe = Recipe::parse(
        "masterpiece, <lora:epiNoise:1>, 1girl, (smile:1.1)\r\n\
         Negative prompt: (worst quality:2), lowres,\n text\n\
         Steps: 30, Sampler: DPM++ 2M SDE Karras, CFG scale: 7, Seed: 2315371453, Size: 512x768, Model hash: 6ce0161689, \
         Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, VAE: vae-ft-mse.safetensors, Denoising strength: 0.5, \
         Clip skip: 2, ENSD: 31337, ADetailer prompt: \"face, \\\"blue\\\" eyes\\nsecond\", Hires upscaler: 4x-UltraSharp, \
         Lora hashes: \"epiNoise: 81680c064e9f, unused: 000000000000\", TI hashes: \"EasyNegative: c74b4e810b03\", Version: v1.6.0",
    );
    assert_eq!(recipe.prompt, "masterpiece, , 1girl, (smile:1.1)");
    assert_eq!(recipe.negative_prompt, "(worst quality:2), lowres,\ntext");
    assert_eq!(recipe.loras[0].hash.as_deref(), Some("81680c064e9f"));
    assert_eq!(
        (recipe.sampler.as_deref(), recipe.schedule.as_deref()),
        (Some("dpmpp_2m_sde"), Some("karras"))
    );
    assert_eq!(
        (recipe.steps, recipe.seed, recipe.size_px),
        (Some(30), Some(2_315_371_453), Some((512, 768)))
    );
    assert_eq!((recipe.clip_skip, recipe.cfg_scale), (Some(2), Some(7.0)));
    let other = |key: &str| recipe.other.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    assert_eq!(other("ADetailer prompt"), Some("face, \"blue\" eyes\nsecond"));
    assert_eq!(recipe.embeddings, [word("EasyNegative", "c74b4e810b03")]);
    assert_eq!(Recipe::parse(&recipe.to_text()), Recipe { loras: recipe.loras.clone(), ..recipe });

    // Fewer than three pairs: all of it is prompt. A tag of another kind stays where it is.
    let only = Recipe::parse("a scene, title: dusk, mood: calm\n<hypernet:x:1> Steps: 3");
    assert_eq!(only.prompt, "a scene, title: dusk, mood: calm\n<hypernet:x:1> Steps: 3");
    // No prompt at all; an unknown sampler; a seed that is not one; JSON that is cut short.
    let bare = Recipe::parse(
        "Steps: 20, Sampler: Restart, Seed: -1, Size: big, Civitai resources: [{\"type\":\"a\",\"b\":1}]",
    );
    assert_eq!((bare.prompt.as_str(), bare.sampler.as_deref(), bare.seed), ("", Some("Restart"), None));
    assert!(bare.other.contains(&("Seed".into(), "-1".into())));
    assert_eq!(Recipe::parse(""), Recipe::default());
}

#[test]
fn prompts_that_lines_cannot_carry_survive() {
    for prompt in [
        "",
        " a ",
        "Negative prompt: x",
        "a\n b",
        "a\r\nb",
        "Steps: 1, Size: 2x2, Seed: 3",
        "\n",
        "a\u{2028}b",
    ] {
        for negative in ["", "b ", "c\nNegative prompt: d", "\n", "Steps: 1, Size: 2x2, Seed: 3"] {
            let recipe = Recipe { prompt: prompt.into(), negative_prompt: negative.into(), ..full() };
            assert_eq!(Recipe::parse(&recipe.to_text()), recipe, "{prompt:?} {negative:?}");
            let bare =
                Recipe { prompt: prompt.into(), negative_prompt: negative.into(), ..Recipe::default() };
            let again = Recipe::parse(&bare.to_text());
            assert_eq!((again.prompt, again.negative_prompt), (bare.prompt, bare.negative_prompt));
        }
    }
}

#[test]
fn png_keeps_the_recipe_and_the_pixels() -> Result<()> {
    let picture = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8 * 40, y as u8 * 80, 7]));
    let folder = tempfile::tempdir().map_err(|e| crate::Error::io("temporary folder", e))?;
    let path = folder.path().join("one.png");
    for prompt in ["café (a:1.2)", "猫 \u{1f600}"] {
        let recipe = Recipe { prompt: prompt.into(), ..full() };
        write_png(&path, &picture, &recipe)?;
        assert_eq!(read_text(&path)?.map(|t| Recipe::parse(&t)), Some(recipe));
        let read = image::open(&path).map_err(|e| crate::Error::file(&path, e.to_string()))?;
        assert_eq!(read.into_rgb8(), picture);
    }
    let bytes = std::fs::read(&path).map_err(|e| crate::Error::io(&path, e))?;
    let check = |bytes: &[u8]| -> Result<Option<String>> {
        std::fs::write(&path, bytes).map_err(|e| crate::Error::io(&path, e))?;
        read_text(&path)
    };
    assert!(check(&bytes[..20]).is_err());
    assert!(check(b"not a picture").is_err());
    let mut plain = Vec::new();
    picture
        .write_to(&mut Cursor::new(&mut plain), ImageFormat::Png)
        .map_err(|e| crate::Error::file(&path, e.to_string()))?;
    assert_eq!(check(&plain)?, None);
    Ok(())
}

/// A JPEG with the text as the web UI writes it: EXIF, `UNICODE`, big-endian UTF-16 whatever the header says.
fn jpeg_with_comment(text: &str, big: bool) -> Vec<u8> {
    let mut comment = b"UNICODE\0".to_vec();
    comment.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    let two = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let four = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let mut tiff: Vec<u8> = if big { b"MM".to_vec() } else { b"II".to_vec() };
    let mut entry = |tag: u16, kind: u16, count: u32, value: u32, head: &[u8]| {
        tiff.extend_from_slice(head);
        tiff.extend([two(1), two(tag), two(kind)].concat());
        tiff.extend([four(count), four(value), four(0)].concat());
    };
    let head = [two(42).as_slice(), four(8).as_slice()].concat();
    entry(0x8769, 4, 1, 26, &head);
    entry(0x9286, 7, comment.len() as u32, 44, &[]);
    tiff.extend(&comment);
    let mut jpeg = Vec::new();
    let picture = RgbImage::new(8, 8);
    let _ = picture.write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg);
    let length = u16::try_from(tiff.len() + 8).unwrap_or(u16::MAX).to_be_bytes();
    let segment = [&[0xFF, 0xE1], length.as_slice(), b"Exif\0\0", &tiff].concat();
    jpeg.splice(2..2, segment);
    jpeg
}

#[test]
fn jpeg_comments_are_found_and_broken_ones_are_not_fatal() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| crate::Error::io("temporary folder", e))?;
    let path = folder.path().join("one.jpg");
    let text = full().to_text() + " 猫";
    for big in [true, false] {
        let mut bytes = jpeg_with_comment(&text, big);
        std::fs::write(&path, &bytes).map_err(|e| crate::Error::io(&path, e))?;
        assert_eq!(read_text(&path)?.as_deref(), Some(text.as_str()));
        // Any byte of the directory may be wrong.
        for at in 12..56 {
            let good = std::mem::replace(&mut bytes[at], 0xFF);
            std::fs::write(&path, &bytes).map_err(|e| crate::Error::io(&path, e))?;
            let _ = read_text(&path);
            bytes[at] = good;
        }
    }
    Ok(())
}

fn strength() -> impl Strategy<Value = Strength> {
    let words = proptest::sample::select(&[
        "0..1@0-50%",
        "unet=0.8@20-60%,te=0.3",
        "0.7@mask=\"C:\\masks, all\\<left>.png\",down.0=0.5",
        "1@outside=left.png",
        "0.5,lbw=1,0,0,0,1,1,1,0.5,1,1,1,1",
    ]);
    prop_oneof![
        (-2.0..2.0f64, -2.0..2.0f64).prop_map(|(unet, te)| Strength::split(unet, te)),
        words.prop_map(|words| words.parse().expect("a strength")),
    ]
}

fn lora() -> impl Strategy<Value = LoraUse> {
    ("[a-zA-Z0-9_. é猫-]{1,12}", strength(), proptest::option::of("[0-9a-f]{12}")).prop_filter_map(
        "names are trimmed",
        |(name, strength, hash)| {
            let name = name.trim().to_owned();
            (!name.is_empty()).then_some(LoraUse { name, strength, hash })
        },
    )
}

fn unique(loras: Vec<LoraUse>) -> Vec<LoraUse> {
    let mut seen = std::collections::BTreeSet::new();
    loras.into_iter().filter(|l| seen.insert(l.name.clone())).collect()
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        texts in ("[^<]{0,60}", "\\PC{0,60}", "[^\\x00]{0,20}"),
        numbers in (1..200usize, 0.0..30.0f64, any::<u64>(), (8..4096usize, 8..4096usize)),
        loras in proptest::collection::vec(lora(), 0..4),
        words in proptest::collection::vec(("[a-z<][a-z0-9 .()-]{0,8}[a-z>]", "[0-9a-f]{12}"), 0..3),
        maybe in (proptest::option::of(0.0..1.0f64), proptest::option::of(1..12usize), proptest::option::of("[0-9a-f]{10}")),
        other in proptest::collection::vec(("Extra [a-z /-]{0,6}[a-z]", "\\PC{1,20}"), 0..3),
    ) {
        let (prompt, negative_prompt, model) = texts;
        let (steps, cfg_scale, seed, size_px) = numbers;
        let recipe = Recipe {
            prompt, negative_prompt, loras: unique(loras),
            embeddings: words.iter().map(|(name, hash)| word(name, hash)).collect(),
            steps: Some(steps), sampler: Some("euler_a".into()), schedule: Some("sgm_uniform".into()),
            cfg_scale: Some(cfg_scale), seed: Some(seed), size_px: Some(size_px),
            model: Some(model).filter(|m| !m.is_empty()), model_hash: maybe.2, denoising_strength: maybe.0, clip_skip: maybe.1,
            eta: maybe.0, version: Some(this_version()), other,
        };
        prop_assert_eq!(Recipe::parse(&recipe.to_text()), recipe);
    }

    #[test]
    fn no_text_breaks_the_reader(text in "(\\PC|\n|\"|:|,|Steps: 1){0,80}") {
        let once = Recipe::parse(&text);
        let _ = Recipe::parse(&once.to_text());
    }
}
