//! The files beside the weights in a diffusers folder, for a model that brings none: its family's, spelled out.

use serde::Serialize;
use serde_json::{Value, json};

use super::load;
use crate::{
    error::{Error, Result},
    models::family,
    prompt::tokenizer::Tokenizer,
    weights::{Checkpoint, Component, Family},
};

/// The diffusers these files are written for.
const DIFFUSERS: &str = "0.30.0";

/// Every file, with its path in the folder: the index, configs, tokenizers, the noise scheduler.
///
/// # Errors
/// If a config is malformed.
pub fn diffusers_files(checkpoint: &Checkpoint) -> Result<Vec<(String, String)>> {
    let (family, size) = (checkpoint.family, family::conventions(checkpoint.family).size_px);
    let mut index = json!({
        "_class_name": pipeline_class(family, checkpoint.in_channels()), "_diffusers_version": DIFFUSERS,
        "feature_extractor": [null, null], "image_encoder": [null, null], "text_encoder": [null, null],
        "tokenizer": [null, null], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    });
    let two = family.components().contains(&Component::TextEncoder2);
    if two {
        index["force_zeros_for_empty_prompt"] = family::conventions(family).zero_empty_negative.into();
    } else {
        index["requires_safety_checker"] = false.into();
        index["safety_checker"] = json!([null, null]);
    }
    if family == Family::SdxlRefiner {
        index["requires_aesthetics_score"] = true.into();
    }
    let (scheduler, class) = scheduler(checkpoint, two);
    index["scheduler"] = json!(["diffusers", class]);

    let unet = with_class(&load::unet_config(checkpoint)?, "UNet2DConditionModel", size / 8)?;
    let vae = with_class(&family::vae_config(family), "AutoencoderKL", size)?;
    let mut files = vec![
        ("unet/config.json".to_string(), unet),
        ("vae/config.json".to_string(), vae),
        ("scheduler/scheduler_config.json".to_string(), pretty(&scheduler)),
    ];
    let encoders = family.components().iter().filter(|c| c.name().starts_with("text_encoder"));
    for (component, config) in encoders.zip(family::text_encoder_configs(family)) {
        let class = if config.has_projection() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
        let tokenizer = component.name().replace("text_encoder", "tokenizer");
        index[component.name()] = json!(["transformers", class]);
        index[&tokenizer] = json!(["transformers", "CLIPTokenizer"]);
        let mut config = json(&config)?;
        config["architectures"] = json!([class]);
        config["model_type"] = "clip_text_model".into();
        config["bos_token_id"] = 49406.into();
        config["pad_token_id"] = 1.into();
        files.push((format!("{component}/config.json"), pretty(&config)));
        let pad = family::conventions(family).pad_ids[usize::from(*component == Component::TextEncoder2)];
        for (name, text) in Tokenizer::built_in_files(pad == Some(0))? {
            files.push((format!("{tokenizer}/{name}"), text));
        }
    }
    files.push(("model_index.json".to_string(), pretty(&index)));
    Ok(files)
}

fn pipeline_class(family: Family, in_channels: usize) -> &'static str {
    match (family, in_channels) {
        (Family::Sdxl, 9) => "StableDiffusionXLInpaintPipeline",
        (Family::Sdxl, _) => "StableDiffusionXLPipeline",
        (Family::SdxlRefiner, _) => "StableDiffusionXLImg2ImgPipeline",
        (_, 9) => "StableDiffusionInpaintPipeline",
        _ => "StableDiffusionPipeline",
    }
}

/// The schedule all Stable Diffusions were trained on, under the solver that is usual for each.
fn scheduler(checkpoint: &Checkpoint, xl: bool) -> (Value, &'static str) {
    let hint = checkpoint.prediction();
    let prediction = family::conventions(checkpoint.family).prediction_type;
    let prediction = hint.prediction_type.as_deref().unwrap_or(prediction);
    let class = if xl { "EulerDiscreteScheduler" } else { "DDIMScheduler" };
    let mut config = json!({
        "_class_name": class, "_diffusers_version": DIFFUSERS, "num_train_timesteps": 1000, "beta_start": 0.00085,
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": prediction,
        "timestep_spacing": "leading", "steps_offset": 1,
    });
    if hint.zero_terminal_snr == Some(true) {
        config["rescale_betas_zero_snr"] = true.into();
        config["timestep_spacing"] = "trailing".into();
    }
    if !xl {
        config["clip_sample"] = false.into();
        config["set_alpha_to_one"] = false.into();
    }
    (config, class)
}

fn with_class(config: &impl Serialize, class: &str, sample_size: usize) -> Result<String> {
    let mut config = json(config)?;
    config["_class_name"] = class.into();
    config["_diffusers_version"] = DIFFUSERS.into();
    config["sample_size"] = sample_size.into();
    Ok(pretty(&config))
}

fn json(config: &impl Serialize) -> Result<Value> {
    serde_json::to_value(config).map_err(|e| Error::invalid(format!("a config cannot be written: {e}")))
}

fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}
