//! The text encoder's `config.json`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    ops,
};

/// Hugging Face's `CLIPTextConfig`, with its defaults; unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Hugging Face's and documented there")]
pub struct ClipTextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f64,
    /// 2 in old configs, which is wrong: there the end is the largest id.
    pub eos_token_id: u32,
    /// `CLIPTextModelWithProjection` where there is a `text_projection`.
    pub architectures: Option<Vec<String>>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            architectures: None,
        }
    }
}

impl ClipTextConfig {
    /// Reads `config.json`, of a text encoder or of a whole CLIP with a `text_config` inside.
    ///
    /// # Errors
    /// If a field has another type than Hugging Face gives it.
    pub fn from_json(json: &Value) -> Result<Self> {
        let inner = json.get("text_config").filter(|inner| inner.is_object()).unwrap_or(json);
        Self::deserialize(inner).map_err(|e| Error::invalid(format!("text encoder config: {e}")))
    }

    /// Does the class the config was saved from have a `text_projection`?
    pub fn has_projection(&self) -> bool {
        self.architectures.iter().flatten().any(|class| class == "CLIPTextModelWithProjection")
    }

    pub(super) fn activation(&self) -> Result<Activation> {
        match self.hidden_act.as_str() {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu" => Ok(Activation::Gelu),
            other => {
                Err(Error::unknown("`hidden_act` in the text encoder config:", other, ["quick_gelu", "gelu"]))
            }
        }
    }
}

/// The non-linearity of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    QuickGelu,
    Gelu,
}

impl Activation {
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::QuickGelu => ops::quick_gelu(x),
            Self::Gelu => ops::gelu(x),
        }
    }
}
