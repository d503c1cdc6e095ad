//! Adapter files of real tools: every key applied, every weight's change equal to what diffusers and peft make of it.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Error, Result,
    adapter::{Adapter, Delta, Dialect, LoadOptions, NameTable, SaveOptions},
    nn::{LayerPath, Part},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapter").join(name)
}

fn layer(dotted: &str) -> LayerPath {
    let (part, name) = dotted.split_once('.').expect("a component and a path");
    let part = match part {
        "unet" => Part::Unet,
        "text_encoder" => Part::TextEncoder,
        _ => Part::TextEncoder2,
    };
    LayerPath { part, name: name.into() }
}

fn table(family: &str) -> Result<NameTable> {
    let path = golden(&format!("{family}_shapes.json"));
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).expect("a listing of shapes");
    Ok(NameTable::from_shapes(shapes.into_iter().map(|(name, shape)| (layer(&name), shape)).collect()))
}

fn tensors(file: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(golden(file), &Device::Cpu)?)
}

/// The largest |a - b| relative to the largest |b|.
fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    let max = |t: &Tensor| -> Result<f32> { Ok(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?) };
    Ok(max(&(a - b)?)? / max(b)?)
}

fn worst_against(family: &str, adapter: &Adapter, scaled: bool) -> Result<f32> {
    let (table, expected) = (table(family)?, tensors(&format!("{family}_expected.safetensors"))?);
    let mut worst = 0f32;
    for (path, delta) in &adapter.layers {
        let shape = table.shape(path).expect("resolved");
        let mut found = delta.weight(shape)?;
        if !scaled {
            // These spellings lose alpha; the expectation has it: 2 at rank 4.
            found = (found * 0.5)?;
        }
        worst = worst.max(difference(&found, &expected[&path.to_string()].reshape(shape)?)?);
    }
    Ok(worst)
}

#[test]
fn every_spelling_gives_the_weights_diffusers_gives() -> Result<()> {
    for (file, family, layers, dialect) in [
        ("sd1_kohya", "sd1", None, "kohya"),
        ("sd1_diffusers", "sd1", None, "diffusers"),
        ("sd1_mid", "sd1", Some(40), "diffusers"),
        ("sd1_processors", "sd1", Some(40), "diffusers, attention processors"),
        ("sd2_kohya", "sd2", None, "kohya"),
        ("sd2_diffusers", "sd2", None, "diffusers"),
        ("sdxl_kohya", "sdxl", None, "kohya"),
        ("sdxl_diffusers", "sdxl", None, "diffusers"),
    ] {
        let adapter =
            Adapter::load(golden(&format!("{file}.safetensors")), &table(family)?, &LoadOptions::default())?;
        assert_eq!(adapter.report.coverage(), 1.0, "{file}");
        assert!(adapter.report.dialect.contains(dialect), "{file}: {}", adapter.report.dialect);
        let expected = tensors(&format!("{family}_expected.safetensors"))?.len();
        match layers {
            None => assert_eq!(adapter.layers.len(), expected, "{file}"),
            Some(at_least) => assert!(adapter.layers.len() >= at_least, "{file}: {}", adapter.layers.len()),
        }
        let worst = worst_against(family, &adapter, layers.is_none())?;
        assert!(worst <= 1e-5, "{file}: {worst:e}");
    }
    Ok(())
}

#[test]
fn a_round_trip_through_diffusers_names_returns_the_same_bytes() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    for family in ["sd1", "sd2", "sdxl"] {
        let table = table(family)?;
        let load = |path: PathBuf| Adapter::load(path, &table, &LoadOptions::default());
        let save = |adapter: &Adapter, dialect, name: &str| {
            adapter.save(at(name), &table, &SaveOptions { dialect, dtype: None })
        };
        let original = load(golden(&format!("{family}_kohya.safetensors")))?;
        save(&original, Dialect::Kohya, "a")?;
        save(&load(at("a"))?, Dialect::Diffusers, "b")?;
        let mut back = load(at("b"))?;
        assert_eq!(back.layers.len(), original.layers.len());
        back.metadata = original.metadata.clone();
        save(&back, Dialect::Kohya, "c")?;
        let read = |name: &str| std::fs::read(at(name)).map_err(|e| Error::io(at(name), e));
        assert_eq!(read("a")?, read("c")?, "{family}");
        // And the file's own tensors, but for alphas, whose dtype follows the factors'.
        let (ours, theirs) = (
            candle_core::safetensors::load(at("c"), &Device::Cpu)?,
            tensors(&format!("{family}_kohya.safetensors"))?,
        );
        assert_eq!(ours.len(), theirs.len());
        for (key, tensor) in &theirs {
            let same = (ours[key].to_dtype(DType::F64)? - tensor.to_dtype(DType::F64)?)?.abs()?.sum_all()?;
            assert_eq!(same.to_scalar::<f64>()?, 0.0, "{key}");
            assert_eq!(ours[key].dims(), tensor.dims(), "{key}");
        }
    }
    Ok(())
}

/// A file with some of `family`'s keys changed.
fn altered(
    family: &str,
    alter: impl Fn(&mut HashMap<String, Tensor>) -> Result<()>,
) -> Result<Result<Adapter>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("altered.safetensors");
    let mut all = tensors(&format!("{family}_kohya.safetensors"))?;
    alter(&mut all)?;
    candle_core::safetensors::save(&all, &path)?;
    Ok(Adapter::load(path, &table(family)?, &LoadOptions::default()))
}

const KEY: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";

fn message(outcome: Result<Adapter>) -> String {
    outcome.map(|_| ()).expect_err("must be refused").to_string()
}

#[test]
fn damaged_files_are_refused_by_key_and_reason() -> Result<()> {
    let (down, up, alpha) =
        (format!("{KEY}.lora_down.weight"), format!("{KEY}.lora_up.weight"), format!("{KEY}.alpha"));
    let without = |key: &str| {
        altered("sd1", |all| {
            all.remove(key);
            Ok(())
        })
    };
    let set = |key: &str, make: &dyn Fn(&Tensor) -> Result<Tensor>| {
        altered("sd1", |all| {
            let tensor = make(&all[key])?;
            all.insert(key.to_string(), tensor);
            Ok(())
        })
    };
    let refused = [
        (without(&up)?, "the down factor has no up factor"),
        (without(&down)?, "the up factor has no down factor"),
        (set(&up, &|t| Ok((t / 0.0)?))?, ".lora_up.weight` holds NaN or infinity"),
        (set(&alpha, &|t| Ok((t * f64::NAN)?))?, ".alpha` is NaN"),
        (set(&alpha, &|t| Ok((t * -1.0)?))?, "alpha is -2 at rank 4"),
        (set(&alpha, &|t| Ok((t * 1e9)?))?, "alpha is 2000000000 at rank 4"),
        (
            set(&alpha, &|_| Ok(Tensor::zeros(3, DType::F32, &Device::Cpu)?))?,
            ".alpha` has shape [3], expected one number",
        ),
        (set(&down, &|t| Ok(t.narrow(0, 0, 3)?))?, "the rank is 3 in the down factor and 4 in the up factor"),
        (set(&down, &|t| Ok(t.to_dtype(DType::I64)?))?, "stored as I64, expected floats"),
        (set(&down, &|t| Ok(t.narrow(1, 0, 2)?))?, "do not fit the model's weight [4, 4]"),
        (set(&down, &|_| Ok(Tensor::zeros((0, 4), DType::F32, &Device::Cpu)?))?, "none of them 0"),
    ];
    for (outcome, expected) in refused {
        let message = message(outcome);
        assert!(message.contains(expected) && message.contains(KEY), "{message}");
    }
    Ok(())
}

#[test]
fn nothing_is_dropped_silently() -> Result<()> {
    let one = || Tensor::ones((4, 4), DType::F32, &Device::Cpu);
    for (key, expected) in [
        (format!("{KEY}.reshape_weight"), "a padded weight (Flux) is not supported yet"),
        (format!("{KEY}.surprise"), "the key ends in no known parameter name"),
        ("lora_te3_x.lora_down.weight".into(), "belongs to a T5 text encoder (SD3)"),
        ("lora_te2_x.lora_down.weight".into(), "the model has no second text encoder"),
        (
            format!("{KEY}q.alpha"),
            "the nearest is `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`",
        ),
    ] {
        let outcome = altered("sd1", |all| {
            all.insert(key.clone(), one()?);
            Ok(())
        })?;
        let message = message(outcome);
        assert!(message.contains(expected) && message.contains(&key), "{message}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("odd.safetensors");
    let mut all = tensors("sd1_kohya.safetensors")?;
    all.insert(format!("{KEY}.surprise"), one()?);
    candle_core::safetensors::save(&all, &path)?;
    let adapter = Adapter::load(
        &path,
        &table("sd1")?,
        &LoadOptions { allow_unmatched: true, ..LoadOptions::default() },
    )?;
    assert_eq!(adapter.report.unmatched.len(), 1);
    assert!(adapter.report.coverage() < 1.0);
    Ok(())
}

/// Files people take for adapters, told by a key of theirs.
#[test]
fn files_that_are_no_adapters_are_named() -> Result<()> {
    for (key, expected) in [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "Flux"),
        (
            "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
            "a transformer model (SD3, Flux)",
        ),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "SD3"),
        ("lora_prior_unet_down_blocks_0.lora_down.weight", "Stable Cascade"),
        ("unet:0:up", "cloneofsimo's lora"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("lora_controlnet", "a Control-LoRA"),
        ("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.down.0.weight", "a ControlNet-LLLite"),
        ("image_proj.proj.weight", "an IP-Adapter"),
        ("first_stage_model.decoder.conv_in.weight", "a whole checkpoint"),
        ("emb_params", "a textual inversion"),
        ("clip_g", "a textual inversion"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("other.safetensors");
        let only = HashMap::from([(key.to_string(), Tensor::ones((4, 4), DType::F32, &Device::Cpu)?)]);
        candle_core::safetensors::save(&only, &path)?;
        let outcome =
            Adapter::load(path, &table("sd1")?, &LoadOptions { allow_unmatched: true, ..Default::default() });
        let message = message(outcome);
        assert!(
            message.contains("this is no adapter for Stable Diffusion") && message.contains(expected),
            "{key}: {message}"
        );
    }
    Ok(())
}

#[test]
fn another_familys_adapter_says_so() -> Result<()> {
    let outcome = Adapter::load(
        golden("sdxl_kohya.safetensors"),
        &table("sd1")?,
        &LoadOptions { allow_unmatched: true, ..LoadOptions::default() },
    );
    let message = message(outcome);
    let expected = "this adapter was trained for another model (cross-attention 36), the model is another model (cross-attention 12)";
    assert!(message.ends_with(expected), "{message}");
    Ok(())
}

#[test]
fn the_same_parameter_twice_must_be_the_same() -> Result<()> {
    let twin = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight";
    let with_twin = |factor: f64| {
        altered("sd1", |all| {
            let tensor = (&all[&format!("{KEY}.lora_down.weight")] * factor)?;
            all.insert(twin.into(), tensor);
            Ok(())
        })
    };
    assert!(with_twin(1.0)?.is_ok());
    assert!(message(with_twin(2.0)?).contains("are the same parameter with different values"));
    Ok(())
}

/// up · mid · down by the sum itself.
#[test]
fn a_tucker_core_is_contracted() -> Result<()> {
    use scumble::{
        adapter::LowRank,
        random::{Rng, Stream},
    };
    let mut rng = Rng::new(3, Stream::Weights, 0);
    let (o, r, i, k) = (5, 3, 4, 3);
    let up = rng.normal((o, r, 1, 1), &Device::Cpu)?;
    let mid = rng.normal((r, r, k, k), &Device::Cpu)?;
    let down = rng.normal((r, i, 1, 1), &Device::Cpu)?;
    let (u, d): (Vec<Vec<f32>>, Vec<Vec<f32>>) =
        (up.flatten_from(1)?.to_vec2()?, down.flatten_from(1)?.to_vec2()?);
    let m: Vec<Vec<Vec<f32>>> = mid.flatten_from(2)?.to_vec3()?;
    let mut expected = vec![0f32; o * i * k * k];
    for (at, value) in expected.iter_mut().enumerate() {
        let (out, input, tap) = (at / (i * k * k), at / (k * k) % i, at % (k * k));
        *value = (0..r * r).map(|ab| u[out][ab / r] * m[ab / r][ab % r][tap] * d[ab % r][input]).sum::<f32>()
            * 1.5
            / 3.0;
    }
    let delta = Delta::LowRank(LowRank { down, up, mid: Some(mid), alpha: Some(1.5) });
    delta.check(&[o, i, k, k])?;
    assert!(delta.check(&[o, i, k, 1]).is_err());
    let expected = Tensor::from_vec(expected, (o, i, k, k), &Device::Cpu)?;
    assert!(difference(&delta.weight(&[o, i, k, k])?, &expected)? < 1e-6);
    Ok(())
}
