//! Half precision: networks in bf16 and f16 stay near the f32 numbers of diffusers, and weights stored in half precision
//! are widened exactly.

#![expect(clippy::print_stdout, reason = "the errors measured, for `--nocapture`")]

mod parity;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Error, Result,
    device::Precision,
    models::ClipOptions,
    nn::{LayerPath, Slot},
    pipeline::Pipeline,
    weights::{Checkpoint, reader::SafetensorsFile, writer::SafetensorsWriter},
};

use self::parity::{assert_close, load_clip, load_unet, load_vae, run_unet};

/// Everything is added up in f32; weights and what passes from layer to layer has 8 (bf16) or 11 bits (f16), which is
/// 0.4 % or 0.05 % at most for each rounding. The worst value of an output, relative to its largest, collects some
/// tens of them.
const TOLERANCES: [(DType, f64); 2] = [(DType::BF16, 4e-2), (DType::F16, 5e-3)];

#[test]
fn unets() -> Result<()> {
    for (dtype, tolerance) in TOLERANCES {
        for name in ["sd1", "sd2", "sdxl"] {
            let (model, golden) = load_unet(name, dtype)?;
            let output = run_unet(&model, &golden, golden.get("context"), None)?;
            assert_eq!(output.dtype(), dtype);
            let output = output.to_dtype(DType::F32)?;
            assert_close(&format!("{name} in {dtype:?}"), &output, golden.get("output"), tolerance);
        }
    }
    Ok(())
}

#[test]
fn text_encoders() -> Result<()> {
    for (dtype, tolerance) in TOLERANCES {
        for name in ["clip_l", "clip_g"] {
            let (model, golden, _) = load_clip(name, dtype)?;
            let ids = golden.get("ids").to_dtype(DType::U32)?;
            let output = model.forward(&ids, &ClipOptions { skip: 2, final_norm: false, tape: None })?;
            for (what, found) in
                [("penultimate", &output.hidden), ("last", &output.last), ("pooled", &output.pooled)]
            {
                assert_eq!(found.dtype(), dtype);
                let found = found.to_dtype(DType::F32)?;
                assert_close(&format!("{name} {what} in {dtype:?}"), &found, golden.get(what), tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn autoencoder() -> Result<()> {
    for (dtype, tolerance) in TOLERANCES {
        let (model, golden, _) = load_vae("vae", dtype)?;
        let posterior = model.encode(&golden.get("picture").to_dtype(dtype)?)?;
        let decoded = model.decode(golden.get("latents"))?;
        for (what, found) in [("mean", &posterior.mean), ("logvar", &posterior.logvar), ("decoded", &decoded)]
        {
            assert_eq!(found.dtype(), dtype);
            let found = found.to_dtype(DType::F32)?;
            assert_close(&format!("vae {what} in {dtype:?}"), &found, golden.get(what), tolerance);
        }
    }
    Ok(())
}

/// A copy of a tiny diffusers folder with its weights in another format, and what they are in f32.
fn stored_in(dtype: DType, to: &Path) -> Result<BTreeMap<String, Tensor>> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipeline/sd1");
    let mut widened = BTreeMap::new();
    for file in files_below(&from) {
        let target = to.join(file.strip_prefix(&from).expect("it is below"));
        std::fs::create_dir_all(target.parent().expect("it has one")).map_err(|e| Error::io(&target, e))?;
        let component = file.parent().and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or_default();
        if file.extension().is_none_or(|e| e != "safetensors") || component == "sd1" {
            std::fs::copy(&file, &target).map_err(|e| Error::io(&target, e))?;
            continue;
        }
        let source = SafetensorsFile::read(&file)?;
        let mut tensors = BTreeMap::new();
        for name in source.names() {
            // Values that a detour over another format would change.
            let odd = (source.tensor(name)?.to_dtype(DType::F32)? * (1.0 + 1.0 / 3000.0))?;
            let stored = odd.to_dtype(dtype)?;
            widened.insert(format!("{component}.{name}"), by_hand(&stored)?);
            tensors.insert(name.to_string(), stored);
        }
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        SafetensorsWriter::new(tensors)?.write(&target, &BTreeMap::new())?;
    }
    Ok(widened)
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a committed folder").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// f32 from the bits of a half-precision tensor, without candle.
fn by_hand(stored: &Tensor) -> Result<Tensor> {
    let flat = stored.flatten_all()?;
    let values: Vec<f32> = match stored.dtype() {
        DType::F16 => flat.to_vec1::<half::f16>()?.into_iter().map(f32::from).collect(),
        _ => {
            let wide = |v: half::bf16| f32::from_bits(u32::from(v.to_bits()) << 16);
            flat.to_vec1::<half::bf16>()?.into_iter().map(wide).collect()
        }
    };
    Ok(Tensor::from_vec(values, stored.shape(), &Device::Cpu)?)
}

/// `--dtype auto` computes in f32 on the processor, from exactly what a half-precision file holds.
#[test]
fn stored_halves_are_widened_exactly() -> Result<()> {
    assert_eq!(Precision::Auto.dtype(&Device::Cpu), DType::F32);
    for dtype in [DType::F16, DType::BF16] {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let expected = stored_in(dtype, folder.path())?;
        let mut pipeline = Pipeline::load(
            &Checkpoint::open_folder(folder.path(), None)?,
            &Device::Cpu,
            Precision::Auto.dtype(&Device::Cpu),
        )?;
        let mut compared = 0;
        let mut compare = |path: &LayerPath, field: &str, found: &Tensor| -> Result<()> {
            // transformers writes its text encoder without the outer name.
            let key = format!("{path}.{field}").replace(".text_model.", ".");
            let expected = &expected[&key];
            assert_eq!(found.dtype(), DType::F32, "{key}");
            let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
            assert_eq!(values(&found.reshape(expected.shape())?)?, values(expected)?, "{key} from {dtype:?}");
            compared += 1;
            Ok(())
        };
        pipeline.parts().visit(&mut |path, slot| {
            let (weight, bias) = match &slot {
                Slot::Linear(layer) => (layer.weight(), layer.bias()),
                Slot::Conv2d(layer) => (layer.weight(), layer.bias()),
                Slot::Norm(norm) => (norm.weight(), Some(norm.bias())),
                Slot::Embedding(embedding) => (embedding.weight(), None),
            };
            compare(path, "weight", weight)?;
            bias.map_or(Ok(()), |bias| compare(path, "bias", bias))
        })?;
        let wanted = expected.keys().filter(|key| !key.starts_with("vae.")).count();
        assert_eq!(compared, wanted, "every tensor of the UNet and the text encoder");
    }
    Ok(())
}
