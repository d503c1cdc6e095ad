//! Every name a layer of the model may have in a file, as one exact table.

use std::collections::{BTreeMap, HashMap};

use super::prefix::{Component, Module};
use crate::{
    adapter::{Lineage, Parts, parts, report::Reason},
    error::{Error, Result},
    nn::{LayerPath, Part},
    weights::names::NameTable as LdmNames,
};

/// Longer names are nobody's misspelling, and comparing them with every layer takes long.
const LONGEST_NAME: usize = 200;

/// Less alike than this, names are not each other's misspelling.
const NEAR: f64 = 0.8;

/// A model's layers with their weights' shapes, and all spellings of their names.
#[derive(Debug, Clone)]
pub struct NameTable {
    shapes: BTreeMap<LayerPath, Vec<usize>>,
    spellings: HashMap<(Part, String), LayerPath>,
    ldm: LdmNames,
}

impl NameTable {
    /// Lists the layers of a model.
    ///
    /// # Errors
    /// Never; the signature is that of visiting.
    pub fn of(parts: &mut Parts<'_>) -> Result<Self> {
        let mut shapes = BTreeMap::new();
        parts.visit(&mut |path, slot| {
            shapes.insert(path.clone(), parts::weight(&slot).dims().to_vec());
            Ok(())
        })?;
        Ok(Self::from_shapes(shapes))
    }

    /// From a listing alone: enough to check a file without loading the model.
    pub fn from_shapes(shapes: BTreeMap<LayerPath, Vec<usize>>) -> Self {
        let of_unet = |p: &&LayerPath| p.part == Part::Unet;
        let ldm = LdmNames::unet_from_diffusers(shapes.keys().filter(of_unet).map(|p| p.name.as_str()));
        let mut spellings = HashMap::new();
        let mut spell = |path: &LayerPath, name: &str| {
            spellings.insert((path.part, name.replace('.', "_")), path.clone());
        };
        for path in shapes.keys() {
            spell(path, &path.name);
            match path.part {
                Part::Unet => {
                    if let Some(name) = ldm.to_ldm(&path.name) {
                        spell(path, &name);
                    }
                }
                // Newer transformers leave the outer module's name away.
                Part::TextEncoder | Part::TextEncoder2 => {
                    if let Some(short) = path.name.strip_prefix("text_model.") {
                        spell(path, short);
                    }
                    if let Some(name) = open_clip_name(&path.name) {
                        spell(path, &name);
                    }
                }
            }
        }
        Self { shapes, spellings, ldm }
    }

    /// The weight's shape of a layer.
    pub fn shape(&self, path: &LayerPath) -> Option<&[usize]> {
        self.shapes.get(path).map(Vec::as_slice)
    }

    /// Every layer, sorted, with its weight's shape.
    pub fn layers(&self) -> impl Iterator<Item = (&LayerPath, &[usize])> {
        self.shapes.iter().map(|(path, shape)| (path, shape.as_slice()))
    }

    /// True for SDXL, whose files name two text encoders.
    pub fn has_second_text_encoder(&self) -> bool {
        self.has(Part::TextEncoder2) || self.shapes.keys().any(|p| p.name.starts_with("add_embedding."))
    }

    /// A UNet layer's name in LDM and sgm.
    ///
    /// # Errors
    /// If it has no counterpart there.
    pub fn ldm_name(&self, diffusers: &str) -> Result<String> {
        self.ldm.to_ldm(diffusers).ok_or_else(|| Error::invalid(format!("`{diffusers}` has no LDM name")))
    }

    /// The family, by the width the cross-attention reads.
    pub fn lineage(&self) -> Option<Lineage> {
        let mut keys = self.shapes.iter().filter(|(path, _)| path.name.ends_with("attn2.to_k"));
        keys.next().map(|(_, shape)| Lineage::of_cross_attention(shape[1]))
    }

    /// The layer a file's module name means.
    ///
    /// # Errors
    /// With the reason there is none.
    pub fn resolve(&self, module: &Module) -> Result<LayerPath, Reason> {
        let parts = self.candidates(module.component);
        for part in parts {
            if let Some(path) = self.spellings.get(&(*part, module.flat.clone())) {
                return Ok(path.clone());
            }
        }
        match parts {
            [part] if !self.has(*part) => Err(Reason::MissingComponent(*part)),
            _ => Err(Reason::UnknownLayer { nearest: None }),
        }
    }

    /// The layer whose name is most like a module's: slow, for messages.
    pub fn nearest(&self, module: &Module) -> Option<String> {
        if module.flat.len() > LONGEST_NAME {
            return None;
        }
        let parts = self.candidates(module.component);
        let letters = letters(&module.flat);
        let mut candidates: Vec<(f64, &(Part, String))> = self
            .spellings
            .keys()
            .filter(|(part, _)| parts.contains(part))
            .map(|key| (at_most(&letters, &module.flat, &key.1), key))
            .collect();
        // The likeliest first: names are compared only as long as one may still be nearer.
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        let mut nearest: (f64, Option<&(Part, String)>) = (NEAR, None);
        for (bound, key) in candidates {
            if bound < nearest.0 {
                break;
            }
            let score = strsim::jaro_winkler(&module.flat, &key.1);
            // Ties by name, as the order of a hash map is not fixed.
            if score > nearest.0 || (score == nearest.0 && nearest.1.is_some_and(|n| key.1 < n.1)) {
                nearest = (score, Some(key));
            }
        }
        nearest.1.and_then(|key| self.spellings.get(key)).map(ToString::to_string)
    }

    fn has(&self, part: Part) -> bool {
        self.shapes.keys().any(|path| path.part == part)
    }

    fn candidates(&self, component: Component) -> &'static [Part] {
        match component {
            Component::Unet => &[Part::Unet],
            // The refiner's only text encoder is what others have as their second.
            Component::OnlyTextEncoder if self.has(Part::TextEncoder2) && !self.has(Part::TextEncoder) => {
                &[Part::TextEncoder2]
            }
            Component::OnlyTextEncoder | Component::TextEncoder => &[Part::TextEncoder],
            Component::TextEncoder2 => &[Part::TextEncoder2],
            Component::Unsaid => &[Part::Unet, Part::TextEncoder, Part::TextEncoder2],
        }
    }
}

/// How often each byte occurs.
fn letters(name: &str) -> [u16; 256] {
    let mut counts = [0u16; 256];
    name.bytes().for_each(|byte| counts[usize::from(byte)] = counts[usize::from(byte)].saturating_add(1));
    counts
}

/// No less than the Jaro-Winkler similarity of `a`, of which the letters are known, and `b`: as if all letters they share
/// stood in the same order.
fn at_most(letters_of_a: &[u16; 256], a: &str, b: &str) -> f64 {
    let mut left = *letters_of_a;
    let mut shared = 0.0;
    for byte in b.bytes() {
        let left = &mut left[usize::from(byte)];
        if *left > 0 {
            *left -= 1;
            shared += 1.0;
        }
    }
    let jaro = (shared / a.len().max(1) as f64 + shared / b.len().max(1) as f64 + 1.0) / 3.0;
    let same = a.bytes().zip(b.bytes()).take(4).take_while(|(a, b)| a == b).count() as f64;
    jaro + 0.1 * same * (1.0 - jaro)
}

/// A text encoder's layer in OpenCLIP's words, as in SD2's and SDXL's checkpoints. There q, k and v are one layer, so
/// these three have no name of their own.
fn open_clip_name(name: &str) -> Option<String> {
    const LEAVES: [(&str, &str); 5] = [
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    ];
    match name {
        "text_model.embeddings.token_embedding" => return Some("token_embedding".into()),
        "text_model.final_layer_norm" => return Some("ln_final".into()),
        _ => {}
    }
    let (layer, leaf) = name.strip_prefix("text_model.encoder.layers.")?.split_once('.')?;
    let (_, open_clip) = LEAVES.iter().find(|(ours, _)| *ours == leaf)?;
    Some(format!("transformer.resblocks.{layer}.{open_clip}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_more_alike_than_its_letters() {
        let names =
            ["down_blocks_0_attn1_to_q", "down_blocks_0_attn1_to_qq", "up_blocks_1_conv", "q_ot_0", "x", ""];
        for a in names {
            for b in names {
                let (bound, score) = (at_most(&letters(a), a, b), strsim::jaro_winkler(a, b));
                assert!(
                    bound >= score - 1e-12 || a.is_empty() || b.is_empty(),
                    "{a}, {b}: {bound} < {score}"
                );
            }
        }
    }
}
