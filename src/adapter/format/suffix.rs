//! The end of a key: which parameter of which algorithm it is.

/// A parameter of a module's delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Param {
    /// The factor that reads the input.
    Down,
    /// The factor that writes the output.
    Up,
    /// The Tucker core between them.
    Mid,
    /// alpha.
    Alpha,
    /// Of an algorithm that is known by name only.
    Unsupported(&'static str),
}

use Param::{Alpha, Down, Mid, Unsupported, Up};

/// Every known suffix. The longest match wins, so order is for reading only.
const SUFFIXES: &[(&str, Param)] = &[
    (".lora_down.weight", Down),
    (".lora_up.weight", Up),
    (".lora_mid.weight", Mid),
    (".alpha", Alpha),
    // PEFT, and diffusers' current names
    (".lora_A.weight", Down),
    (".lora_B.weight", Up),
    (".lora_A", Down),
    (".lora_B", Up),
    // diffusers, 2023
    (".lora.down.weight", Down),
    (".lora.up.weight", Up),
    (".lora_linear_layer.down.weight", Down),
    (".lora_linear_layer.up.weight", Up),
    // diffusers' attention processors, early 2023
    ("_lora.down.weight", Down),
    ("_lora.up.weight", Up),
    (".dora_scale", Unsupported("DoRA")),
    (".lora_magnitude_vector", Unsupported("DoRA")),
    (".lora_magnitude_vector.weight", Unsupported("DoRA")),
    (".magnitude", Unsupported("DoRA")),
    (".scale", Unsupported("a stored scale")),
    (".reshape_weight", Unsupported("a padded weight (Flux)")),
    (".lora_B.bias", Unsupported("LoRA with a bias")),
    (".lora_embedding_A", Unsupported("LoRA on embeddings")),
    (".lora_embedding_B", Unsupported("LoRA on embeddings")),
    (".hada_w1_a", Unsupported("LoHa")),
    (".hada_w1_b", Unsupported("LoHa")),
    (".hada_w2_a", Unsupported("LoHa")),
    (".hada_w2_b", Unsupported("LoHa")),
    (".hada_t1", Unsupported("LoHa")),
    (".hada_t2", Unsupported("LoHa")),
    (".lokr_w1", Unsupported("LoKr")),
    (".lokr_w1_a", Unsupported("LoKr")),
    (".lokr_w1_b", Unsupported("LoKr")),
    (".lokr_w2", Unsupported("LoKr")),
    (".lokr_w2_a", Unsupported("LoKr")),
    (".lokr_w2_b", Unsupported("LoKr")),
    (".lokr_t1", Unsupported("LoKr")),
    (".lokr_t2", Unsupported("LoKr")),
    (".a1.weight", Unsupported("GLoRA")),
    (".a2.weight", Unsupported("GLoRA")),
    (".b1.weight", Unsupported("GLoRA")),
    (".b2.weight", Unsupported("GLoRA")),
    (".bm.weight", Unsupported("GLoRA")),
    (".on_input", Unsupported("IA³")),
    (".ia3_l", Unsupported("IA³")),
    (".diff", Unsupported("a full delta")),
    (".diff_b", Unsupported("a full delta")),
    (".w_norm", Unsupported("a norm delta")),
    (".b_norm", Unsupported("a norm delta")),
    (".oft_blocks", Unsupported("OFT")),
    (".oft_diag", Unsupported("OFT")),
    (".rescale", Unsupported("OFT")),
    (".oft_R.weight", Unsupported("OFT")),
    (".oft_R.scaled_oft", Unsupported("OFT")),
    (".bias_indices", Unsupported("a sparse residual")),
    (".bias_values", Unsupported("a sparse residual")),
    (".bias_size", Unsupported("a sparse residual")),
];

/// Splits a key into the module's spelling and the parameter.
pub fn split(key: &str) -> Option<(&str, Param)> {
    if key.starts_with("bundle_emb.") {
        return Some((key, Unsupported("a bundled textual inversion")));
    }
    SUFFIXES
        .iter()
        .filter_map(|(suffix, param)| key.strip_suffix(suffix).map(|module| (module, *param)))
        .filter(|(module, _)| !module.is_empty())
        .min_by_key(|(module, _)| module.len())
        .or_else(|| split_named(key))
}

/// PEFT's raw state dict has the adapter's name before `.weight`: `….lora_A.default.weight`.
fn split_named(key: &str) -> Option<(&str, Param)> {
    let stem = key.strip_suffix(".weight")?;
    [(".lora_A.", Down), (".lora_B.", Up)].into_iter().find_map(|(infix, param)| {
        let (module, name) = stem.rsplit_once(infix)?;
        (!module.is_empty() && !name.contains('.')).then_some((module, param))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_suffix_wins() {
        for (key, module, param) in [
            ("lora_unet_x.lora_down.weight", "lora_unet_x", Down),
            ("unet.a.to_q.lora_A.weight", "unet.a.to_q", Down),
            ("unet.a.to_q.lora_B.default.weight", "unet.a.to_q", Up),
            ("unet.a.processor.to_q_lora.up.weight", "unet.a.processor.to_q", Up),
            ("te.q_proj.lora_linear_layer.down.weight", "te.q_proj", Down),
            ("x.lokr_w2_a", "x", Unsupported("LoKr")),
            ("x.lora_magnitude_vector.weight", "x", Unsupported("DoRA")),
            ("x.lora_B.bias", "x", Unsupported("LoRA with a bias")),
        ] {
            assert_eq!(split(key), Some((module, param)), "{key}");
        }
        assert_eq!(split(".alpha"), None);
        assert_eq!(split("a.weight"), None);
    }
}
