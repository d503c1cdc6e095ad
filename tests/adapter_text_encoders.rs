//! Which text encoder an adapter's keys mean, on models with one and with two.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Error, Result,
    adapter::{Adapter, Blend, LoadOptions, Strength},
    nn::Part,
    pipeline::{Pipeline, text::TextOptions},
    random::{Rng, Stream},
    weights::{Checkpoint, writer::SafetensorsWriter},
};

fn pipeline(family: &str) -> Result<Pipeline> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipeline").join(family);
    Pipeline::load(&Checkpoint::open_folder(folder, None)?, &Device::Cpu, DType::F32)
}

/// Two layers of a text encoder of width 16, under a prefix.
fn load(pipeline: &mut Pipeline, prefix: &str) -> Result<Arc<Adapter>> {
    let random =
        |index, shape: (usize, usize)| Rng::new(3, Stream::Weights, index).normal(shape, &Device::Cpu);
    let mut tensors = BTreeMap::new();
    for layer in ["layers_0_self_attn_q_proj", "layers_1_self_attn_v_proj"] {
        let key = format!("{prefix}text_model_encoder_{layer}");
        tensors.insert(format!("{key}.lora_down.weight"), random(0, (2, 16))?);
        tensors.insert(format!("{key}.lora_up.weight"), random(1, (16, 2))?);
        tensors.insert(format!("{key}.alpha"), Tensor::new(2f32, &Device::Cpu)?);
    }
    let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
    let path = folder.path().join("text.safetensors");
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    SafetensorsWriter::new(named)?.write(&path, &BTreeMap::new())?;
    pipeline.load_adapter(&path, &LoadOptions::default())
}

/// The encoded text, one list for each channel.
fn channels(pipeline: &mut Pipeline) -> Result<Vec<Vec<f32>>> {
    let context = pipeline.text.encode("a red house", 1, TextOptions::default())?.context;
    Ok(context.squeeze(0)?.t()?.contiguous()?.to_vec2()?)
}

#[test]
fn the_only_encoder_has_two_names() -> Result<()> {
    for family in ["sd1", "sd2"] {
        let mut pipeline = pipeline(family)?;
        for prefix in ["lora_te_", "lora_te1_"] {
            let adapter = load(&mut pipeline, prefix)?;
            assert_eq!(adapter.layers.len(), 2);
            assert!(adapter.layers.keys().all(|path| path.part == Part::TextEncoder), "{family}: {prefix}");
            assert_eq!(adapter.report.warnings, Vec::<String>::new(), "{family}: {prefix}");
            assert_eq!(adapter.report.matched, 6);
        }
        let error = load(&mut pipeline, "lora_te2_").expect_err("there is no second").to_string();
        assert!(error.contains("no second text encoder"), "{error}");
    }
    Ok(())
}

#[test]
fn with_two_encoders_the_first_is_meant_and_that_is_said() -> Result<()> {
    let mut pipeline = pipeline("sdxl")?;
    let before = channels(&mut pipeline)?;
    let adapter = load(&mut pipeline, "lora_te_")?;
    let [warning] = adapter.report.warnings.as_slice() else {
        return Err(Error::invalid(format!("warnings: {:?}", adapter.report.warnings)));
    };
    assert!(warning.starts_with("6 keys") && warning.contains("`lora_te_`"), "{warning}");
    assert!(load(&mut pipeline, "lora_te1_")?.report.warnings.is_empty());

    pipeline.set_blend(Blend::new().with("text", adapter, Strength::default()))?;
    let after = channels(&mut pipeline)?;
    assert_eq!((before.len(), after.len()), (16 + 24, 16 + 24));
    for (channel, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before != after, channel < 16, "channel {channel}: the first encoder's are the first 16");
    }
    Ok(())
}
