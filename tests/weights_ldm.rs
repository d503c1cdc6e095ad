//! Single-file checkpoints: every tensor diffusers knows is found under its name with the bytes diffusers would load.

use std::{collections::BTreeMap, error::Error, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use scumble::weights::{
    Component, Family, Store as _,
    detect::{self, Detected},
    ldm::{self, SingleFile},
    names::NameTable,
    reader::SafetensorsFile,
    writer::SafetensorsWriter,
};
use sha2::{Digest as _, Sha256};

type Done = Result<(), Box<dyn Error>>;
/// Names and shapes of a made-up file.
type Shapes<'a> = &'a [(&'a str, &'a [usize])];
/// Component, then name, then shape and the beginning of the bytes' sha256.
type Expected = BTreeMap<String, BTreeMap<String, (Vec<usize>, String)>>;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)
}

fn sha256(tensor: &Tensor) -> Result<String, Box<dyn Error>> {
    let values = tensor.flatten_all()?.to_vec1::<half::f16>()?;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(format!("{:x}", Sha256::digest(bytes))[..16].to_string())
}

fn check(family: Family) -> Done {
    let file = SafetensorsFile::open(golden(&format!("{family}.safetensors")))?;
    let ldm_unet: Vec<String> =
        file.names().filter_map(|n| n.strip_prefix(detect::LDM_UNET)).map(String::from).collect();
    let single = SingleFile::with_family(file, Detected { family, in_channels: 4 })?;
    let expected: Expected =
        serde_json::from_str(&std::fs::read_to_string(golden(&format!("{family}.json")))?)?;
    assert_eq!(expected.len(), family.components().len());
    for component in family.components() {
        let view = single.component(*component)?;
        let expected = &expected[component.name()];
        let names: Vec<&String> = expected.keys().collect();
        assert_eq!(view.names().iter().collect::<Vec<_>>(), names, "{family} {component}");
        for (name, (shape, hash)) in expected {
            let info = view.info(name).ok_or("no info")?;
            let tensor = view.load(name)?;
            assert_eq!(
                (info.shape.dims(), info.dtype),
                (shape.as_slice(), DType::F16),
                "{family} {component} {name}"
            );
            assert_eq!(tensor.dims(), shape, "{family} {component} {name}");
            assert_eq!(&sha256(&tensor)?, hash, "{family} {component} {name}");
        }
    }
    // The same table the other way round, built from diffusers' names: what adapters in LDM names are matched with.
    let diffusers = &expected["unet"];
    let table = NameTable::unet_from_diffusers(diffusers.keys().map(String::as_str));
    let mut there: Vec<String> =
        diffusers.keys().map(|n| table.to_ldm(n).ok_or(n.clone())).collect::<Result<_, _>>()?;
    there.sort();
    assert_eq!(there, ldm_unet, "{family}");
    for name in &there {
        assert!(table.to_diffusers(name).is_some_and(|n| diffusers.contains_key(&n)), "{family} {name}");
    }
    Ok(())
}

#[test]
fn every_name_of_every_family_leads_to_the_right_bytes() -> Done {
    [Family::Sd1, Family::Sd2, Family::Sdxl, Family::SdxlRefiner].into_iter().try_for_each(check)
}

/// A file whose tensors have no elements: shapes are all that detection looks at.
fn shapes(shapes: Shapes<'_>) -> Result<SafetensorsFile, Box<dyn Error>> {
    let tensors: Vec<(&str, Tensor)> = shapes
        .iter()
        .map(|(name, shape)| Ok((*name, Tensor::zeros(*shape, DType::F16, &Device::Cpu)?)))
        .collect::<candle_core::Result<_>>()?;
    let bytes = SafetensorsWriter::new(tensors.iter().map(|(n, t)| (*n, t)))?.to_bytes(&BTreeMap::new())?;
    Ok(SafetensorsFile::from_bytes("test.safetensors", bytes)?)
}

const CONV_IN: &str = "model.diffusion_model.input_blocks.0.0.weight";
const BLOCK_2: &str = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight";
const BLOCK_4: &str = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight";
const LABEL: &str = "model.diffusion_model.label_emb.0.0.weight";

#[test]
fn families_are_told_by_their_widths() -> Done {
    let family = |list: &[(&str, &[usize])]| Ok::<_, Box<dyn Error>>(detect::detect(&shapes(list)?)?);
    let sd1 = family(&[(CONV_IN, &[320, 4, 0, 3]), (BLOCK_2, &[0, 768])])?;
    assert_eq!(sd1, Detected { family: Family::Sd1, in_channels: 4 });
    let inpainting = family(&[(CONV_IN, &[320, 9, 0, 3]), (BLOCK_2, &[0, 1024])])?;
    assert_eq!(inpainting, Detected { family: Family::Sd2, in_channels: 9 });
    let sdxl = family(&[(CONV_IN, &[320, 4, 0, 3]), (BLOCK_4, &[0, 2048]), (LABEL, &[0, 2816])])?;
    assert_eq!(sdxl.family, Family::Sdxl);
    let refiner = family(&[(CONV_IN, &[384, 4, 0, 3]), (BLOCK_4, &[0, 1280]), (LABEL, &[0, 2560])])?;
    assert_eq!(refiner.family, Family::SdxlRefiner);
    Ok(())
}

#[test]
fn other_models_are_named() -> Done {
    let cases: &[(Shapes<'_>, &str)] = &[
        (&[("model.diffusion_model.joint_blocks.0.x.weight", &[0])], "a Stable Diffusion 3 model"),
        (&[("double_blocks.0.img_attn.qkv.weight", &[0])], "a Flux model"),
        (
            &[(CONV_IN, &[320, 8, 0, 3]), ("model.diffusion_model.input_blocks.1.0.time_stack.emb", &[0])],
            "a Stable Video Diffusion model",
        ),
        (&[("model.diffusion_model.clip_txt_mapper.weight", &[0])], "a Stable Cascade model"),
        (&[(CONV_IN, &[320, 4, 0, 3]), ("edm_mean", &[0])], "a Playground 2.5 model"),
        (&[(CONV_IN, &[320, 4, 0, 3]), (BLOCK_2, &[0, 1024]), (LABEL, &[0, 2048])], "an unCLIP model"),
        (&[("lora_unet_mid_block.lora_down.weight", &[0])], "an adapter, not a whole model"),
        (&[("emb_params", &[0, 768])], "a textual inversion"),
        (&[("decoder.conv_in.weight", &[0])], "is a VAE alone"),
        (&[("down_blocks.0.resnets.0.conv1.weight", &[0])], "is a UNet alone"),
        (&[("text_model.final_layer_norm.weight", &[0])], "is a text encoder alone"),
        (&[(CONV_IN, &[320, 4, 0, 3]), (BLOCK_2, &[0, 512])], "text width 512"),
        (&[("fc.weight", &[0])], "not a Stable Diffusion checkpoint"),
    ];
    for (list, message) in cases {
        let error = detect::detect(&shapes(list)?).expect_err(message).to_string();
        assert!(error.contains(message), "{error} does not say {message}");
    }
    Ok(())
}

#[test]
fn a_pruned_file_names_what_it_lacks() -> Done {
    let file = shapes(&[(CONV_IN, &[320, 4, 0, 3]), (BLOCK_2, &[0, 768])])?;
    let single = SingleFile::new(file)?;
    assert!(single.component(Component::Unet).is_ok());
    for (component, what) in [(Component::Vae, "a VAE"), (Component::TextEncoder, "a text encoder")] {
        let error = single.component(component).expect_err(what);
        assert!(error.to_string().contains(&format!("lacks {what}")), "{error}");
        assert!(error.hint().is_some());
    }
    Ok(())
}

#[test]
fn the_first_clip_is_found_without_its_text_model_level() -> Done {
    let old = "cond_stage_model.transformer.encoder.layers.0.self_attn.q_proj.weight";
    let ids = "cond_stage_model.transformer.embeddings.position_ids";
    let file =
        shapes(&[(CONV_IN, &[320, 4, 0, 3]), (BLOCK_2, &[0, 768]), (old, &[0, 768]), (ids, &[1, 77])])?;
    let names = SingleFile::new(file)?.component(Component::TextEncoder)?.names();
    assert_eq!(names, ["text_model.encoder.layers.0.self_attn.q_proj.weight"]);
    Ok(())
}

#[test]
fn the_prediction_type_is_taken_from_marks_then_metadata_then_the_spread_of_a_bias() -> Done {
    let bias = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    let hint = |tensors: &[(&str, Tensor)], metadata: &[(&str, &str)], family| {
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let bytes = SafetensorsWriter::new(tensors.iter().map(|(n, t)| (*n, t)))?.to_bytes(&metadata)?;
        let file = SafetensorsFile::from_bytes("test.safetensors", bytes)?;
        Ok::<_, Box<dyn Error>>(detect::prediction_hint(&file, family))
    };
    let mark = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
    let found = hint(&[("v_pred", mark.clone()), ("ztsnr", mark.clone())], &[], Family::Sdxl)?;
    assert_eq!(
        (found.prediction_type.as_deref(), found.zero_terminal_snr),
        (Some("v_prediction"), Some(true))
    );
    let found = hint(&[], &[("modelspec.prediction_type", "v")], Family::Sd1)?;
    assert_eq!(found.prediction_type.as_deref(), Some("v_prediction"));
    assert_eq!(hint(&[], &[], Family::Sd1)?, detect::PredictionHint::default());
    let wide = Tensor::new(&[-0.2f32, 0.2, -0.2, 0.2], &Device::Cpu)?;
    for (spread, channels, expected) in [(1., 4, "v_prediction"), (0.1, 4, "epsilon"), (1., 9, "epsilon")] {
        let conv_in = Tensor::zeros((8, channels, 0, 3), DType::F32, &Device::Cpu)?;
        let found = hint(&[(bias, (&wide * spread)?), (CONV_IN, conv_in)], &[], Family::Sd2)?;
        assert_eq!(found.prediction_type.as_deref(), Some(expected), "{spread} {channels}");
    }
    Ok(())
}

#[test]
fn a_vae_alone_is_read_in_either_layout() -> Done {
    let single = SingleFile::with_family(
        SafetensorsFile::open(golden("sd1.safetensors"))?,
        Detected { family: Family::Sd1, in_channels: 4 },
    )?;
    let whole = single.component(Component::Vae)?;
    let folder = tempfile::tempdir()?;
    for (prefix, ldm_names) in [("", true), ("first_stage_model.", true), ("", false)] {
        let mut tensors = BTreeMap::new();
        for name in whole.names() {
            let tensor = whole.load(&name)?;
            let key = match whole.source(&name).filter(|_| ldm_names) {
                Some((key, _)) => format!("{prefix}{}", key.trim_start_matches("first_stage_model.")),
                // As diffusers named them before 0.15.
                None => name.replace(".to_q.", ".query.").replace(".to_out.0.", ".proj_attn."),
            };
            tensors.insert(key, tensor);
        }
        let path = folder.path().join("vae.safetensors");
        SafetensorsWriter::new(tensors.iter().map(|(n, t)| (n.as_str(), t)))?
            .write(&path, &BTreeMap::new())?;
        let vae = ldm::standalone_vae(&path)?;
        assert_eq!(vae.names(), whole.names());
        for name in whole.names() {
            assert_eq!(sha256(&vae.load(&name)?)?, sha256(&whole.load(&name)?)?, "{name}");
        }
    }
    Ok(())
}
