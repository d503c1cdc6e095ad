//! Baking and extracting: the checkpoint that is written holds base + blend on every layer, the base's own numbers
//! everywhere else, in each layout; and what was baked is extracted again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use scumble::{
    Result,
    adapter::{
        Adapter, Blend, Delta, LoadOptions, LowRank, NameTable, Strength,
        bake::{self, BakeOptions},
        extract::{self, ExtractOptions},
        fuse::fused_weight,
        layers::Progress,
        truncate::total_error,
    },
    models::{UNetConfig, family::unet_config},
    nn::{LayerPath, Part},
    pipeline::{GenerateRequest, Pipeline, export, layers},
    progress::CancelToken,
    random::{Rng, Stream},
    weights::{
        Checkpoint, Component, Family, Store, detect::Detected, embedded, export::ldm_keys, ldm::SingleFile,
        reader::SafetensorsFile,
    },
};
use tempfile::TempDir;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn single(path: &Path, family: Family) -> Result<SingleFile> {
    SingleFile::with_family(SafetensorsFile::open(path)?, Detected { family, in_channels: 4 })
}

fn with_progress<R>(work: impl FnOnce(&mut Progress<'_>) -> Result<R>) -> Result<R> {
    work(&mut Progress { observer: &mut (), cancel: &CancelToken::default() })
}

fn in_f32() -> BakeOptions {
    BakeOptions { dtype: Some(DType::F32), ..BakeOptions::default() }
}

fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.as_raw().len() as f64;
    20.0 * 255f64.log10() - 10.0 * mean.log10()
}

fn relative(a: &Tensor, b: &Tensor) -> Result<f64> {
    let norm = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt()) };
    Ok(norm(&(a - b)?)? / norm(b)?.max(1e-12))
}

fn part(component: Component) -> Option<Part> {
    match component {
        Component::Unet => Some(Part::Unet),
        Component::TextEncoder => Some(Part::TextEncoder),
        Component::TextEncoder2 => Some(Part::TextEncoder2),
        Component::Vae => None,
    }
}

/// Every matrix and kernel of a model, from its files alone.
fn table(base: &Checkpoint) -> Result<NameTable> {
    let mut shapes = BTreeMap::new();
    for component in base.family.components() {
        let store = base.component(*component)?.store;
        let Some(part) = part(*component) else { continue };
        for name in store.names() {
            let shape = store.info(&name).map(|i| i.shape.dims().to_vec()).unwrap_or_default();
            if let (Some(layer), true) = (name.strip_suffix(".weight"), shape.len() > 1) {
                shapes.insert(LayerPath { part, name: layer.into() }, shape);
            }
        }
    }
    Ok(NameTable::from_shapes(shapes))
}

/// Rank 2 on every third layer, on all kinds of them.
fn blend(table: &NameTable) -> Result<Blend> {
    let mut layers = BTreeMap::new();
    for (i, (path, shape)) in table.layers().enumerate() {
        if i % 3 != 0 && !path.name.ends_with("k_proj") {
            continue;
        }
        let mut rng = Rng::new(5, Stream::Weights, i as u64);
        let inner: usize = shape[1..].iter().product();
        let up = (rng.normal((shape[0], 2), &Device::Cpu)? * 0.05)?;
        let down = rng.normal((2, inner), &Device::Cpu)?;
        layers.insert(path.clone(), Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(1.0) }));
    }
    let adapter = Arc::new(Adapter { layers, ..Adapter::default() });
    Ok(Blend::new().with("a", adapter, Strength::split(0.7, -0.5)))
}

/// Every tensor of `baked` is the base's, with the blend on it where it has that layer. `tolerance` is relative.
fn check(baked: &Checkpoint, base: &Checkpoint, blend: &Blend, tolerance: f64) -> Result<usize> {
    let mut changed = 0;
    for component in base.family.components() {
        let (before, after) = (base.component(*component)?.store, baked.component(*component)?.store);
        let of_ldm = |name: &String| name.starts_with("text_model.") || name.starts_with("text_projection.");
        let names: Vec<String> = before
            .names()
            .into_iter()
            .filter(|n| part(*component) != Some(Part::TextEncoder) || of_ldm(n))
            .collect();
        for name in names {
            let (old, new) =
                (before.load(&name)?.to_dtype(DType::F32)?, after.load(&name)?.to_dtype(DType::F32)?);
            let layer = name.strip_suffix(".weight").zip(part(*component));
            let layer = layer.map(|(name, part)| LayerPath { part, name: name.into() });
            let fused = layer.map(|l| fused_weight(blend, &l, &old)).transpose()?.flatten();
            changed += usize::from(fused.is_some());
            let wanted = fused.unwrap_or(old);
            assert_eq!(new.dims(), wanted.dims(), "{component} {name}");
            let error = relative(&new, &wanted)?;
            assert!(error <= tolerance, "{component} {name}: {error:.1e}");
        }
    }
    Ok(changed)
}

#[test]
fn single_files_stay_single_files() -> Result<()> {
    let dir = TempDir::new().expect("a folder");
    for family in [Family::Sd1, Family::Sd2, Family::Sdxl, Family::SdxlRefiner] {
        let source = repository(&format!("tests/golden/weights/{family}.safetensors"));
        let base = Checkpoint::from_single_file(single(&source, family)?, "base");
        let blend = blend(&table(&base)?)?;
        let out = dir.path().join(format!("{family}.safetensors"));
        with_progress(|p| bake::to_file(&base, &blend, &out, &BakeOptions::default(), p))?;
        let baked = single(&out, family)?;
        let (before, after) = (SafetensorsFile::open(&source)?, SafetensorsFile::open(&out)?);
        assert_eq!(
            before.names().filter(|n| !n.starts_with("model_ema.")).collect::<Vec<_>>(),
            after.names().collect::<Vec<_>>()
        );
        let recipe = after.metadata().get("scumble_bake").map(String::as_str).unwrap_or_default();
        assert!(recipe.contains(r#""weight":"unet=0.7,te=-0.5""#), "{recipe}");
        // The files are f16: rounded once.
        let changed = check(&Checkpoint::from_single_file(baked, "baked"), &base, &blend, 5e-4)?;
        assert_eq!(changed, blend.entries[0].adapter.layers.len(), "{family}");
        let untouched = before.names().filter(|n| n.starts_with("first_stage_model."));
        for name in untouched {
            assert_eq!(before.tensor_bytes(name), after.tensor_bytes(name), "{name}");
        }
    }
    Ok(())
}

/// What was baked into either layout is extracted again: the blend itself, on every layer that kohya's trainer knows.
#[test]
fn every_family_gives_the_blend_back() -> Result<()> {
    let dir = TempDir::new().expect("a folder");
    for family in [Family::Sd1, Family::Sd2, Family::Sdxl, Family::SdxlRefiner] {
        let source = repository(&format!("tests/golden/weights/{family}.safetensors"));
        let base = Checkpoint::from_single_file(single(&source, family)?, "base");
        let table = table(&base)?;
        let blend = blend(&table)?;
        let (file, folder) =
            (dir.path().join(format!("{family}.safetensors")), dir.path().join(family.name()));
        let options = BakeOptions { configs: export::diffusers_files(&base)?, ..in_f32() };
        with_progress(|p| bake::to_file(&base, &blend, &file, &options, p))?;
        with_progress(|p| bake::to_folder(&base, &blend, &folder, &options, p))?;
        let layouts = [
            Checkpoint::from_single_file(single(&file, family)?, "baked"),
            Checkpoint::open_folder(&folder, None)?,
        ];
        for baked in layouts {
            let options = ExtractOptions { conv_rank: Some(2), dtype: DType::F32, ..ExtractOptions::new(2) };
            let cut = with_progress(|p| extract::extract(&baked, &base, &table, &options, p))?;
            for (path, delta) in &cut.adapter.layers {
                let shape = table.shape(path).expect("a layer of the model");
                let nothing = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
                let wanted = fused_weight(&blend, path, &nothing)?.expect("only what was baked differs");
                let error = relative(&delta.weight(shape)?, &wanted)?;
                assert!(error < 1e-4, "{family} {path} in {}: {error:.1e}", baked.origin);
            }
            let left = |path: &&LayerPath| !cut.adapter.layers.contains_key(*path);
            let ends = ["conv_in", "conv_out", "embedding", "text_projection"];
            for path in blend.entries[0].adapter.layers.keys().filter(left) {
                assert!(ends.iter().any(|end| path.name.contains(end)), "{family}: {path} is lost");
            }
            assert!(cut.adapter.layers.len() > 40, "{family}");
        }
    }
    Ok(())
}

/// The keys of a real file are found again from diffusers' names.
#[test]
fn the_names_of_single_files_are_complete() -> Result<()> {
    for family in [Family::Sd1, Family::Sd2, Family::Sdxl, Family::SdxlRefiner] {
        let file = single(&repository(&format!("tests/golden/weights/{family}.safetensors")), family)?;
        let there = file.store().names();
        let mut made = Vec::new();
        for component in family.components() {
            let view = file.component(*component)?;
            for key in ldm_keys(family, *component, &view.names())? {
                assert!(there.contains(&key.key), "{family} {component}: {} is made up", key.key);
                made.push(key.key);
            }
        }
        let ignored = |key: &str| {
            let words = [
                "model_ema.",
                "position_ids",
                "logit_scale",
                "alphas_",
                "betas",
                "sqrt_",
                "log_one",
                "posterior_",
            ];
            words.iter().any(|w| key.contains(w))
                || (family == Family::Sd2 && key.ends_with("text_projection"))
        };
        for key in there.iter().filter(|k| !ignored(k)) {
            assert!(made.contains(key), "{family}: {key} is missing");
        }
    }
    Ok(())
}

#[test]
fn diffusers_models_become_single_files_and_folders() -> Result<()> {
    let dir = TempDir::new().expect("a folder");
    let base = Checkpoint::open_folder(repository("tests/golden/pipeline/sdxl"), None)?;
    let table = layers::of_checkpoint(&base)?;
    let blend = blend(&self::table(&base)?)?;
    assert!(table.layers().count() > 50);
    let out = dir.path().join("sdxl.safetensors");
    with_progress(|p| bake::to_file(&base, &blend, &out, &in_f32(), p))?;
    let baked = Checkpoint::from_single_file(single(&out, Family::Sdxl)?, "baked");
    let changed = check(&baked, &base, &blend, 1e-6)?;
    assert!(changed > 20, "{changed}");

    let folder = dir.path().join("folder");
    with_progress(|p| bake::to_folder(&base, &blend, &folder, &BakeOptions::default(), p))?;
    // f16, as the base is: rounded once.
    check(&Checkpoint::open_folder(&folder, None)?, &base, &blend, 5e-4)?;
    let error = with_progress(|p| bake::to_folder(&base, &blend, &folder, &BakeOptions::default(), p));
    assert!(error.is_err_and(|e| e.to_string().contains("is not empty")));
    let left: Vec<_> =
        fs::read_dir(dir.path()).expect("the folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    Ok(())
}

#[test]
fn a_single_file_becomes_a_folder_with_its_familys_configs() -> Result<()> {
    let dir = TempDir::new().expect("a folder");
    for family in [Family::Sd1, Family::Sd2, Family::Sdxl, Family::SdxlRefiner] {
        let source = repository(&format!("tests/golden/weights/{family}.safetensors"));
        let base = Checkpoint::from_single_file(single(&source, family)?, "base");
        let blend = blend(&table(&base)?)?;
        let out = dir.path().join(family.name());
        let refused = with_progress(|p| bake::to_folder(&base, &blend, &out, &BakeOptions::default(), p));
        assert!(refused.is_err_and(|e| e.to_string().contains("no configs")));
        let options = BakeOptions { configs: export::diffusers_files(&base)?, ..BakeOptions::default() };
        with_progress(|p| bake::to_folder(&base, &blend, &out, &options, p))?;
        let opened = Checkpoint::open_folder(&out, None)?;
        assert_eq!(opened.family, family);
        check(&opened, &base, &blend, 5e-4)?;
        let config = opened.component(Component::Unet)?.config.expect("it was written");
        let sample_size = config.get("sample_size").cloned();
        assert_eq!(UNetConfig::from_json(&config)?, UNetConfig { sample_size, ..unet_config(family) });
        // The layers' listing reads all of the configs.
        assert_eq!(
            layers::of_checkpoint(&opened)?.layers().count(),
            layers::of_family(family)?.layers().count()
        );
        assert!(opened.tokenizer_files(family == Family::SdxlRefiner)?.is_some());
        assert!(opened.scheduler_config()?.is_some());
    }
    Ok(())
}

/// The embedded model, with two of the sample styles in it for good, draws what it draws with them live; and the styles
/// are extracted from it again.
#[test]
fn a_baked_blend_draws_as_the_live_one_and_is_found_again() -> Result<()> {
    let dir = TempDir::new().expect("a folder");
    let base = embedded::open()?;
    let mut pipeline = Pipeline::load(&base, &Device::Cpu, DType::F32)?;
    let mut blend = Blend::new();
    for (name, weight) in [("blueprint", 0.7), ("riso", 0.5)] {
        let file = repository(&format!("sample-data/adapters/{name}.safetensors"));
        blend = blend.with(
            name,
            pipeline.load_adapter(file, &LoadOptions::default())?,
            Strength::uniform(weight),
        );
    }
    let out = dir.path().join("baked");
    with_progress(|p| bake::to_folder(&base, &blend, &out, &in_f32(), p))?;

    let baked = Checkpoint::open_folder(&out, None)?;
    let options = ExtractOptions { conv_rank: Some(32), dtype: DType::F32, ..ExtractOptions::new(32) };
    let table = layers::of_checkpoint(&base)?;
    let cut = with_progress(|p| extract::extract(&baked, &base, &table, &options, p))?;
    let found = total_error(&cut.losses);
    assert!(found < 1e-3, "{found}");
    assert_eq!(cut.adapter.layers.len(), blend.entries[0].adapter.layers.len());

    let request = GenerateRequest {
        steps: 3,
        seed: 7,
        size_px: Some((64, 64)),
        ..GenerateRequest::new("cat, blueprint style")
    };
    let draw = |pipeline: &mut Pipeline| -> Result<RgbImage> {
        Ok(pipeline.generate(&request, &mut (), &CancelToken::default())?.remove(0).image)
    };
    let plain = draw(&mut pipeline)?;
    pipeline.set_blend(blend)?;
    let live = draw(&mut pipeline)?;
    let fixed = draw(&mut Pipeline::load(&baked, &Device::Cpu, DType::F32)?)?;
    assert!(psnr(&fixed, &live) >= 50.0, "{:.1} dB", psnr(&fixed, &live));
    assert!(psnr(&plain, &live) < 35.0, "the styles must matter: {:.1} dB", psnr(&plain, &live));
    Ok(())
}

#[test]
fn layers_the_model_lacks_are_not_dropped() -> Result<()> {
    let dir = TempDir::new().expect("a folder");
    let base = embedded::open()?;
    let up = Tensor::zeros((4, 1), DType::F32, &Device::Cpu)?;
    let delta = Delta::LowRank(LowRank { down: up.t()?, up, mid: None, alpha: None });
    let layer = LayerPath { part: Part::Unet, name: "down_blocks.9.conv".into() };
    let adapter = Adapter { layers: BTreeMap::from([(layer, delta)]), ..Adapter::default() };
    let blend = Blend::new().with("odd", Arc::new(adapter), Strength::default());
    let out = dir.path().join("out");
    let error = with_progress(|p| bake::to_folder(&base, &blend, &out, &BakeOptions::default(), p));
    assert!(error.is_err_and(|e| e.to_string().contains("adapter `odd` changes unet.down_blocks.9.conv")));
    let file = out.with_extension("safetensors");
    let error = with_progress(|p| bake::to_file(&base, &Blend::new(), &file, &BakeOptions::default(), p));
    assert!(error.is_err_and(|e| e.hint().is_some_and(|h| h.contains("folder"))));
    assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 0);
    Ok(())
}
