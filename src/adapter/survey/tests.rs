//! Surveys of headers written here, in the shapes of the real models.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::{adapter::Lineage, weights::writer::SafetensorsWriter};

/// A file of these keys and shapes, with these metadata.
fn survey(keys: &[(&str, &[usize])], metadata: &[(&str, &str)]) -> Result<Survey> {
    let tensors: Vec<(&str, Tensor)> = keys
        .iter()
        .map(|(key, shape)| Ok((*key, Tensor::full(2f32, *shape, &Device::Cpu)?.to_dtype(DType::F16)?)))
        .collect::<Result<_>>()?;
    let writer = SafetensorsWriter::new(tensors.iter().map(|(key, tensor)| (*key, tensor)))?;
    let metadata: BTreeMap<String, String> =
        metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    Survey::of(&SafetensorsFile::from_bytes("memory", writer.to_bytes(&metadata)?)?)
}

/// Keys with shapes, metadata, the family, and whether a warning is due.
type Case<'a> = (&'a [(&'a str, &'a [usize])], &'a [(&'a str, &'a str)], Option<Lineage>, bool);

#[test]
fn the_family_is_told_by_shapes_then_names_then_metadata() -> Result<()> {
    let sdxl = [("ss_base_model_version", "sdxl_base_v1-0")];
    let v2 = [("ss_v2", "True")];
    let v1 = [("ss_base_model_version", "sd_v1")];
    let cases: [Case<'_>; 17] = [
        (
            &[(
                "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
                &[4, 768],
            )],
            &[],
            Some(Lineage::Sd1),
            false,
        ),
        (
            &[("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight", &[4, 1024])],
            &sdxl,
            Some(Lineage::Sd2),
            true,
        ),
        (
            &[("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.hada_w1_b", &[4, 2048])],
            &sdxl,
            Some(Lineage::Sdxl),
            false,
        ),
        (
            &[
                ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lokr_w1", &[16, 16]),
                ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lokr_w2_b", &[4, 80]),
            ],
            &[],
            Some(Lineage::SdxlRefiner),
            false,
        ),
        (
            &[
                ("lora_te2_text_model_encoder_layers_3_mlp_fc1.lora_down.weight", &[4, 1280]),
                ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj.lora_down.weight", &[4, 768]),
            ],
            &[],
            Some(Lineage::Sdxl),
            false,
        ),
        (
            &[("lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_down.weight", &[4, 1024])],
            &[],
            Some(Lineage::Sd2),
            false,
        ),
        (
            &[("lora_unet_output_blocks_0_1_transformer_blocks_9_attn1_to_q.lora_down.weight", &[4, 1280])],
            &v2,
            Some(Lineage::Sdxl),
            true,
        ),
        (
            &[("lora_unet_input_blocks_7_1_transformer_blocks_3_attn1_to_q.lora_down.weight", &[4, 1536])],
            &sdxl,
            Some(Lineage::SdxlRefiner),
            false,
        ),
        (
            &[("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &[4, 320, 1, 1])],
            &[],
            None,
            false,
        ),
        (
            &[("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &[4, 320, 1, 1])],
            &v2,
            Some(Lineage::Sd2),
            false,
        ),
        (
            &[("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &[4, 320, 1, 1])],
            &sdxl,
            None,
            true,
        ),
        (
            &[("lora_unet_mid_block_resnets_0_conv1.lora_down.weight", &[4, 1280, 3, 3])],
            &sdxl,
            Some(Lineage::Sdxl),
            false,
        ),
        (
            &[("bundle_emb.dog.clip_g", &[2, 1280]), ("bundle_emb.dog.clip_l", &[2, 768])],
            &[],
            Some(Lineage::Sdxl),
            false,
        ),
        (
            &[(
                "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
                &[4, 64],
            )],
            &v2,
            Some(Lineage::Other(64)),
            false,
        ),
        // Adapters for `mini` once said SD 1.
        (
            &[(
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
                &[4, 128],
            )],
            &v1,
            Some(Lineage::Mini),
            false,
        ),
        (
            &[("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &[4, 32, 1, 1])],
            &v1,
            Some(Lineage::Mini),
            false,
        ),
        (
            &[("lora_unet_mid_block_resnets_0_conv1.lora_down.weight", &[4, 128, 3, 3])],
            &[("modelspec.architecture", "scumble-mini/lora")],
            Some(Lineage::Mini),
            false,
        ),
    ];
    for (keys, metadata, lineage, warned) in cases {
        let found = survey(keys, metadata)?;
        assert_eq!(found.family.lineage, lineage, "{keys:?}: {}", found.family);
        assert_eq!(!found.warnings.is_empty(), warned, "{keys:?}: {:?}", found.warnings);
        assert!(!found.family.evidence.is_empty());
    }
    Ok(())
}

#[test]
fn blocks_algorithms_and_bundles_are_listed() -> Result<()> {
    let found = survey(
        &[
            (
                "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
                &[8, 640],
            ),
            (
                "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
                &[640, 8],
            ),
            ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.alpha", &[]),
            ("lora_unet_input_blocks_4_0_in_layers_2.hada_w1_b", &[4, 2880]),
            ("lora_unet_input_blocks_4_0_in_layers_2.dora_scale", &[320, 1, 1, 1]),
            ("lora_unet_up_blocks_1_upsamplers_0_conv.oft_blocks", &[2, 8, 4, 4]),
            ("lora_te_text_model_encoder_layers_0_layer_norm1.w_norm", &[768]),
            ("bundle_emb.my.dog.x", &[2, 768]),
            ("_aux.1f.note", &[3]),
            ("lora_unet_conv_in.surprise", &[1]),
        ],
        &[],
    )?;
    let blocks: Vec<(String, usize)> =
        found.blocks().iter().map(|b| (b.block.to_string(), b.modules)).collect();
    let expected = [("TE", 1), ("IN04", 2), ("OUT05", 1)].map(|(b, n)| (b.to_string(), n));
    assert_eq!(blocks, expected);
    let input = &found.blocks()[1];
    assert_eq!((input.ranks.as_slice(), input.alphas.as_slice()), (&[4, 8][..], &[2.0, 4.0][..]));
    let algorithms = found.algorithms();
    assert_eq!(algorithms, BTreeMap::from([("BOFT", 1), ("LoHa + DoRA", 1), ("LoRA", 1), ("norm", 1)]));
    let kinds: Vec<String> = found.trained().keys().map(ToString::to_string).collect();
    assert_eq!(kinds, ["self-attention", "resnets", "resamplers", "norms"]);
    assert_eq!(found.embeddings[0].name, "my");
    assert_eq!(found.embeddings[0].vectors, [("dog.x".to_string(), vec![2, 768])]);
    assert_eq!(found.unknown, ["lora_unet_conv_in.surprise"]);
    assert_eq!(found.modules[0].scale(), 1.0);

    let flux = survey(&[("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", &[4, 3072])], &[])?;
    assert_eq!((flux.foreign, flux.modules.len()), (Some("Flux"), 0));
    Ok(())
}
