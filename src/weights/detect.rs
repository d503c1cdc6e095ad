//! Which family a single-file checkpoint belongs to, told by its tensors alone: file names and metadata lie.

use super::{
    family::{Component, Family},
    reader::SafetensorsFile,
    store::Store,
};
use crate::error::{Error, Result};

/// Where the UNet of a single file is.
pub const LDM_UNET: &str = "model.diffusion_model.";

/// A key, or the beginning of one, that gives another model away.
const FOREIGN: &[(&str, &str)] = &[
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 model"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("model.diffusion_model.double_blocks.", "a Flux model"),
    ("double_blocks.", "a Flux model"),
    ("transformer_blocks.0.", "a diffusion transformer, not a UNet"),
    ("model.diffusion_model.double_stream_blocks.", "a HiDream model"),
    ("model.diffusion_model.double_layers.", "an AuraFlow model"),
    ("model.diffusion_model.input_blocks.1.0.time_stack.", "a Stable Video Diffusion model"),
    ("model.diffusion_model.input_blocks.1.0.time_mixer", "a Stable Video Diffusion model"),
    ("model.diffusion_model.clip_txt_mapper.", "a Stable Cascade model"),
    ("model.diffusion_model.clf.", "a Stable Cascade model"),
    ("clip_txt_mapper.", "a Stable Cascade model"),
    ("control_model.", "a ControlNet, not a whole model"),
    ("controlnet_cond_embedding.", "a ControlNet, not a whole model"),
    ("input_hint_block.", "a ControlNet, not a whole model"),
    ("lora_", "an adapter, not a whole model"),
    ("lycoris_", "an adapter, not a whole model"),
    ("oft_unet_", "an adapter, not a whole model"),
    ("unet.down_blocks.", "an adapter, not a whole model"),
    ("base_model.model.", "an adapter, not a whole model"),
    ("emb_params", "a textual inversion embedding, not a whole model"),
    ("clip_l", "a textual inversion embedding, not a whole model"),
    ("string_to_param", "a textual inversion embedding, not a whole model"),
];

/// What a single file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detected {
    /// By the widths of its UNet.
    pub family: Family,
    /// 4; 9 in an inpainting model.
    pub in_channels: usize,
}

/// What a checkpoint says about its own output. Empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PredictionHint {
    /// `epsilon` or `v_prediction`, diffusers' words.
    pub prediction_type: Option<String>,
    /// The noise schedule was rescaled to end in pure noise.
    pub zero_terminal_snr: Option<bool>,
}

/// Tells the family of a single-file (LDM) checkpoint.
///
/// # Errors
/// If it is another kind of file, by name where it is a known one.
pub fn detect(file: &SafetensorsFile) -> Result<Detected> {
    let shape =
        |key: &str| file.header().tensors.get(&format!("{LDM_UNET}{key}")).map(|e| e.shape.as_slice());
    let Some(&[model_channels, in_channels, ..]) = shape("input_blocks.0.0.weight") else {
        return Err(not_a_checkpoint(file));
    };
    refuse_foreign(file)?;
    let context = |block: usize| {
        let key = format!("input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight");
        shape(&key).and_then(|s| s.get(1).copied())
    };
    let added = shape("label_emb.0.0.weight").and_then(|s| s.get(1).copied());
    if has(file, "edm_mean") {
        return Err(Error::file(file.path(), "is a Playground 2.5 model, which needs EDM sampling"));
    }
    let family = match (context(2), context(4), added) {
        (Some(768), _, None) => Family::Sd1,
        (Some(1024), _, None) => Family::Sd2,
        (Some(1024), _, Some(_)) => {
            return Err(Error::file(file.path(), "is an unCLIP model, which is drawn from pictures"));
        }
        (None, _, Some(2816)) => Family::Sdxl,
        (None, _, Some(2560)) => Family::SdxlRefiner,
        (None, Some(2048), _) => Family::Sdxl,
        (None, Some(1280), _) if model_channels == 384 => Family::SdxlRefiner,
        (first, second, _) => {
            let found = first.or(second).map_or("no cross-attention".into(), |w| format!("text width {w}"));
            let message =
                format!("is of no known family: {found}, expected 768 (SD1), 1024 (SD2) or 2048 (SDXL)");
            return Err(Error::file(file.path(), message).with_hint(
                "models with sizes of their own are read from a diffusers folder, whose configs give them",
            ));
        }
    };
    Ok(Detected { family, in_channels })
}

/// Reads the marks trainers leave about the prediction type.
pub fn prediction_hint(file: &SafetensorsFile, family: Family) -> PredictionHint {
    let zero_snr = has(file, "ztsnr").then_some(true);
    let hint = |kind: &str, zero_terminal_snr| PredictionHint {
        prediction_type: Some(kind.into()),
        zero_terminal_snr,
    };
    if has(file, "v_pred") || has(file, "edm_vpred.sigma_max") {
        return hint("v_prediction", zero_snr);
    }
    let metadata = file.metadata();
    match metadata.get("modelspec.prediction_type").map(String::as_str) {
        Some("v" | "v_prediction") => return hint("v_prediction", zero_snr),
        Some("epsilon" | "eps") => return hint("epsilon", zero_snr),
        _ => {}
    }
    match metadata.get("modelspec.architecture").map(String::as_str) {
        Some(a) if a.contains("-v2-768-v") => return hint("v_prediction", zero_snr),
        Some(a) if a.contains("-v2-512") => return hint("epsilon", zero_snr),
        _ => {}
    }
    if family == Family::Sd2 {
        // The guess knows the models that draw from nothing; inpainting and depth models predict the noise.
        let kind =
            if in_channels(file) == Some(4) && sd2_bias_is_wide(file) { "v_prediction" } else { "epsilon" };
        return hint(kind, zero_snr);
    }
    PredictionHint { prediction_type: None, zero_terminal_snr: zero_snr }
}

fn in_channels(file: &SafetensorsFile) -> Option<usize> {
    file.header().tensors.get(&format!("{LDM_UNET}input_blocks.0.0.weight"))?.shape.get(1).copied()
}

/// ComfyUI's guess, which separates the published SD2 models: the spread of one bias, wider when trained on v.
fn sd2_bias_is_wide(file: &SafetensorsFile) -> bool {
    let key = format!("{LDM_UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias");
    let values = file.tensor(&key).and_then(|t| Ok(t.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?));
    values.is_ok_and(|values| {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        variance.sqrt() > 0.09
    })
}

/// The error for a file without an LDM UNet: what it is instead, where it can be told.
fn not_a_checkpoint(file: &SafetensorsFile) -> Error {
    if let Err(error) = refuse_foreign(file) {
        return error;
    }
    let starts = |prefix: &str| file.names().any(|n| n.starts_with(prefix));
    let (what, hint) = if starts("down_blocks.") {
        (
            "is a UNet alone, in diffusers' layout",
            "point to the model's folder, the one with `model_index.json`",
        )
    } else if starts("first_stage_model.") || starts("decoder.") {
        ("is a VAE alone", "give the whole model here; a VAE replaces the model's own")
    } else if starts("text_model.") {
        ("is a text encoder alone", "give the whole model here")
    } else {
        let message =
            format!("is not a Stable Diffusion checkpoint: there is no `{LDM_UNET}input_blocks.0.0.weight`");
        return Error::file(file.path(), message)
            .with_hint("SD1, SD2 and SDXL checkpoints, and diffusers folders, are read");
    };
    Error::file(file.path(), format!("{what}, expected a whole model")).with_hint(hint)
}

fn refuse_foreign(file: &SafetensorsFile) -> Result<()> {
    let found = FOREIGN.iter().find(|(prefix, _)| file.names().any(|name| name.starts_with(prefix)));
    let Some((_, what)) = found else { return Ok(()) };
    let error = Error::file(file.path(), format!("is {what}; SD1, SD2 and SDXL checkpoints are supported"));
    Err(if what.starts_with("an adapter") {
        error.with_hint("adapters are given with `--lora`")
    } else {
        error
    })
}

/// The error for a component a file lacks.
pub(super) fn missing_component(store: &dyn Store, component: Component) -> Error {
    let what = match component {
        Component::Unet => "a UNet",
        Component::Vae => "a VAE",
        Component::TextEncoder => "a text encoder",
        Component::TextEncoder2 => "a second text encoder",
    };
    Error::invalid(format!("{}: the model lacks {what} (`{component}`)", store.origin()))
        .with_hint("this is a pruned file; use one that has it")
}

fn has(file: &SafetensorsFile, key: &str) -> bool {
    file.header().tensors.contains_key(key)
}
