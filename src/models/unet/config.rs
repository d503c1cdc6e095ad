//! The UNet's `config.json`, and what it means block by block.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// One value for all blocks, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerBlock<T> {
    /// From the finest block to the coarsest. Tried first: a list of lists is also one list for all.
    Each(Vec<T>),
    /// The same for all.
    All(T),
}

impl<T: Clone> PerBlock<T> {
    /// The value of every one of `n` blocks; `field` is the config key, for the message.
    fn expand(&self, n: usize, field: &str) -> Result<Vec<T>> {
        match self {
            Self::All(value) => Ok(vec![value.clone(); n]),
            Self::Each(values) if values.len() == n => Ok(values.clone()),
            Self::Each(values) => Err(Error::invalid(format!(
                "UNet config: `{field}` has {} entries, expected one for each of {n} blocks",
                values.len()
            ))),
        }
    }
}

/// diffusers' `UNet2DConditionModel` config, with diffusers' defaults; unknown fields are ignored, known fields with
/// values this network does not have are refused by [`UNetConfig::plan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are diffusers' and documented there")]
pub struct UNetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub down_block_types: Vec<String>,
    pub mid_block_type: Option<String>,
    pub up_block_types: Vec<String>,
    pub only_cross_attention: PerBlock<bool>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: PerBlock<usize>,
    pub downsample_padding: usize,
    pub mid_block_scale_factor: f64,
    pub dropout: f64,
    pub act_fn: String,
    pub norm_num_groups: Option<usize>,
    pub norm_eps: f64,
    pub cross_attention_dim: PerBlock<usize>,
    pub transformer_layers_per_block: PerBlock<PerBlock<usize>>,
    pub reverse_transformer_layers_per_block: Option<Vec<PerBlock<usize>>>,
    pub encoder_hid_dim: Option<usize>,
    pub encoder_hid_dim_type: Option<String>,
    /// The number of heads, whatever the name says
    /// (<https://github.com/huggingface/diffusers/issues/2011#issuecomment-1547958131>).
    pub attention_head_dim: PerBlock<usize>,
    pub num_attention_heads: Option<PerBlock<usize>>,
    pub dual_cross_attention: bool,
    pub use_linear_projection: bool,
    pub class_embed_type: Option<String>,
    pub addition_embed_type: Option<String>,
    pub addition_time_embed_dim: Option<usize>,
    pub num_class_embeds: Option<usize>,
    /// Ignored: our attention adds up in f32.
    pub upcast_attention: Option<bool>,
    pub resnet_time_scale_shift: String,
    pub resnet_skip_time_act: bool,
    pub resnet_out_scale_factor: f64,
    pub time_embedding_type: String,
    pub time_embedding_dim: Option<usize>,
    pub time_embedding_act_fn: Option<String>,
    pub timestep_post_act: Option<String>,
    pub time_cond_proj_dim: Option<usize>,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
    pub projection_class_embeddings_input_dim: Option<usize>,
    pub attention_type: String,
    pub class_embeddings_concat: bool,
    pub cross_attention_norm: Option<String>,
    /// Picture size the network was trained for, in latent pixels; information only.
    pub sample_size: Option<Value>,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(String::from).to_vec();
        let cross = "CrossAttnDownBlock2D";
        let cross_up = "CrossAttnUpBlock2D";
        Self {
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([cross, cross, cross, "DownBlock2D"]),
            mid_block_type: Some("UNetMidBlock2DCrossAttn".into()),
            up_block_types: names(["UpBlock2D", cross_up, cross_up, cross_up]),
            only_cross_attention: PerBlock::All(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::All(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            dropout: 0.0,
            act_fn: "silu".into(),
            norm_num_groups: Some(32),
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::All(1280),
            transformer_layers_per_block: PerBlock::All(PerBlock::All(1)),
            reverse_transformer_layers_per_block: None,
            encoder_hid_dim: None,
            encoder_hid_dim_type: None,
            attention_head_dim: PerBlock::All(8),
            num_attention_heads: None,
            dual_cross_attention: false,
            use_linear_projection: false,
            class_embed_type: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            num_class_embeds: None,
            upcast_attention: None,
            resnet_time_scale_shift: "default".into(),
            resnet_skip_time_act: false,
            resnet_out_scale_factor: 1.0,
            time_embedding_type: "positional".into(),
            time_embedding_dim: None,
            time_embedding_act_fn: None,
            timestep_post_act: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            projection_class_embeddings_input_dim: None,
            attention_type: "default".into(),
            class_embeddings_concat: false,
            cross_attention_norm: None,
            sample_size: None,
        }
    }
}

/// What pooled text and picture sizes are embedded into (SDXL).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdditionPlan {
    /// Width of the sinusoid of each time id.
    pub time_id_width: usize,
    /// Width of pooled text and all time ids together.
    pub input: usize,
}

/// The transformers of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Heads of each attention.
    pub heads: usize,
    /// Width of the text.
    pub context_width: usize,
    /// Transformer blocks after each resnet.
    pub depths: Vec<usize>,
    /// Does the first attention look at the text too, in place of the picture?
    pub only_cross_attention: bool,
}

/// One block of the way down or up, or the middle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockPlan {
    /// Channels of each resnet's input, with what skips bring on the way up.
    pub inputs: Vec<usize>,
    /// Output channels.
    pub output: usize,
    /// Is the picture halved (doubled) at the end?
    pub resample: bool,
    /// None in a block of resnets only.
    pub attention: Option<AttentionPlan>,
}

/// The whole network, nothing left to interpret.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetPlan {
    /// From fine to coarse.
    pub down: Vec<BlockPlan>,
    /// The coarsest block.
    pub mid: Option<BlockPlan>,
    /// From coarse to fine.
    pub up: Vec<BlockPlan>,
    /// Width of the sinusoid of the timestep.
    pub time_input: usize,
    /// Width of the time embedding.
    pub time_width: usize,
    /// SDXL's additional conditioning.
    pub addition: Option<AdditionPlan>,
    /// Groups of all group normalisations.
    pub groups: usize,
}

impl UNetConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If a field has another type than diffusers gives it.
    pub fn from_json(json: &Value) -> Result<Self> {
        Self::deserialize(json).map_err(|e| Error::invalid(format!("UNet config: {e}")))
    }

    /// Interprets the config.
    ///
    /// # Errors
    /// If a field has a value this network does not have, or lists have different lengths; the message names the
    /// field.
    pub fn plan(&self) -> Result<UNetPlan> {
        self.refuse_unsupported()?;
        let n = self.block_out_channels.len();
        for (field, len) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if len != n || n == 0 {
                return Err(Error::invalid(format!(
                    "UNet config: `{field}` has {len} entries, `block_out_channels` has {n}; expected as many, at least one"
                )));
            }
        }
        let groups = self
            .norm_num_groups
            .ok_or_else(|| Error::invalid("UNet config: `norm_num_groups` is null, expected a number"))?;
        let channels = &self.block_out_channels;
        Ok(UNetPlan {
            down: self.plan_down()?,
            mid: self.plan_mid()?,
            up: self.plan_up()?,
            time_input: channels[0],
            time_width: self.time_embedding_dim.unwrap_or(4 * channels[0]),
            addition: self.plan_addition()?,
            groups,
        })
    }

    /// Channels of the text, which all blocks share in the networks we know.
    pub fn context_width(&self) -> usize {
        match &self.cross_attention_dim {
            PerBlock::All(width) => *width,
            PerBlock::Each(widths) => widths.first().copied().unwrap_or_default(),
        }
    }

    fn plan_down(&self) -> Result<Vec<BlockPlan>> {
        let n = self.block_out_channels.len();
        let layers = self.layers_per_block.expand(n, "layers_per_block")?;
        let depths = self.transformer_layers_per_block.expand(n, "transformer_layers_per_block")?;
        let mut previous = self.block_out_channels[0];
        let mut blocks = Vec::with_capacity(n);
        for i in 0..n {
            let output = self.block_out_channels[i];
            let crossed = has_attention(
                &self.down_block_types[i],
                "down_block_types",
                ["CrossAttnDownBlock2D", "DownBlock2D"],
            )?;
            let attention = crossed.then(|| self.plan_attention(i, layers[i], &depths[i])).transpose()?;
            let inputs = (0..layers[i]).map(|j| if j == 0 { previous } else { output }).collect();
            blocks.push(BlockPlan { inputs, output, resample: i + 1 < n, attention });
            previous = output;
        }
        Ok(blocks)
    }

    fn plan_mid(&self) -> Result<Option<BlockPlan>> {
        let n = self.block_out_channels.len();
        let output = self.block_out_channels[n - 1];
        let block = |resnets, attention| BlockPlan {
            inputs: vec![output; resnets],
            output,
            resample: false,
            attention,
        };
        match self.mid_block_type.as_deref() {
            None => Ok(None),
            Some("UNetMidBlock2D") => Ok(Some(block(1, None))),
            Some("UNetMidBlock2DCrossAttn") => {
                let depths = self.transformer_layers_per_block.expand(n, "transformer_layers_per_block")?;
                let depth = match &depths[n - 1] {
                    PerBlock::All(depth) => *depth,
                    PerBlock::Each(depths) => depths.first().copied().unwrap_or(1),
                };
                let attention = self.plan_attention(n - 1, 1, &PerBlock::All(depth))?;
                Ok(Some(block(2, Some(AttentionPlan { only_cross_attention: false, ..attention }))))
            }
            Some(other) => Err(unsupported("mid_block_type", other)
                .with_hint("known: UNetMidBlock2DCrossAttn, UNetMidBlock2D, null")),
        }
    }

    fn plan_up(&self) -> Result<Vec<BlockPlan>> {
        let n = self.block_out_channels.len();
        let layers = self.layers_per_block.expand(n, "layers_per_block")?;
        let depths = match &self.reverse_transformer_layers_per_block {
            Some(depths) => {
                PerBlock::Each(depths.clone()).expand(n, "reverse_transformer_layers_per_block")?
            }
            None => {
                let mut depths =
                    self.transformer_layers_per_block.expand(n, "transformer_layers_per_block")?;
                depths.reverse();
                depths
            }
        };
        let mut previous = self.block_out_channels[n - 1];
        let mut blocks = Vec::with_capacity(n);
        for (i, depth) in depths.iter().enumerate() {
            let level = n - 1 - i;
            let output = self.block_out_channels[level];
            let below = self.block_out_channels[level.saturating_sub(1)];
            let resnets = layers[level] + 1;
            let crossed = has_attention(
                &self.up_block_types[i],
                "up_block_types",
                ["CrossAttnUpBlock2D", "UpBlock2D"],
            )?;
            let attention = crossed.then(|| self.plan_attention(level, resnets, depth)).transpose()?;
            let inputs = (0..resnets)
                .map(|j| {
                    let skip = if j + 1 == resnets { below } else { output };
                    skip + if j == 0 { previous } else { output }
                })
                .collect();
            blocks.push(BlockPlan { inputs, output, resample: i + 1 < n, attention });
            previous = output;
        }
        Ok(blocks)
    }

    fn plan_attention(
        &self,
        level: usize,
        resnets: usize,
        depths: &PerBlock<usize>,
    ) -> Result<AttentionPlan> {
        let n = self.block_out_channels.len();
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        let depths = depths.expand(resnets, "transformer_layers_per_block")?;
        Ok(AttentionPlan {
            heads: heads.expand(n, "attention_head_dim")?[level],
            context_width: self.cross_attention_dim.expand(n, "cross_attention_dim")?[level],
            depths,
            only_cross_attention: self.only_cross_attention.expand(n, "only_cross_attention")?[level],
        })
    }

    fn plan_addition(&self) -> Result<Option<AdditionPlan>> {
        let missing = |field| {
            Error::invalid(format!(
                "UNet config: `{field}` is null, which `addition_embed_type` \"text_time\" needs"
            ))
        };
        match self.addition_embed_type.as_deref() {
            None => Ok(None),
            Some("text_time") => Ok(Some(AdditionPlan {
                time_id_width: self
                    .addition_time_embed_dim
                    .ok_or_else(|| missing("addition_time_embed_dim"))?,
                input: self
                    .projection_class_embeddings_input_dim
                    .ok_or_else(|| missing("projection_class_embeddings_input_dim"))?,
            })),
            Some(other) => {
                Err(unsupported("addition_embed_type", other).with_hint("known: text_time (SDXL), null"))
            }
        }
    }

    /// Fields whose only known value is diffusers' default.
    fn refuse_unsupported(&self) -> Result<()> {
        let default = Self::default();
        let refused = [
            ("center_input_sample", self.center_input_sample.to_string(), self.center_input_sample),
            ("dropout", self.dropout.to_string(), self.dropout != 0.0),
            (
                "mid_block_scale_factor",
                self.mid_block_scale_factor.to_string(),
                self.mid_block_scale_factor != 1.0,
            ),
            ("act_fn", self.act_fn.clone(), !["silu", "swish"].contains(&self.act_fn.as_str())),
            ("encoder_hid_dim", format!("{:?}", self.encoder_hid_dim), self.encoder_hid_dim.is_some()),
            (
                "encoder_hid_dim_type",
                format!("{:?}", self.encoder_hid_dim_type),
                self.encoder_hid_dim_type.is_some(),
            ),
            ("dual_cross_attention", self.dual_cross_attention.to_string(), self.dual_cross_attention),
            ("class_embed_type", format!("{:?}", self.class_embed_type), self.class_embed_type.is_some()),
            ("num_class_embeds", format!("{:?}", self.num_class_embeds), self.num_class_embeds.is_some()),
            (
                "resnet_time_scale_shift",
                self.resnet_time_scale_shift.clone(),
                self.resnet_time_scale_shift != default.resnet_time_scale_shift,
            ),
            ("resnet_skip_time_act", self.resnet_skip_time_act.to_string(), self.resnet_skip_time_act),
            (
                "resnet_out_scale_factor",
                self.resnet_out_scale_factor.to_string(),
                self.resnet_out_scale_factor != default.resnet_out_scale_factor,
            ),
            (
                "time_embedding_type",
                self.time_embedding_type.clone(),
                self.time_embedding_type != default.time_embedding_type,
            ),
            (
                "time_embedding_act_fn",
                format!("{:?}", self.time_embedding_act_fn),
                self.time_embedding_act_fn.is_some(),
            ),
            ("timestep_post_act", format!("{:?}", self.timestep_post_act), self.timestep_post_act.is_some()),
            ("attention_type", self.attention_type.clone(), self.attention_type != default.attention_type),
            (
                "class_embeddings_concat",
                self.class_embeddings_concat.to_string(),
                self.class_embeddings_concat,
            ),
            (
                "cross_attention_norm",
                format!("{:?}", self.cross_attention_norm),
                self.cross_attention_norm.is_some(),
            ),
        ];
        match refused.into_iter().find(|(_, _, refuse)| *refuse) {
            Some((field, value, _)) => Err(unsupported(field, &value)),
            None => Ok(()),
        }
    }
}

fn unsupported(field: &str, value: &str) -> Error {
    Error::invalid(format!("UNet config: `{field}` is {value}, which this network does not have"))
}

/// Is a block of type `name` the one with attention, `known[0]`, or the one without, `known[1]`?
fn has_attention(name: &str, field: &str, known: [&str; 2]) -> Result<bool> {
    match known.iter().position(|k| *k == name) {
        Some(i) => Ok(i == 0),
        None => Err(Error::unknown(&format!("block in the UNet config's `{field}`:"), name, known)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_values_name_their_field() {
        let cases = [
            (r#"{"dual_cross_attention": true}"#, "dual_cross_attention"),
            (r#"{"class_embed_type": "timestep"}"#, "class_embed_type"),
            (r#"{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}"#, "mid_block_type"),
            (r#"{"layers_per_block": [2, 2]}"#, "layers_per_block"),
            (r#"{"addition_embed_type": "text_time"}"#, "addition_time_embed_dim"),
            (
                r#"{"down_block_types": ["KDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]}"#,
                "down_block_types",
            ),
            (r#"{"norm_num_groups": null}"#, "norm_num_groups"),
            (r#"{"in_channels": "four"}"#, "four"),
        ];
        for (json, field) in cases {
            let json: Value = serde_json::from_str(json).unwrap();
            let error = UNetConfig::from_json(&json).and_then(|c| c.plan()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    /// The lists of SSD-1B: uneven depths, their own order on the way up, a middle without attention.
    #[test]
    fn distilled_sdxl_is_understood() -> Result<()> {
        let json = serde_json::json!({
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [320, 640, 1280],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [0, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        });
        let plan = UNetConfig::from_json(&json)?.plan()?;
        let depths = |b: &BlockPlan| b.attention.as_ref().map(|a| (a.heads, a.depths.clone()));
        assert_eq!(
            plan.down.iter().map(depths).collect::<Vec<_>>(),
            [None, Some((10, vec![2, 2])), Some((20, vec![4, 4])),]
        );
        assert_eq!(
            plan.up.iter().map(depths).collect::<Vec<_>>(),
            [Some((20, vec![4, 4, 10])), Some((10, vec![2, 1, 1])), None,]
        );
        assert_eq!(plan.up[0].inputs, [2560, 2560, 1920]);
        assert_eq!(plan.mid.map(|m| (m.inputs.len(), m.attention)), Some((1, None)));
        Ok(())
    }
}
