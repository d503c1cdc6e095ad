//! The end of a key: which parameter of which algorithm it is.

/// A parameter of a module's delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "most are named as in files; the rest have a line")]
pub enum Param {
    /// The factor that reads the input.
    Down,
    /// The factor that writes the output.
    Up,
    /// The Tucker core between them.
    Mid,
    /// Added to the layer's output, inside the scale.
    UpBias,
    /// alpha.
    Alpha,
    /// In alpha / r's place.
    Scale,
    /// `DoRA`'s magnitude as LyCORIS, `OneTrainer` and Comfy name it.
    DoraScale,
    /// The same as PEFT names it.
    MagnitudeVector,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrT1,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    GloraA1,
    GloraA2,
    GloraB1,
    GloraB2,
    GloraBm,
    /// IA³'s factors, which only their neighbour `OnInput` tells from anything else.
    Ia3Weight,
    OnInput,
    /// PEFT's IA³.
    Ia3L,
    Diff,
    DiffB,
    WNorm,
    BNorm,
    OftBlocks,
    OftDiag,
    Rescale,
    OftR,
    ScaledOft,
    BiasIndices,
    BiasValues,
    BiasSize,
    /// Known by name only.
    Unsupported(&'static str),
}

use Param::{
    Alpha, BNorm, BiasIndices, BiasSize, BiasValues, Diff, DiffB, DoraScale, Down, GloraA1, GloraA2, GloraB1,
    GloraB2, GloraBm, HadaT1, HadaT2, HadaW1A, HadaW1B, HadaW2A, HadaW2B, Ia3L, Ia3Weight, LokrT1, LokrT2,
    LokrW1, LokrW1A, LokrW1B, LokrW2, LokrW2A, LokrW2B, MagnitudeVector, Mid, OftBlocks, OftDiag, OftR,
    OnInput, Rescale, Scale, ScaledOft, Unsupported, Up, UpBias, WNorm,
};

/// Every known suffix. The longest match wins, so order is for reading only, and for [`Param::name`], which takes the
/// first.
const SUFFIXES: &[(&str, Param)] = &[
    (".lora_down.weight", Down),
    (".lora_up.weight", Up),
    (".lora_mid.weight", Mid),
    (".alpha", Alpha),
    (".scale", Scale),
    (".dora_scale", DoraScale),
    // PEFT, and diffusers' current names
    (".lora_A.weight", Down),
    (".lora_B.weight", Up),
    (".lora_A", Down),
    (".lora_B", Up),
    (".lora_B.bias", UpBias),
    (".lora_magnitude_vector", MagnitudeVector),
    (".lora_magnitude_vector.weight", MagnitudeVector),
    (".magnitude", MagnitudeVector),
    // diffusers, 2023
    (".lora.down.weight", Down),
    (".lora.up.weight", Up),
    (".lora_linear_layer.down.weight", Down),
    (".lora_linear_layer.up.weight", Up),
    // diffusers' attention processors, early 2023
    ("_lora.down.weight", Down),
    ("_lora.up.weight", Up),
    (".reshape_weight", Unsupported("a padded weight (Flux)")),
    (".lora_embedding_A", Unsupported("LoRA on embeddings")),
    (".lora_embedding_B", Unsupported("LoRA on embeddings")),
    (".hada_w1_a", HadaW1A),
    (".hada_w1_b", HadaW1B),
    (".hada_w2_a", HadaW2A),
    (".hada_w2_b", HadaW2B),
    (".hada_t1", HadaT1),
    (".hada_t2", HadaT2),
    (".lokr_w1", LokrW1),
    (".lokr_w1_a", LokrW1A),
    (".lokr_w1_b", LokrW1B),
    (".lokr_t1", LokrT1),
    (".lokr_w2", LokrW2),
    (".lokr_w2_a", LokrW2A),
    (".lokr_w2_b", LokrW2B),
    (".lokr_t2", LokrT2),
    (".a1.weight", GloraA1),
    (".a2.weight", GloraA2),
    (".b1.weight", GloraB1),
    (".b2.weight", GloraB2),
    (".bm.weight", GloraBm),
    (".on_input", OnInput),
    (".ia3_l", Ia3L),
    (".diff", Diff),
    (".diff_b", DiffB),
    (".w_norm", WNorm),
    (".b_norm", BNorm),
    (".oft_blocks", OftBlocks),
    (".oft_diag", OftDiag),
    (".rescale", Rescale),
    (".oft_R.weight", OftR),
    (".oft_R.scaled_oft", ScaledOft),
    (".bias_indices", BiasIndices),
    (".bias_values", BiasValues),
    (".bias_size", BiasSize),
];

/// What PEFT's raw state dicts have an adapter's name behind, and what may follow the name.
const NAMED: &[(&str, &str)] = &[
    (".lora_A", ".weight"),
    (".lora_B", ".weight"),
    (".lora_B", ".bias"),
    (".lora_magnitude_vector", ".weight"),
    (".lora_magnitude_vector", ""),
    (".oft_R", ".weight"),
    (".ia3_l", ""),
    (".hada_w1_a", ""),
    (".hada_w1_b", ""),
    (".hada_w2_a", ""),
    (".hada_w2_b", ""),
    (".hada_t1", ""),
    (".hada_t2", ""),
    (".lokr_w1", ""),
    (".lokr_w1_a", ""),
    (".lokr_w1_b", ""),
    (".lokr_w2", ""),
    (".lokr_w2_a", ""),
    (".lokr_w2_b", ""),
    (".lokr_t2", ""),
];

impl Param {
    /// The suffix by which kohya or LyCORIS knows it.
    pub fn name(self) -> &'static str {
        match self {
            Ia3Weight => ".weight",
            Unsupported(what) => what,
            _ => SUFFIXES.iter().find(|(_, param)| *param == self).map_or("", |(suffix, _)| suffix),
        }
    }

    /// The algorithm whose parameter it is; `None` for those that stand beside several.
    pub fn algorithm(self) -> Option<&'static str> {
        match self {
            Down | Up | Mid | UpBias => Some("LoRA"),
            HadaW1A | HadaW1B | HadaW2A | HadaW2B | HadaT1 | HadaT2 => Some("LoHa"),
            LokrW1 | LokrW1A | LokrW1B | LokrT1 | LokrW2 | LokrW2A | LokrW2B | LokrT2 => Some("LoKr"),
            GloraA1 | GloraA2 | GloraB1 | GloraB2 | GloraBm => Some("GLoRA"),
            Ia3Weight | OnInput => Some("IA³"),
            Ia3L => Some("IA³ (PEFT)"),
            Diff => Some("full"),
            WNorm | BNorm => Some("norm"),
            OftBlocks => Some("OFT"),
            OftDiag => Some("OFT (oft_diag)"),
            OftR | ScaledOft => Some("OFTv2"),
            Alpha | Scale | DoraScale | MagnitudeVector | DiffB | Rescale | BiasIndices | BiasValues
            | BiasSize | Unsupported(_) => None,
        }
    }

    /// True for parameters that are numbers or places, not weights: any dtype will do.
    pub fn is_setting(self) -> bool {
        matches!(self, Alpha | Scale | OnInput | ScaledOft | BiasIndices | BiasSize)
    }
}

/// Splits a key into the module's spelling and the parameter.
pub fn split(key: &str) -> Option<(&str, Param)> {
    if key.contains(".modules_to_save.") {
        return Some((key, Unsupported("a whole saved module (PEFT's modules_to_save)")));
    }
    SUFFIXES
        .iter()
        .filter_map(|(suffix, param)| key.strip_suffix(suffix).map(|module| (module, *param)))
        .filter(|(module, _)| !module.is_empty())
        .min_by_key(|(module, _)| module.len())
        .or_else(|| split_named(key))
}

/// [`split`], for a key among others: `.weight` is IA³'s if there is an `.on_input` beside it.
pub fn split_among(key: &str, is_key: impl Fn(&str) -> bool) -> Option<(&str, Param)> {
    split(key).or_else(|| {
        let module = key.strip_suffix(".weight")?;
        is_key(&format!("{module}.on_input")).then_some((module, Ia3Weight))
    })
}

/// PEFT's raw state dict has the adapter's name inside: `….lora_A.default.weight`.
fn split_named(key: &str) -> Option<(&str, Param)> {
    NAMED.iter().find_map(|(infix, tail)| {
        let (stem, name) = key.strip_suffix(tail)?.rsplit_once('.')?;
        let module = stem.strip_suffix(infix)?;
        let param = SUFFIXES.iter().find(|(suffix, _)| suffix.strip_suffix(tail) == Some(infix))?.1;
        (!module.is_empty() && !name.is_empty()).then_some((module, param))
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
            ("unet.a.to_q.lora_B.default.bias", "unet.a.to_q", UpBias),
            ("unet.a.to_q.hada_w1_a.default", "unet.a.to_q", HadaW1A),
            ("unet.a.to_q.oft_R.default.weight", "unet.a.to_q", OftR),
            ("unet.a.processor.to_q_lora.up.weight", "unet.a.processor.to_q", Up),
            ("te.q_proj.lora_linear_layer.down.weight", "te.q_proj", Down),
            ("x.lokr_w2_a", "x", LokrW2A),
            ("x.lora_magnitude_vector.weight", "x", MagnitudeVector),
            ("x.lora_magnitude_vector.default.weight", "x", MagnitudeVector),
            ("x.lora_B.bias", "x", UpBias),
        ] {
            assert_eq!(split(key), Some((module, param)), "{key}");
        }
        assert_eq!(split(".alpha"), None);
        assert_eq!(split("a.weight"), None);
        assert_eq!(split_among("a.weight", |key| key == "a.on_input"), Some(("a", Ia3Weight)));
        assert_eq!(split_among("a.weight", |_| false), None);
    }

    #[test]
    fn every_parameter_has_a_name() {
        for (suffix, param) in SUFFIXES {
            assert!(!param.name().is_empty(), "{suffix}");
        }
        assert_eq!(UpBias.name(), ".lora_B.bias");
        assert_eq!(Down.name(), ".lora_down.weight");
    }
}
