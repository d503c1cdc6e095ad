//! ComfyUI's own spelling: the original code's names below `diffusion_model.` and `text_encoders.`; parameters as kohya's.

use super::NameTable;
use crate::{
    adapter::{Delta, Lineage},
    error::Result,
    nn::{LayerPath, Part},
};

/// The module's name in a file for the model of `table`.
///
/// # Errors
/// If a layer of the UNet has no original name.
pub(super) fn module_name(path: &LayerPath, table: &NameTable) -> Result<String> {
    let encoder = match (path.part, table.lineage()) {
        (Part::Unet, _) => return Ok(format!("diffusion_model.{}", table.ldm_name(&path.name)?)),
        (Part::TextEncoder, Some(Lineage::Sd2)) => "clip_h",
        (Part::TextEncoder, _) => "clip_l",
        (Part::TextEncoder2, _) => "clip_g",
    };
    Ok(format!("text_encoders.{encoder}.transformer.{}", path.name))
}

/// True for what ComfyUI has a reader for.
pub(super) fn has_words(delta: &Delta) -> bool {
    match delta {
        Delta::Ia3(_) | Delta::OftV2(_) => false,
        Delta::Dora(dora) => has_words(&dora.inner),
        Delta::Beside(beside) => beside.residual.is_none() && has_words(&beside.inner),
        _ => true,
    }
}
