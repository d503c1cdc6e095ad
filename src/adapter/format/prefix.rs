//! The beginning of a key: which component it speaks of, and the module's name in one spelling.

use std::borrow::Cow;

use super::kohya;

/// What a key's beginning says of the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The denoising network.
    Unet,
    /// A text encoder, as files for models with one of them say it.
    OnlyTextEncoder,
    /// The only text encoder, or the first of two.
    TextEncoder,
    /// The second of two.
    TextEncoder2,
    /// Not said; names of networks and text encoders never coincide.
    Unsaid,
}

/// A module's name with its container's prefix removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Where to look.
    pub component: Component,
    /// The path with `.` replaced by `_`.
    pub flat: String,
    /// The spelling, for people.
    pub dialect: &'static str,
}

use Component::{OnlyTextEncoder, TextEncoder, TextEncoder2, Unet, Unsaid};

const COMFY: &str = "ComfyUI";
const CHECKPOINT: &str = "checkpoint names";

/// Container prefixes, tried in order; what follows one that does not say the component is tried again.
const PREFIXES: &[(&str, Component, &str)] = &[
    (kohya::UNET, Unet, "kohya"),
    (kohya::TEXT_ENCODER_1, TextEncoder, "kohya"),
    (kohya::TEXT_ENCODER_2, TextEncoder2, "kohya"),
    (kohya::TEXT_ENCODER, OnlyTextEncoder, "kohya"),
    ("oft_unet_", Unet, "kohya"),
    ("lycoris_unet_", Unet, "LyCORIS"),
    ("lycoris_", Unsaid, "LyCORIS"),
    ("base_model.model.", Unsaid, "PEFT"),
    ("unet.", Unet, "diffusers"),
    ("text_encoder_2.", TextEncoder2, "diffusers"),
    ("text_encoder.", TextEncoder, "diffusers"),
    ("text_encoders.clip_l.transformer.", TextEncoder, COMFY),
    ("text_encoders.clip_g.transformer.", TextEncoder2, COMFY),
    ("text_encoders.clip_h.transformer.", OnlyTextEncoder, COMFY),
    ("diffusion_model.", Unet, COMFY),
    ("model.diffusion_model.", Unet, CHECKPOINT),
    ("cond_stage_model.transformer.", OnlyTextEncoder, CHECKPOINT),
    ("cond_stage_model.model.", OnlyTextEncoder, CHECKPOINT),
    ("conditioner.embedders.0.transformer.", TextEncoder, CHECKPOINT),
    ("conditioner.embedders.0.model.", TextEncoder2, CHECKPOINT),
    ("conditioner.embedders.1.model.", TextEncoder2, CHECKPOINT),
];

/// Wrappers that leave a segment in every name below them: torch.compile, data-parallel training, gradient
/// checkpointing, and diffusers' first attention processors.
const WRAPPERS: &[&str] = &["_orig_mod", "module", "checkpoint", "_checkpoint_wrapped_module", PROCESSOR];
const PROCESSOR: &str = "processor";

/// Beginnings of keys that belong to models this program does not run, or to files that are no adapters.
const FOREIGN: &[(&str, &str)] = &[
    ("lora_transformer_", "a transformer model (SD3, Flux)"),
    ("lycoris_transformer_blocks_", "a transformer model (SD3, Flux)"),
    ("lycoris_single_transformer_blocks_", "Flux"),
    ("transformer.", "a transformer model (SD3, Flux)"),
    ("lora_unet_double_blocks_", "Flux"),
    ("lora_unet_single_blocks_", "Flux"),
    ("diffusion_model.double_blocks.", "Flux"),
    ("diffusion_model.single_blocks.", "Flux"),
    ("double_blocks.", "Flux"),
    ("single_blocks.", "Flux"),
    ("lora_unet_joint_blocks_", "SD3"),
    ("diffusion_model.joint_blocks.", "SD3"),
    ("joint_blocks.", "SD3"),
    ("diffusion_model.blocks.", "a video model (Wan)"),
    ("lora_te3_", "a T5 text encoder (SD3)"),
    ("text_encoder_3.", "a T5 text encoder (SD3)"),
    ("text_encoders.t5xxl.", "a T5 text encoder (SD3)"),
    ("lora_prior_", "Stable Cascade"),
    ("control_model.", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("lora_controlnet", "a Control-LoRA"),
    ("lllite_", "a ControlNet-LLLite"),
    ("ip_adapter.", "an IP-Adapter"),
    ("image_proj.", "an IP-Adapter"),
    ("unet:", "cloneofsimo's lora, whose layers have numbers instead of names"),
    ("text_encoder:", "cloneofsimo's lora, whose layers have numbers instead of names"),
    ("first_stage_model.", "a whole checkpoint"),
    ("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint"),
    ("model_ema.", "a whole checkpoint"),
    ("alphas_cumprod", "a whole checkpoint"),
    ("emb_params", "a textual inversion, which prompts call by its file's name"),
    ("string_to_param", "a textual inversion, which prompts call by its file's name"),
    ("clip_l", "a textual inversion, which prompts call by its file's name"),
    ("clip_g", "a textual inversion, which prompts call by its file's name"),
];

/// Tensors that tools leave beside an adapter's own: part of no layer, with nothing to apply.
pub fn is_bookkeeping(key: &str) -> bool {
    key.starts_with("_aux.")
}

/// The kind of model or file a key belongs to, if not one of ours.
pub fn foreign(key: &str) -> Option<&'static str> {
    let key = without_wrappers(key);
    FOREIGN.iter().find(|(prefix, _)| key.starts_with(prefix)).map(|(_, what)| *what)
}

/// Reads a module's name in any spelling.
pub fn parse(module: &str) -> Module {
    let name = without_wrappers(module);
    let (mut component, mut rest, mut dialect) = (Unsaid, &*name, None);
    while component == Unsaid
        && let Some((prefix, said, by)) = PREFIXES.iter().find(|(prefix, ..)| rest.starts_with(prefix))
    {
        (component, rest, dialect) = (*said, &rest[prefix.len()..], dialect.or(Some(*by)));
    }
    // PEFT's own prefix may also stand inside a component's.
    rest = rest.strip_prefix("base_model.model.").unwrap_or(rest);
    // A compiled module under a name without dots.
    rest = rest.strip_prefix("_orig_mod_").unwrap_or(rest);
    let dialect = match dialect {
        _ if module.split('.').any(|segment| segment == PROCESSOR) => "diffusers, attention processors",
        Some(dialect) => dialect,
        None if is_ldm(rest) => "LDM names, without a prefix",
        None => "diffusers, without a prefix",
    };
    let mut segments: Vec<&str> = rest.split('.').collect();
    if let Some(last) = segments.last_mut() {
        *last = leaf(last, component);
    }
    Module { component, flat: segments.join("_"), dialect }
}

/// True for the UNet's names in the original code, flat or dotted.
pub fn is_ldm(name: &str) -> bool {
    [
        "input_blocks",
        "middle_block",
        "output_blocks",
        "time_embed.",
        "time_embed_0",
        "time_embed_2",
        "label_emb",
    ]
    .iter()
    .any(|block| name.starts_with(block))
}

/// True for the names of a text encoder's layers, flat.
pub fn is_text(flat: &str) -> bool {
    [
        "text_model",
        "encoder_layers",
        "embeddings_",
        "transformer_resblocks",
        "final_layer_norm",
        "text_projection",
    ]
    .iter()
    .any(|start| flat.starts_with(start))
}

fn without_wrappers(name: &str) -> Cow<'_, str> {
    if !name.split('.').any(|segment| WRAPPERS.contains(&segment)) {
        return name.into();
    }
    name.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect::<Vec<_>>().join(".").into()
}

/// The oldest spellings used the UNet's words on text encoders too, and left `to_out`'s index away.
fn leaf(leaf: &str, component: Component) -> &str {
    let text = matches!(component, OnlyTextEncoder | TextEncoder | TextEncoder2);
    match (leaf, text) {
        ("to_q", true) => "q_proj",
        ("to_k", true) => "k_proj",
        ("to_v", true) => "v_proj",
        ("to_out", true) => "out_proj",
        ("to_out", false) => "to_out_0",
        _ => leaf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_meet() {
        let wanted = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0";
        let block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        for name in [
            format!("lora_unet_{wanted}"),
            format!("lora_unet__orig_mod_{wanted}"),
            format!("oft_unet_{wanted}"),
            format!("lycoris_{wanted}"),
            // What is left of a DoRA of diffusers' converter to kohya's names.
            format!("lora_unet_{}.0", wanted.trim_end_matches("_0")),
            format!("unet.{block}.to_out.0"),
            format!("unet.{block}.processor.to_out"),
            format!("unet._orig_mod.{block}.to_out.0"),
            format!("module.unet.down_blocks.0.checkpoint{}.to_out.0", &block["down_blocks.0".len()..]),
            format!("base_model.model.{block}.to_out.0"),
            format!("base_model.model.unet.{block}.to_out.0"),
            format!("unet.base_model.model.{block}.to_out.0"),
            format!("diffusion_model.{block}.to_out.0"),
            format!("{block}.processor.to_out"),
            format!("{block}.to_out.0"),
        ] {
            assert_eq!(parse(&name).flat, wanted, "{name}");
        }
        let te = parse("text_encoder.text_model.encoder.layers.3.self_attn.to_q");
        assert_eq!(
            (te.component, te.flat.as_str()),
            (TextEncoder, "text_model_encoder_layers_3_self_attn_q_proj")
        );
        assert_eq!(parse("lora_te2_x").component, TextEncoder2);
        assert_eq!(parse("text_encoders.clip_g.transformer.x").component, TextEncoder2);
        assert_eq!(parse("input_blocks.1.1.proj_in").dialect, "LDM names, without a prefix");
    }

    #[test]
    fn other_models_are_known_by_name() {
        for (key, what) in [
            ("lora_te3_x", "a T5 text encoder (SD3)"),
            ("module.transformer.single_transformer_blocks.0.attn.to_q", "a transformer model (SD3, Flux)"),
            ("unet:0:up", "cloneofsimo's lora, whose layers have numbers instead of names"),
            ("lllite_unet_input_blocks_4_1_x", "a ControlNet-LLLite"),
        ] {
            assert_eq!(foreign(key), Some(what), "{key}");
        }
        assert_eq!(foreign("unet.conv_in"), None);
        assert!(is_bookkeeping("_aux.3f2a.x") && !is_bookkeeping("unet._aux"));
    }
}
