use std::{collections::HashMap, fs};

use safetensors::{Dtype, tensor::TensorView};

use super::*;

/// A model with text encoders of these widths.
fn table(widths: &[usize]) -> NameTable {
    let part = |i| [Part::TextEncoder, Part::TextEncoder2][i];
    let name = "text_model.embeddings.token_embedding";
    let shape =
        |(i, width): (usize, &usize)| (LayerPath { part: part(i), name: name.into() }, vec![100, *width]);
    NameTable::from_shapes(widths.iter().enumerate().map(shape).collect())
}

type Keys<'a> = &'a [(&'a str, Dtype, &'a [usize], u8)];

/// Tensors of one repeated byte: 0 is the number 0, 0xff not a number.
fn bytes(keys: Keys<'_>) -> Vec<u8> {
    let data: Vec<Vec<u8>> = keys
        .iter()
        .map(|(_, t, shape, byte)| vec![*byte; shape.iter().product::<usize>() * t.bitsize() / 8])
        .collect();
    let views = keys.iter().zip(&data).map(|((key, dtype, shape, _), data)| {
        (*key, TensorView::new(*dtype, shape.to_vec(), data).expect("a tensor"))
    });
    safetensors::serialize(views, None::<HashMap<String, String>>).expect("a file")
}

fn load(keys: Keys<'_>, widths: &[usize]) -> Result<Embedding> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", e))?;
    let path = folder.path().join("my-word.safetensors");
    fs::write(&path, bytes(keys)).map_err(|e| Error::io(&path, e))?;
    Embedding::load(&path, &table(widths))
}

use Dtype::{BF16, F16, F32, I32};

#[test]
fn every_spelling_is_read() -> Result<()> {
    let cases: [(Keys<'_>, &[usize], usize); 8] = [
        (&[("emb_params", F32, &[3, 768], 0)], &[768], 3),
        (&[("emb_params", F16, &[1, 1024], 0)], &[1024], 1),
        (&[("string_to_param.*", BF16, &[75, 768], 0)], &[768], 75),
        (&[("<cat-toy>", F32, &[768], 0)], &[768], 1),
        (&[("clip_l", F32, &[2, 768], 0)], &[768], 2),
        (&[("clip_l", F16, &[2, 768], 0), ("clip_g", F16, &[2, 1280], 0)], &[768, 1280], 2),
        (&[("../../escape", F32, &[1, 768], 0)], &[768], 1),
        (&[("emb_params", F32, &[1, 16], 0)], &[16], 1),
    ];
    for (keys, widths, length) in cases {
        let embedding = load(keys, widths)?;
        assert_eq!((embedding.name.as_str(), embedding.length()), ("my-word", length), "{keys:?}");
        assert_eq!(embedding.hash.as_ref().map(String::len), Some(12));
        assert_eq!(embedding.vectors.len(), widths.len());
    }
    Ok(())
}

#[test]
fn hostile_and_foreign_files_are_refused() {
    let cases: &[(Keys<'_>, &[usize], &str)] = &[
        (&[("emb_params", F32, &[2, 768], 0xff)], &[768], "`emb_params` has values that are NaN"),
        (&[("emb_params", F16, &[1_000_000, 1], 0)], &[768], "[1000000, 1], expected 1 to 75 vectors"),
        (&[("emb_params", F32, &[9_000_000], 0)], &[768], "MB, expected an embedding of at most 16"),
        (&[("emb_params", F32, &[76, 768], 0)], &[768], "expected 1 to 75 vectors"),
        (&[("emb_params", F32, &[0, 768], 0)], &[768], "expected 1 to 75 vectors"),
        (&[("emb_params", F32, &[], 0)], &[768], "expected (vectors, width)"),
        (&[("emb_params", F32, &[2, 2, 768], 0)], &[768], "expected (vectors, width)"),
        (&[("emb_params", I32, &[2, 768], 0)], &[768], "expected floating-point numbers"),
        (
            &[("emb_params", F32, &[2, 768], 0)],
            &[768, 1280],
            "made for SD 1.x (text encoder width 768), the model is SDXL (text encoder width 768 + 1280)",
        ),
        (
            &[("clip_l", F32, &[2, 768], 0), ("clip_g", F32, &[2, 1280], 0)],
            &[1024],
            "made for SDXL (text encoder width 768 + 1280), the model is SD 2.x (text encoder width 1024)",
        ),
        (&[("clip_g", F32, &[2, 768], 0), ("clip_l", F32, &[2, 1280], 0)], &[768, 1280], "the model is SDXL"),
        (
            &[("clip_l", F32, &[2, 768], 0), ("clip_g", F32, &[3, 1280], 0)],
            &[768, 1280],
            "`clip_l` has 2 vectors and `clip_g` 3",
        ),
        (
            &[("clip_l", F32, &[2, 768], 0), ("clip_l_out", F32, &[2, 768], 0)],
            &[768],
            "`clip_l_out`: an embedding added behind the text encoder (OneTrainer)",
        ),
        (
            &[("emb_params", F32, &[2, 768], 0), ("clip_l", F32, &[2, 768], 0)],
            &[768],
            "are for the same text encoder",
        ),
        (
            &[
                ("lora_unet_x.lora_up.weight", F32, &[2, 2], 0),
                ("lora_unet_x.lora_down.weight", F32, &[2, 2], 0),
            ],
            &[768],
            "is not part of an embedding",
        ),
        (&[], &[768], "no tensors"),
        (&[("emb_params", F32, &[1, 768], 0)], &[], "the model is"),
    ];
    for (keys, widths, expected) in cases {
        let found = load(keys, widths).expect_err("a refusal").to_string();
        assert!(found.contains(expected), "{keys:?}: {found}");
    }
}

#[test]
fn bundles_are_data_never_paths() -> Result<()> {
    let bundle = |keys: Keys<'_>, widths: &[usize]| {
        Bundle::read(&SafetensorsFile::from_bytes("x", bytes(keys))?, &table(widths))
    };
    let many = bundle(
        &[
            ("bundle_emb.../../etc/passwd.emb_params", F32, &[2, 768], 0),
            ("bundle_emb.v1.5-neg.string_to_param.*", F16, &[3, 768], 0),
            ("bundle_emb.dog.clip_l", F32, &[1, 768], 0),
            ("bundle_emb.dog.clip_l_out", F32, &[1, 768], 0),
            ("bundle_emb.cat.surprise", F32, &[1, 768], 0),
            ("bundle_emb.cat", F32, &[1, 768], 0),
            ("lora_unet_x.alpha", F32, &[], 0),
        ],
        &[768],
    )?;
    let names: Vec<(&str, usize)> = many.embeddings.iter().map(|e| (e.name.as_str(), e.length())).collect();
    assert_eq!(names, [("../../etc/passwd", 2), ("dog", 1), ("v1.5-neg", 3)]);
    assert_eq!((many.matched, many.unmatched.len()), (3, 3));
    assert!(many.embeddings.iter().all(|e| e.hash.is_none()));

    let without = bundle(&[("bundle_emb.dog.clip_l", F32, &[1, 768], 0)], &[])?;
    assert_eq!(without.unmatched[0].reason, Reason::MissingComponent(Part::TextEncoder));
    for (keys, expected) in [
        (
            &[("bundle_emb.dog.clip_l", F32, &[1, 1024][..], 0)],
            "bundled embedding `dog`: this embedding was made for",
        ),
        (&[("bundle_emb..clip_l", F32, &[1, 768][..], 0)], "cannot be a word of a prompt"),
        (&[("bundle_emb.dog.clip_l", F32, &[1, 768][..], 0xff)], "NaN"),
    ] {
        let found = bundle(keys, &[768]).expect_err("a refusal").to_string();
        assert!(found.contains(expected), "{found}");
    }
    Ok(())
}
