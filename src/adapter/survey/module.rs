//! One layer's entry in a survey.

use std::collections::BTreeMap;

use candle_core::DType;

use super::{Block, Kind};
use crate::{
    adapter::format::{
        peft,
        prefix::{Component, Module},
    },
    weights::reader::{Entry, SafetensorsFile, StoredDtype},
};

/// A layer's parameters: what its keys end in, and their header entries.
pub(super) type Params<'a> = BTreeMap<&'a str, &'a Entry>;

/// What a file says of one layer.
#[derive(Debug, Clone)]
pub struct SurveyedModule {
    /// As in the file, without the parameter's name.
    pub name: String,
    /// Which component the name speaks of.
    pub component: Component,
    /// The path in diffusers' or the original words, `_` for `.`.
    pub flat: String,
    /// Where it is.
    pub block: Block,
    /// What it does.
    pub kind: Kind,
    /// "LoRA", "LoHa", "LoKr + DoRA" and so on.
    pub algorithm: String,
    /// r, if the algorithm has one.
    pub rank: Option<usize>,
    /// alpha as stated in the file: by a tensor, or by diffusers' metadata. `None` means alpha = rank.
    pub alpha: Option<f64>,
    /// How wide the layer's input is, where its parameters tell.
    pub reads: Option<usize>,
    /// True if a factor has the shape of a convolution's.
    pub is_conv: bool,
    /// The dtype of its first parameter that is no alpha.
    pub dtype: StoredDtype,
    /// How many keys it has.
    pub keys: usize,
    /// How many numbers they hold together.
    pub numbers: usize,
}

impl SurveyedModule {
    pub(super) fn new(
        name: &str,
        module: &Module,
        params: &Params<'_>,
        file: &SafetensorsFile,
        config: &peft::Config,
    ) -> Self {
        let shapes = Shapes(params);
        let rank = shapes.rank();
        let stored = params.keys().find(|p| **p == ".alpha").map(|p| scalar(file, &format!("{name}{p}")));
        let alpha = stored.unwrap_or_else(|| config.alpha_of_flat(module.component, &module.flat, rank?));
        Self {
            name: name.into(),
            component: module.component,
            flat: module.flat.clone(),
            block: Block::of(module.component, &module.flat),
            kind: Kind::of(module.component, &module.flat),
            algorithm: shapes.algorithm(),
            rank,
            alpha,
            reads: shapes.reads(),
            is_conv: params.values().any(|entry| entry.shape.len() == 4),
            dtype: params
                .iter()
                .find(|(suffix, _)| **suffix != ".alpha")
                .map_or(StoredDtype::F32, |(_, entry)| entry.dtype),
            keys: params.len(),
            numbers: params.values().map(|entry| entry.shape.iter().product::<usize>()).sum(),
        }
    }

    /// alpha / rank, the number the delta is multiplied with.
    pub fn scale(&self) -> f64 {
        match (self.alpha, self.rank) {
            (Some(alpha), Some(rank)) if rank > 0 => alpha / rank as f64,
            _ => 1.0,
        }
    }
}

/// The one number of a tensor, if that is what it holds.
fn scalar(file: &SafetensorsFile, key: &str) -> Option<f64> {
    if file.header().tensors.get(key)?.shape.iter().product::<usize>() != 1 {
        return None;
    }
    let tensor = file.tensor(key).ok()?.to_dtype(DType::F64).ok()?;
    tensor.flatten_all().ok()?.to_vec1::<f64>().ok()?.first().copied()
}

struct Shapes<'a>(&'a Params<'a>);

const DOWN: [&str; 6] = ["down.weight", ".lora_A.", ".lora_A", ".down", "_lora.down", ".lora_embedding_A"];

impl<'a> Shapes<'a> {
    fn get(&self, end: &str) -> Option<&'a [usize]> {
        self.0.iter().find(|(suffix, _)| suffix.ends_with(end)).map(|(_, entry)| entry.shape.as_slice())
    }

    fn any(&self, part: &str) -> bool {
        self.0.keys().any(|suffix| suffix.contains(part))
    }

    fn down(&self) -> Option<&'a [usize]> {
        let is_down =
            |suffix: &&&str| DOWN.iter().any(|d| suffix.ends_with(d) || suffix.starts_with(".lora_A."));
        self.0.keys().find(is_down).map(|suffix| self.0[*suffix].shape.as_slice())
    }

    fn algorithm(&self) -> String {
        let tucker = if self.any("_t1") || self.any("_t2") { " (Tucker)" } else { "" };
        let name = match () {
            () if self.down().is_some() || self.any("lora_up") || self.any("lora_B.weight") => {
                if self.any("lora_mid") { "LoCon (Tucker)" } else { "LoRA" }
            }
            () if self.any(".hada_") => "LoHa",
            () if self.any(".lokr_") => "LoKr",
            () if self.any(".a1.") => "GLoRA",
            () if self.any(".on_input") || self.any(".ia3_l") => "IA³",
            () if self.any(".oft_R") => "OFTv2",
            () if self.get(".oft_blocks").is_some_and(|shape| shape.len() == 4) => "BOFT",
            () if self.any(".oft_") => "OFT",
            () if self.any("_norm") => "norm",
            () if self.any(".diff") => "full",
            () => "incomplete",
        };
        let dora = self.any("dora_scale") || self.any("magnitude");
        format!("{name}{tucker}{}", if dora { " + DoRA" } else { "" })
    }

    fn rank(&self) -> Option<usize> {
        let first = |shape: &[usize]| shape.first().copied();
        let inner = || {
            let (a, b) = (self.get(".a1.weight")?, self.get(".a2.weight")?);
            // (in, r) and (r, in), or the other way round.
            Some(*a.first()?.min(b.first()?))
        };
        self.down()
            .or_else(|| self.get(".hada_w1_b"))
            .or_else(|| self.get(".lokr_w2_b"))
            .or_else(|| self.get(".lokr_w1_b"))
            .and_then(first)
            .or_else(inner)
    }

    /// How wide the layer's input is.
    fn reads(&self) -> Option<usize> {
        let second = |shape: &[usize]| shape.get(1).copied();
        let kronecker = || {
            let of =
                |whole: &str, factor: &str| self.get(whole).or_else(|| self.get(factor)).and_then(second);
            of(".lokr_w1", ".lokr_w1_b")?.checked_mul(of(".lokr_w2", ".lokr_w2_b")?)
        };
        let glora = || {
            let a = self.get(".a1.weight")?;
            Some(*a.first()?.max(a.get(1)?))
        };
        self.down()
            .or_else(|| self.get(".hada_w1_b"))
            .or_else(|| self.get(".diff"))
            .and_then(second)
            .or_else(kronecker)
            .or_else(glora)
            .or_else(|| self.get(".dora_scale").filter(|s| s.first() == Some(&1)).and_then(second))
    }
}
