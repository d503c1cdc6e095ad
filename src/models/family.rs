//! What differs between the families of Stable Diffusion, as values: configs of checkpoints that bring none, and how
//! text, sizes and latents are used. Read once when a model is opened; networks never ask for the family.

use super::{
    clip::ClipTextConfig,
    unet::{
        UNetConfig,
        config::PerBlock::{All, Each},
    },
    vae::VaeConfig,
};
use crate::weights::Family;

/// Numbers about the picture that a network is told, in the order it expects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeIds {
    /// None (SD 1, SD 2).
    None,
    /// Original size, crop, target size (SDXL).
    Sizes,
    /// Original size, crop, aesthetic score (the refiner).
    Score,
}

/// A picture as SDXL is told of it. Pairs are (height, width) or (top, left), in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureFacts {
    /// Before it was resized.
    pub original: (usize, usize),
    /// Where the crop begins.
    pub crop: (usize, usize),
    /// As the network sees or makes it.
    pub target: (usize, usize),
    /// 6 for wanted pictures and 2.5 for unwanted ones, by convention.
    pub aesthetic_score: f32,
}

impl TimeIds {
    /// The numbers for one picture; none if the network takes none.
    pub fn of(self, facts: &PictureFacts) -> Option<Vec<f32>> {
        let pair = |(a, b): (usize, usize)| [a as f32, b as f32];
        let both = [pair(facts.original), pair(facts.crop)].concat();
        match self {
            Self::None => None,
            Self::Sizes => Some([both.as_slice(), &pair(facts.target)].concat()),
            Self::Score => Some([both.as_slice(), &[facts.aesthetic_score]].concat()),
        }
    }
}

/// How a family is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conventions {
    /// Clip skip if the user does not say, counted from 1 = last layer. For SD 2 that is the 23rd of `OpenCLIP`'s 24
    /// layers, the last one there is in a checkpoint.
    pub clip_skip: usize,
    /// Is the hidden state normalised by the final layer norm?
    pub final_norm: bool,
    /// Is an empty negative prompt all zeros (SDXL base) instead of the encoded empty text?
    pub zero_empty_negative: bool,
    /// What the network is told of the picture; with it comes pooled text.
    pub time_ids: TimeIds,
    /// What a text is filled up with in each encoder: `None` is the end token.
    pub pad_ids: [Option<u32>; 2],
    /// Side of the pictures the network was trained on.
    pub size_px: usize,
    /// How strongly the prompt pulls if the user does not say (classifier-free guidance).
    pub cfg_scale: f64,
    /// diffusers' name for what the network predicts, where neither checkpoint nor user says.
    pub prediction_type: &'static str,
}

/// How models of `family` are used.
pub fn conventions(family: Family) -> Conventions {
    let sd1 = Conventions {
        clip_skip: 1,
        final_norm: true,
        zero_empty_negative: false,
        time_ids: TimeIds::None,
        pad_ids: [None, None],
        size_px: 512,
        cfg_scale: 7.0,
        prediction_type: "epsilon",
    };
    let sdxl = Conventions {
        clip_skip: 2,
        final_norm: false,
        zero_empty_negative: true,
        time_ids: TimeIds::Sizes,
        pad_ids: [None, Some(0)],
        size_px: 1024,
        cfg_scale: 7.0,
        prediction_type: "epsilon",
    };
    match family {
        Family::Sd2 => {
            Conventions { pad_ids: [Some(0), None], size_px: 768, prediction_type: "v_prediction", ..sd1 }
        }
        Family::Sdxl => sdxl,
        Family::SdxlRefiner => Conventions { time_ids: TimeIds::Score, zero_empty_negative: false, ..sdxl },
        // A small network knows little, and what is beyond that it overdraws: 7 gives glaring colours and ragged edges.
        Family::Mini => Conventions { size_px: 128, cfg_scale: 4.0, ..sd1 },
        Family::Sd1 => sd1,
    }
}

/// The UNet of `family`, for checkpoints without a config.
pub fn unet_config(family: Family) -> UNetConfig {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (down, cross_down) = ("DownBlock2D", "CrossAttnDownBlock2D");
    let (up, cross_up) = ("UpBlock2D", "CrossAttnUpBlock2D");
    let sd1 = UNetConfig { cross_attention_dim: All(768), ..UNetConfig::default() };
    let sdxl = UNetConfig {
        down_block_types: names(&[down, cross_down, cross_down]),
        up_block_types: names(&[cross_up, cross_up, up]),
        block_out_channels: vec![320, 640, 1280],
        attention_head_dim: Each(vec![5, 10, 20]),
        cross_attention_dim: All(2048),
        transformer_layers_per_block: Each(vec![All(1), All(2), All(10)]),
        use_linear_projection: true,
        addition_embed_type: Some("text_time".into()),
        addition_time_embed_dim: Some(256),
        projection_class_embeddings_input_dim: Some(1280 + 6 * 256),
        ..sd1.clone()
    };
    match family {
        Family::Sd2 => UNetConfig {
            attention_head_dim: Each(vec![5, 10, 20, 20]),
            cross_attention_dim: All(1024),
            use_linear_projection: true,
            ..sd1
        },
        Family::Sdxl => sdxl,
        Family::SdxlRefiner => UNetConfig {
            down_block_types: names(&[down, cross_down, cross_down, down]),
            up_block_types: names(&[up, cross_up, cross_up, up]),
            block_out_channels: vec![384, 768, 1536, 1536],
            attention_head_dim: Each(vec![6, 12, 24, 24]),
            cross_attention_dim: All(1280),
            transformer_layers_per_block: All(All(4)),
            addition_time_embed_dim: Some(256),
            projection_class_embeddings_input_dim: Some(1280 + 5 * 256),
            ..sdxl
        },
        Family::Mini => UNetConfig {
            down_block_types: names(&[cross_down, cross_down, down]),
            up_block_types: names(&[up, cross_up, cross_up]),
            block_out_channels: vec![32, 64, 128],
            layers_per_block: All(1),
            attention_head_dim: All(4),
            cross_attention_dim: All(128),
            norm_num_groups: Some(8),
            ..sd1
        },
        Family::Sd1 => sd1,
    }
}

/// The text encoders of `family` in the order their outputs are joined, for checkpoints without configs.
pub fn text_encoder_configs(family: Family) -> Vec<ClipTextConfig> {
    let clip_l = ClipTextConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        projection_dim: 768,
        num_attention_heads: 12,
        ..ClipTextConfig::default()
    };
    let clip_h = ClipTextConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 23,
        num_attention_heads: 16,
        hidden_act: "gelu".into(),
        ..ClipTextConfig::default()
    };
    let clip_g = ClipTextConfig {
        hidden_size: 1280,
        intermediate_size: 5120,
        projection_dim: 1280,
        num_hidden_layers: 32,
        num_attention_heads: 20,
        hidden_act: "gelu".into(),
        architectures: Some(vec!["CLIPTextModelWithProjection".into()]),
        ..ClipTextConfig::default()
    };
    let mini = || ClipTextConfig {
        vocab_size: 2914,
        hidden_size: 128,
        intermediate_size: 512,
        projection_dim: 128,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        eos_token_id: 2913,
        ..ClipTextConfig::default()
    };
    match family {
        Family::Sd1 => vec![clip_l],
        Family::Sd2 => vec![clip_h],
        Family::Sdxl => vec![clip_l, clip_g],
        Family::SdxlRefiner => vec![clip_g],
        Family::Mini => vec![mini()],
    }
}

/// The autoencoder of `family`, for checkpoints without a config.
pub fn vae_config(family: Family) -> VaeConfig {
    match family {
        Family::Sdxl | Family::SdxlRefiner => VaeConfig { scaling_factor: 0.13025, ..VaeConfig::default() },
        Family::Mini => VaeConfig {
            block_out_channels: vec![16, 24, 48, 96],
            layers_per_block: 1,
            norm_num_groups: 2,
            scaling_factor: 0.579,
            ..VaeConfig::default()
        },
        Family::Sd1 | Family::Sd2 => VaeConfig::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Result,
        models::{AutoencoderKl, ClipTextModel, UNet2DConditionModel},
        weights::{Component, embedded},
    };

    /// Parameter counts as published (diffusers' `num_parameters()` of the released models).
    #[test]
    fn networks_have_their_published_size() -> Result<()> {
        let count = |shapes: std::collections::BTreeMap<String, candle_core::Shape>| -> usize {
            shapes.values().map(candle_core::Shape::elem_count).sum()
        };
        for (family, unet, text) in [
            (Family::Sd1, 859_520_964, vec![123_060_480]),
            (Family::Sd2, 865_910_724, vec![340_387_840]),
            (Family::Sdxl, 2_567_463_684, vec![123_060_480, 694_659_840]),
            (Family::SdxlRefiner, 2_259_526_660, vec![694_659_840]),
        ] {
            assert_eq!(
                count(UNet2DConditionModel::parameter_shapes(&unet_config(family))?),
                unet,
                "{family}"
            );
            let found: Vec<usize> = text_encoder_configs(family)
                .iter()
                .map(|config| Ok(count(ClipTextModel::parameter_shapes(config)?)))
                .collect::<Result<_>>()?;
            assert_eq!(found, text, "{family}");
            assert_eq!(count(AutoencoderKl::parameter_shapes(&vae_config(family))?), 83_653_863);
        }
        Ok(())
    }

    #[test]
    fn mini_is_the_embedded_model() -> Result<()> {
        let model = embedded::open()?;
        let config = |component| -> Result<serde_json::Value> {
            Ok(model.component(component)?.config.unwrap_or_default())
        };
        let unet = UNetConfig::from_json(&config(Component::Unet)?)?;
        let (known, shapes) = (unet_config(Family::Mini), UNet2DConditionModel::parameter_shapes);
        assert_eq!(shapes(&known)?, shapes(&unet)?);
        assert_eq!(known, UNetConfig { sample_size: None, upcast_attention: None, ..unet });
        let text = ClipTextConfig::from_json(&config(Component::TextEncoder)?)?;
        let known = text_encoder_configs(Family::Mini);
        assert_eq!(known, [ClipTextConfig { architectures: None, ..text }]);
        assert_eq!(vae_config(Family::Mini), VaeConfig::from_json(&config(Component::Vae)?)?);
        Ok(())
    }

    #[test]
    fn time_ids_fill_the_embedding() {
        let facts = PictureFacts { original: (1, 2), crop: (3, 4), target: (5, 6), aesthetic_score: 6.0 };
        assert_eq!(TimeIds::Sizes.of(&facts), Some(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        for family in Family::ALL {
            let config = unet_config(family);
            let ids = conventions(family).time_ids.of(&facts).map_or(0, |ids| ids.len());
            let expected = config.projection_class_embeddings_input_dim.map_or(0, |d| (d - 1280) / 256);
            assert_eq!(ids, expected, "{family}");
        }
    }
}
