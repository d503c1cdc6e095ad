//! The family an adapter was made for. Shapes decide, then names, then what the file says of itself.

use std::{collections::BTreeMap, fmt};

use super::{Block, BundledEmbedding, Kind, SurveyedModule};
use crate::adapter::{Lineage, format::prefix::Component};

/// A family and why it is thought to be this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    /// `None` if the file leaves it open.
    pub lineage: Option<Lineage>,
    /// What told it; what is still possible where nothing did.
    pub evidence: String,
    /// Where the metadata say otherwise.
    pub disagreement: Option<String>,
}

impl fmt::Display for Detected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lineage {
            Some(lineage) => write!(f, "{} ({})", lineage.name(), self.evidence),
            None => write!(f, "unknown ({})", self.evidence),
        }
    }
}

use Lineage::{Mini, Sd1, Sd2, Sdxl, SdxlRefiner};

/// Tells the family.
pub(super) fn detect(
    modules: &[SurveyedModule],
    embeddings: &[BundledEmbedding],
    metadata: &BTreeMap<String, String>,
) -> Detected {
    let claimed = claim(metadata);
    if let Some(mut found) = by_cross_attention(modules) {
        found.disagreement = disagreement(found.lineage, claimed);
        return found;
    }
    let (mut possible, mut why) = (Lineage::NAMED.to_vec(), Vec::new());
    for (lineages, reason) in modules.iter().flat_map(clues).chain(embeddings.iter().flat_map(vectors)) {
        let left: Vec<Lineage> = possible.iter().copied().filter(|l| lineages.contains(l)).collect();
        // A clue that contradicts better ones is left out; one that adds nothing need not be told.
        if !left.is_empty() && left.len() < possible.len() {
            (possible, why) = (left, [why, vec![reason]].concat());
        }
    }
    match (possible.as_slice(), claimed) {
        ([one], _) => Detected {
            lineage: Some(*one),
            evidence: why.join(", "),
            disagreement: disagreement(Some(*one), claimed),
        },
        (several, Some((lineage, key))) if several.contains(&lineage) => {
            Detected { lineage: Some(lineage), evidence: format!("metadata `{key}`"), disagreement: None }
        }
        (several, claimed) => {
            let names: Vec<&str> = several.iter().map(|l| l.name()).collect();
            let conflict = claimed.map(|(lineage, key)| {
                format!("metadata `{key}` says {}, its layers are of {}", lineage.name(), names.join(" or "))
            });
            Detected { lineage: None, evidence: names.join(" or "), disagreement: conflict }
        }
    }
}

/// The width of the text the network reads: decisive wherever cross-attention was trained.
fn by_cross_attention(modules: &[SurveyedModule]) -> Option<Detected> {
    let reads_text = |m: &&SurveyedModule| m.flat.ends_with("attn2_to_k") || m.flat.ends_with("attn2_to_v");
    let (module, width) = modules.iter().filter(reads_text).find_map(|m| Some((m, m.reads?)))?;
    Some(Detected {
        lineage: Some(Lineage::of_cross_attention(width)),
        evidence: format!("`{}` reads {width} numbers", module.name),
        disagreement: None,
    })
}

type Clue = (&'static [Lineage], String);

/// What one layer's name and shape rule out, surest first.
fn clues(module: &SurveyedModule) -> Vec<Clue> {
    let mut clues: Vec<Clue> = Vec::new();
    let mut add = |lineages, reason: &str| clues.push((lineages, reason.to_string()));
    let transformer = matches!(module.kind, Kind::SelfAttention | Kind::CrossAttention | Kind::FeedForward)
        || module.kind == Kind::Projection;
    let has_the_width = matches!(module.kind, Kind::SelfAttention | Kind::Projection);
    match (module.component, module.reads) {
        (Component::TextEncoder2, _) => add(&[Sdxl, SdxlRefiner], "a second text encoder"),
        (Component::TextEncoder | Component::OnlyTextEncoder, Some(width))
            if module.kind == Kind::TextAttention =>
        {
            match width {
                768 => add(&[Sd1, Sdxl], "a text encoder 768 wide"),
                1024 => add(&[Sd2], "a text encoder 1024 wide"),
                1280 => add(&[SdxlRefiner], "a text encoder 1280 wide"),
                128 => add(&[Mini], "a text encoder 128 wide"),
                _ => {}
            }
        }
        (Component::Unet | Component::Unsaid, Some(width)) if has_the_width => match width {
            384 | 768 | 1536 => add(&[SdxlRefiner], "attention 384, 768 or 1536 wide"),
            320 | 640 | 1280 => add(&[Sd1, Sd2, Sdxl], "attention 320, 640 or 1280 wide"),
            32 | 64 | 128 => add(&[Mini], "attention 32, 64 or 128 wide"),
            _ => {}
        },
        _ => {}
    }
    match depth(&module.flat) {
        Some(4..) => add(&[Sdxl], "more than four transformer blocks a level"),
        Some(1..) => add(&[Sdxl, SdxlRefiner], "more than one transformer block a level"),
        _ => {}
    }
    match module.block {
        Block::In(1 | 2) if transformer => add(&[Sd1, Sd2, Mini], "attention at full resolution"),
        Block::Out(0..=2) if transformer => add(&[Sdxl], "attention at the lowest resolution"),
        Block::Out(9..) if transformer => add(&[Sd1, Sd2], "attention at full resolution"),
        Block::In(9..) | Block::Out(9..) => add(&[Sd1, Sd2, SdxlRefiner], "a fourth level"),
        _ => {}
    }
    if module.kind == Kind::Projection && module.is_conv {
        add(&[Sd1, Sd2, Mini], "projections that are convolutions");
    }
    clues
}

/// Which transformer block of its level.
fn depth(flat: &str) -> Option<usize> {
    let (_, rest) = flat.split_once("transformer_blocks_")?;
    rest.split('_').next()?.parse().ok()
}

fn vectors(embedding: &BundledEmbedding) -> Vec<Clue> {
    let clue = |(name, shape): &(String, Vec<usize>)| -> Option<Clue> {
        match (name.as_str(), shape.last()) {
            ("clip_g", _) => Some((&[Sdxl, SdxlRefiner], "a textual inversion for two text encoders".into())),
            (_, Some(768)) => Some((&[Sd1, Sdxl], "a textual inversion 768 wide".into())),
            (_, Some(1024)) => Some((&[Sd2], "a textual inversion 1024 wide".into())),
            (_, Some(128)) => Some((&[Mini], "a textual inversion 128 wide".into())),
            _ => None,
        }
    };
    embedding.vectors.iter().filter_map(clue).collect()
}

/// What the metadata say, and where. Pony, Illustrious and the like are SDXL.
fn claim(metadata: &BTreeMap<String, String>) -> Option<(Lineage, &'static str)> {
    let get = |key| metadata.get(key).map(String::as_str);
    if let Some(version) = get("ss_base_model_version") {
        return Some((Lineage::of_version(version)?, "ss_base_model_version"));
    }
    if let Some(architecture) = get("modelspec.architecture") {
        return Some((Lineage::of_architecture(architecture)?, "modelspec.architecture"));
    }
    match get("ss_v2")? {
        "True" => Some((Sd2, "ss_v2")),
        _ => Some((Sd1, "ss_v2")),
    }
}

/// kohya writes the refiner as SDXL, and `mini`'s first adapters say SD 1, so these do not contradict each other.
fn disagreement(found: Option<Lineage>, claimed: Option<(Lineage, &'static str)>) -> Option<String> {
    let (found, (claimed, key)) = (found?, claimed?);
    let same = found == claimed || matches!((found, claimed), (SdxlRefiner, Sdxl) | (Mini, Sd1));
    if same || matches!(found, Lineage::Other(_)) {
        return None;
    }
    Some(format!("metadata `{key}` says {}, its tensors are of {}", claimed.name(), found.name()))
}
