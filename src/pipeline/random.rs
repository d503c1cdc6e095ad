//! Models with random weights: what speed and memory can be measured on without a download.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    error::Result,
    models::{AutoencoderKl, ClipTextModel, UNet2DConditionModel, family},
    weights::{Checkpoint, Component, Family, RandomStore, Store},
};

/// A model of `family`'s own sizes. Tensors are made when they are asked for.
///
/// # Errors
/// If a network cannot be planned.
pub fn random_model(family: Family) -> Result<Checkpoint> {
    let mut texts = family::text_encoder_configs(family).into_iter();
    let mut stores: BTreeMap<Component, Arc<dyn Store>> = BTreeMap::new();
    for component in family.components() {
        let shapes = match component {
            Component::Unet => UNet2DConditionModel::parameter_shapes(&family::unet_config(family))?,
            Component::Vae => AutoencoderKl::parameter_shapes(&family::vae_config(family))?,
            _ => ClipTextModel::parameter_shapes(&texts.next().unwrap_or_default())?,
        };
        stores.insert(*component, Arc::new(RandomStore::new(shapes, *component as u64)?));
    }
    Ok(Checkpoint::in_memory(family, stores, format!("random {family}")))
}
