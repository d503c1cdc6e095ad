//! The networks of Stable Diffusion, frozen, with slots for adapters.
//!
//! A network is its config and its weights; nothing in here knows which family it belongs to. What differs between
//! families are values, in [`family`].

pub mod clip;
pub mod family;
pub mod unet;
pub mod vae;

pub use clip::{ClipOptions, ClipOutput, ClipTextConfig, ClipTextModel};
pub use unet::{AddedConditions, UNet2DConditionModel, UNetConfig, UNetInput};
pub use vae::{AutoencoderKl, DiagonalGaussian, Tiling, VaeConfig};
