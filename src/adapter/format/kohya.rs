//! kohya's spelling (sd-scripts): `lora_unet_` + the path with `_` for `.`; SDXL's UNet in LDM's names.

use super::{NameTable, peft_write::Layer};
use crate::{
    adapter::{Delta, delta::OftSeries},
    error::Result,
    nn::{LayerPath, Part},
};

pub(super) const UNET: &str = "lora_unet_";
pub(super) const TEXT_ENCODER: &str = "lora_te_";
pub(super) const TEXT_ENCODER_1: &str = "lora_te1_";
pub(super) const TEXT_ENCODER_2: &str = "lora_te2_";

/// The module's name in a file for the model of `table`.
///
/// # Errors
/// If an SDXL layer has no LDM name.
pub fn module_name(path: &LayerPath, table: &NameTable) -> Result<String> {
    let flat = |name: &str| name.replace('.', "_");
    let two_encoders = table.has_second_text_encoder();
    Ok(match path.part {
        Part::Unet if two_encoders => format!("{UNET}{}", flat(&table.ldm_name(&path.name)?)),
        Part::Unet => format!("{UNET}{}", flat(&path.name)),
        Part::TextEncoder if two_encoders => format!("{TEXT_ENCODER_1}{}", flat(&path.name)),
        Part::TextEncoder => format!("{TEXT_ENCODER}{}", flat(&path.name)),
        Part::TextEncoder2 => format!("{TEXT_ENCODER_2}{}", flat(&path.name)),
    })
}

/// True for what kohya's and LyCORIS' names, without a config beside them, say completely.
pub(super) fn has_words(layer: &Layer<'_>) -> bool {
    match layer.delta {
        // PEFT's scales biases, LyCORIS' does not.
        Delta::Ia3(ia3) => !ia3.scales_bias || ia3.on_input || layer.has_no_bias(),
        // As OneTrainer writes it; anything else needs PEFT's config.
        Delta::OftV2(oft) => {
            oft.series == OftSeries::Neumann(5)
                && oft.block_limit.is_none()
                && oft.opposite == (layer.shape.len() == 4)
        }
        Delta::Dora(dora) => has_words(&Layer { delta: &dora.inner, ..*layer }),
        Delta::Beside(beside) => has_words(&Layer { delta: &beside.inner, ..*layer }),
        _ => true,
    }
}
