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
        self.spellings
            .keys()
            .filter(|(part, _)| parts.contains(part))
            .map(|key| (strsim::jaro_winkler(&module.flat, &key.1), key))
            .filter(|(score, _)| *score > 0.8)
            // Ties by name, as the order of a hash map is not fixed.
            .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.1.cmp(&a.1.1)))
            .and_then(|(_, key)| self.spellings.get(key))
            .map(ToString::to_string)
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
