//! A model's layers without its networks: their names and shapes, and weights one at a time. What work on adapter
//! files needs of a model.

use std::sync::Arc;

use candle_core::Tensor;

use super::load;
use crate::{
    adapter::{NameTable, Parts, Survey, format::Fit},
    error::{Error, Result},
    models::{ClipTextModel, UNet2DConditionModel, clip::ClipTextConfig, family, unet::UNetConfig},
    nn::{LayerPath, Part},
    weights::{Checkpoint, Component, Family, Store, embedded, reader::SafetensorsFile, record_shapes},
};

/// The layers of the family's full-size model.
///
/// # Errors
/// Never for a known family.
pub fn of_family(family: Family) -> Result<NameTable> {
    let components = family.components().iter();
    let text = components.filter_map(|c| text_part(*c)).zip(family::text_encoder_configs(family));
    table(&family::unet_config(family), &text.collect::<Vec<_>>())
}

/// The layers of an opened model, by its configs; its weights are not read.
///
/// # Errors
/// If a config is missing or malformed.
pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<NameTable> {
    let mut text = Vec::new();
    let of_family = family::text_encoder_configs(checkpoint.family);
    let components = checkpoint.family.components().iter().filter(|c| text_part(**c).is_some());
    for (component, default) in components.zip(of_family) {
        let stated = checkpoint
            .component(*component)?
            .config
            .map(|json| ClipTextConfig::from_json(&json))
            .transpose()?;
        text.extend(text_part(*component).map(|part| (part, stated.unwrap_or(default))));
    }
    table(&load::unet_config(checkpoint)?, &text)
}

/// Which model adapter files were made for: the family, or the embedded model, whose layers they fit best.
///
/// # Errors
/// If they fit none.
pub fn detect(files: &[SafetensorsFile]) -> Result<(&'static str, NameTable)> {
    let mut best: Option<(usize, &'static str, NameTable)> = None;
    let mut consider = |name: &'static str, table: NameTable| {
        let misfits: usize = files.iter().map(|f| Fit::of(f, &table).other).sum();
        if best.as_ref().is_none_or(|(least, ..)| misfits < *least) {
            best = Some((misfits, name, table));
        }
        misfits
    };
    for family in [Family::Sd1, Family::Sdxl, Family::Sd2, Family::SdxlRefiner] {
        if consider(family.title(), of_family(family)?) == 0 {
            break;
        }
    }
    consider(embedded::NAME, of_checkpoint(&embedded::open()?)?);
    if let Some((file, what)) = files.iter().find_map(|f| Some((f, Survey::of(f).ok()?.foreign?))) {
        return Err(Error::file(file.path(), format!("belongs to {what}, which no Stable Diffusion is")));
    }
    let names: Vec<String> = files.iter().map(|f| f.path().display().to_string()).collect();
    match best {
        Some((_, name, table)) if files.iter().all(|f| Fit::of(f, &table).fitting > 0) => Ok((name, table)),
        _ => Err(Error::invalid(format!("{}: fits no known model", names.join(", "))).with_hint(match files {
            [_] => "`--model` names the model that the adapter is for; `scumble inspect` says what the file holds",
            _ => "`--model` names the model that the adapters are for; all must be for one family",
        })),
    }
}

fn text_part(component: Component) -> Option<Part> {
    match component {
        Component::TextEncoder => Some(Part::TextEncoder),
        Component::TextEncoder2 => Some(Part::TextEncoder2),
        Component::Unet | Component::Vae => None,
    }
}

/// A model's weights by the layers they belong to: read one at a time, whatever the model's size.
#[derive(Debug)]
pub struct BaseWeights(Vec<(Part, Arc<dyn Store>)>);

impl BaseWeights {
    /// Of an opened model; nothing is read yet.
    ///
    /// # Errors
    /// If a component is missing.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let mut stores = Vec::new();
        for component in checkpoint.family.components() {
            let part = match component {
                Component::Unet => Some(Part::Unet),
                other => text_part(*other),
            };
            if let Some(part) = part {
                stores.push((part, checkpoint.component(*component)?.store));
            }
        }
        Ok(Self(stores))
    }

    /// A layer's weight, on the CPU as stored.
    ///
    /// # Errors
    /// If the model has no such layer, or it cannot be read.
    pub fn get(&self, path: &LayerPath) -> Result<Tensor> {
        match self.0.iter().find(|(part, _)| *part == path.part) {
            Some((_, store)) => store.load(&format!("{}.weight", path.name)),
            None => Err(Error::invalid(format!("the model has no `{path}`"))),
        }
    }
}

/// Builds the networks from nothing and asks them.
fn table(unet: &UNetConfig, text: &[(Part, ClipTextConfig)]) -> Result<NameTable> {
    let mut table = None;
    record_shapes(|weights| {
        let mut unet = UNet2DConditionModel::load(&weights.pp("unet"), unet)?;
        let mut encoders = Vec::new();
        for (i, (part, config)) in text.iter().enumerate() {
            encoders.push((*part, ClipTextModel::load(&weights.pp(i), config)?));
        }
        let mut parts = Parts::new().with(Part::Unet, &mut unet);
        for (part, encoder) in &mut encoders {
            parts = parts.with(*part, encoder);
        }
        table = Some(NameTable::of(&mut parts)?);
        Ok(())
    })?;
    table.ok_or_else(|| Error::invalid("the model has no layers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kohya's default counts, from its own networks (`docs` of sd-scripts, and our golden shapes).
    #[test]
    fn full_size_families_are_listed_without_weights() -> Result<()> {
        for (family, unet, text) in [(Family::Sd1, 282, 72), (Family::Sdxl, 794, 72 + 192 + 1)] {
            let table = of_family(family)?;
            let count = |unet: bool| {
                let wide = |shape: &[usize]| shape.len() > 1;
                let layers = table.layers().filter(|(p, s)| (p.part == Part::Unet) == unet && wide(s));
                layers.filter(|(p, _)| !p.name.contains("embeddings")).count()
            };
            assert_eq!((count(true), count(false)), (unet, text), "{family}");
        }
        Ok(())
    }
}
