//! The autoencoder's `config.json`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// diffusers' `AutoencoderKL` config, with diffusers' defaults; unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are diffusers' and documented there")]
pub struct VaeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub act_fn: String,
    pub latent_channels: usize,
    pub norm_num_groups: usize,
    /// Latents are multiplied by it after encoding and divided before decoding; by the caller.
    pub scaling_factor: f64,
    /// Subtracted before that multiplication; by the caller.
    pub shift_factor: Option<f64>,
    /// Does f16 overflow in it (SDXL's does)? For the caller, who picks the dtype.
    pub force_upcast: bool,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    /// Stable Diffusion's (diffusers' own defaults describe a network with one block that nobody has).
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec!["DownEncoderBlock2D".into(); 4],
            up_block_types: vec!["UpDecoderBlock2D".into(); 4],
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            act_fn: "silu".into(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl VaeConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If a field has another type than diffusers gives it, or a value this network does not have; the message names
    /// the field.
    pub fn from_json(json: &Value) -> Result<Self> {
        let config = Self::deserialize(json).map_err(|e| Error::invalid(format!("VAE config: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Pixels a side of one latent pixel.
    pub fn downscale(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    pub(super) fn check(&self) -> Result<()> {
        let n = self.block_out_channels.len();
        for (field, types, known) in [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            if types.len() != n || n == 0 {
                return Err(Error::invalid(format!(
                    "VAE config: `{field}` has {} entries, `block_out_channels` has {n}; expected as many, at least one",
                    types.len()
                )));
            }
            if let Some(other) = types.iter().find(|t| *t != known) {
                return Err(Error::unknown(&format!("block in the VAE config's `{field}`:"), other, [known]));
            }
        }
        match self.act_fn.as_str() {
            "silu" | "swish" => Ok(()),
            other => Err(Error::unknown("`act_fn` in the VAE config:", other, ["silu"])),
        }
    }
}
