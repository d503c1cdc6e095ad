//! A checkpoint into a [`Pipeline`].

use candle_core::{DType, Device};

use super::{Pipeline, TextEncoders, Tiles, blending::Applied};
use crate::{
    adapter::Blend,
    diffusion::{NoiseSchedule, Prediction},
    error::{Error, Result},
    models::{
        AutoencoderKl, UNet2DConditionModel,
        family::{self, Conventions},
        unet::UNetConfig,
        vae::VaeConfig,
    },
    weights::{Checkpoint, Component, Weights},
};

impl Pipeline {
    /// Loads every component onto `device`; networks in `dtype`, the autoencoder in f32 where f16 would overflow in it.
    ///
    /// # Errors
    /// If a component is missing, does not have the shapes its config says, or the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device, dtype: DType) -> Result<Self> {
        let conventions = family::conventions(checkpoint.family);
        let located = |e: Error| e.context(checkpoint.origin.clone());
        Ok(Self {
            family: checkpoint.family,
            origin: checkpoint.origin.clone(),
            unet: unet(checkpoint, device, dtype).map_err(located)?,
            vae: vae(checkpoint, device, dtype).map_err(located)?,
            text: TextEncoders::load(checkpoint, device, dtype).map_err(located)?,
            schedule: schedule(checkpoint, &conventions).map_err(located)?,
            conventions,
            tiles: Tiles::default(),
            device: device.clone(),
            dtype,
            blend: Blend::new(),
            applied: Applied::default(),
        })
    }
}

/// The denoising network of a checkpoint.
///
/// # Errors
/// If it is missing or does not have the shapes its config says.
pub fn unet(checkpoint: &Checkpoint, device: &Device, dtype: DType) -> Result<UNet2DConditionModel> {
    let store = checkpoint.component(Component::Unet)?.store;
    UNet2DConditionModel::load(&Weights::new(store, dtype, device.clone()), &unet_config(checkpoint)?)
}

/// The denoising network's sizes: its own config's, or its family's.
///
/// # Errors
/// If the config is malformed.
pub(super) fn unet_config(checkpoint: &Checkpoint) -> Result<UNetConfig> {
    match checkpoint.component(Component::Unet)?.config {
        Some(json) => UNetConfig::from_json(&json),
        None => {
            Ok(UNetConfig { in_channels: checkpoint.in_channels(), ..family::unet_config(checkpoint.family) })
        }
    }
}

/// The autoencoder of a checkpoint. SDXL's overflows in f16, so that f16 becomes f32 here.
///
/// # Errors
/// If it is missing or does not have the shapes its config says.
pub fn vae(checkpoint: &Checkpoint, device: &Device, dtype: DType) -> Result<AutoencoderKl> {
    let store = checkpoint.component(Component::Vae)?.store;
    let dtype = if dtype == DType::F16 { DType::F32 } else { dtype };
    AutoencoderKl::load(&Weights::new(store, dtype, device.clone()), &vae_config(checkpoint)?)
}

/// The autoencoder's sizes: its own config's, or its family's.
///
/// # Errors
/// If the config is malformed.
pub(crate) fn vae_config(checkpoint: &Checkpoint) -> Result<VaeConfig> {
    match checkpoint.component(Component::Vae)?.config {
        Some(json) => VaeConfig::from_json(&json),
        None => Ok(family::vae_config(checkpoint.family)),
    }
}

/// The noise schedule a checkpoint was trained on: its own scheduler's config, or what its family uses.
///
/// # Errors
/// If the config has a value that makes no sense.
pub fn schedule(checkpoint: &Checkpoint, conventions: &Conventions) -> Result<NoiseSchedule> {
    if let Some(config) = checkpoint.scheduler_config()? {
        return NoiseSchedule::from_config(&config);
    }
    let hint = checkpoint.prediction();
    let prediction: Prediction =
        hint.prediction_type.as_deref().unwrap_or(conventions.prediction_type).parse()?;
    let schedule = NoiseSchedule::stable_diffusion(prediction);
    match hint.zero_terminal_snr {
        Some(true) => schedule.with_zero_terminal_snr(),
        _ => Ok(schedule),
    }
}
