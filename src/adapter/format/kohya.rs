//! kohya's spelling (sd-scripts): `lora_unet_` + the path with `_` for `.`; SDXL's UNet in LDM's names.

use super::NameTable;
use crate::{
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
