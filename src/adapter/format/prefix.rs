//! The beginning of a key: which component it speaks of, and the module's name in one spelling.

use super::kohya;

/// What a key's beginning says of the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// The denoising network.
    Unet,
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

/// Container prefixes, tried in order.
const PREFIXES: &[(&str, Component, &str)] = &[
    (kohya::UNET, Component::Unet, "kohya"),
    (kohya::TEXT_ENCODER_1, Component::TextEncoder, "kohya"),
    (kohya::TEXT_ENCODER_2, Component::TextEncoder2, "kohya"),
    (kohya::TEXT_ENCODER, Component::TextEncoder, "kohya"),
    ("base_model.model.", Component::Unsaid, "PEFT"),
    ("unet.", Component::Unet, "diffusers"),
    ("text_encoder_2.", Component::TextEncoder2, "diffusers"),
    ("text_encoder.", Component::TextEncoder, "diffusers"),
];

/// Prefixes of models this program does not run.
const FOREIGN: &[(&str, &str)] = &[
    ("lora_transformer_", "a transformer model (SD3, Flux)"),
    ("transformer.", "a transformer model (SD3, Flux)"),
    ("lora_unet_double_blocks_", "Flux"),
    ("lora_unet_single_blocks_", "Flux"),
    ("lora_unet_joint_blocks_", "SD3"),
    ("lora_te3_", "a T5 text encoder (SD3)"),
    ("lora_prior_", "Stable Cascade"),
    ("control_model.", "a ControlNet"),
];

/// The kind of model a key belongs to, if not one of ours.
pub fn foreign(module: &str) -> Option<&'static str> {
    FOREIGN.iter().find(|(prefix, _)| module.starts_with(prefix)).map(|(_, what)| *what)
}

/// Reads a module's name in any spelling.
pub fn parse(module: &str) -> Module {
    let (component, rest, mut dialect) = PREFIXES
        .iter()
        .find_map(|(prefix, component, dialect)| {
            module.strip_prefix(prefix).map(|r| (*component, r, *dialect))
        })
        .unwrap_or((Component::Unsaid, module, "diffusers, without a prefix"));
    let processor = rest.contains(".processor.");
    if processor {
        dialect = "diffusers, attention processors";
    }
    let mut segments: Vec<&str> =
        rest.split('.').filter(|s| !matches!(*s, "processor" | "_orig_mod")).collect();
    if let Some(last) = segments.last_mut() {
        *last = leaf(last, component);
    }
    Module { component, flat: segments.join("_"), dialect }
}

/// The oldest spellings used the UNet's words on text encoders too, and left `to_out`'s index away.
fn leaf(leaf: &str, component: Component) -> &str {
    let text = matches!(component, Component::TextEncoder | Component::TextEncoder2);
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
        let dotted = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        for name in [
            format!("lora_unet_{wanted}"),
            format!("unet.{dotted}.to_out.0"),
            format!("unet.{dotted}.processor.to_out"),
            format!("base_model.model.{dotted}.to_out.0"),
            format!("{dotted}.processor.to_out"),
        ] {
            assert_eq!(parse(&name).flat, wanted, "{name}");
        }
        let te = parse("text_encoder.text_model.encoder.layers.3.self_attn.to_q");
        assert_eq!(
            (te.component, te.flat.as_str()),
            (Component::TextEncoder, "text_model_encoder_layers_3_self_attn_q_proj")
        );
        assert_eq!(parse("lora_te2_x").component, Component::TextEncoder2);
        assert_eq!(foreign("lora_te3_x"), Some("a T5 text encoder (SD3)"));
    }
}
