//! The layers of tiny models of each family, by their configs.

use scumble::{
    Error, Result,
    adapter::{NameTable, Parts},
    models::{ClipTextConfig, ClipTextModel, UNet2DConditionModel, UNetConfig},
    nn::Part,
    weights::{Weights, record_shapes},
};
use serde_json::Value;

/// The names of a family's layers, from the network itself.
pub fn table(configs: &Value) -> Result<NameTable> {
    let mut table = None;
    record_shapes(|weights| {
        let part = |name: &str| configs.get(name);
        let mut unet = UNet2DConditionModel::load(weights, &UNetConfig::from_json(&configs["unet"])?)?;
        let text = |name: &str, class: &str, weights: &Weights| {
            let mut config = part(name)?.clone();
            config["architectures"] = serde_json::json!([class]);
            Some(ClipTextConfig::from_json(&config).and_then(|config| ClipTextModel::load(weights, &config)))
        };
        let mut first = text("text_encoder", "CLIPTextModel", &weights.pp("one")).transpose()?;
        let second = text("text_encoder_2", "CLIPTextModelWithProjection", &weights.pp("two"));
        let mut second = second.transpose()?;
        let mut parts = Parts::new().with(Part::Unet, &mut unet);
        if let Some(text) = &mut first {
            parts = parts.with(Part::TextEncoder, text);
        }
        if let Some(text) = &mut second {
            parts = parts.with(Part::TextEncoder2, text);
        }
        table = Some(NameTable::of(&mut parts)?);
        Ok(())
    })?;
    table.ok_or_else(|| Error::invalid("no network"))
}
