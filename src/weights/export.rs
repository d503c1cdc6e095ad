//! The keys of a single-file (LDM) checkpoint for components in diffusers' names: [`super::ldm`] the other way round.

use std::collections::BTreeSet;

use super::{
    detect::LDM_UNET,
    family::{Component, Family},
    names::NameTable,
    open_clip::{self, Depth},
    view::Transform,
};
use crate::error::{Error, Result};

/// A key of a single file and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LdmKey {
    /// In the file.
    pub key: String,
    /// diffusers' names; several are stacked by rows.
    pub names: Vec<String>,
    /// How.
    pub join: Join,
}

/// What is done to a diffusers tensor to store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Several become one, below each other; one stays as it is.
    Rows,
    /// A matrix, transposed.
    Transpose,
    /// A matrix (o, i) as the 1×1 convolution (o, i, 1, 1).
    Convolution,
}

/// Where a component of a family goes.
///
/// # Errors
/// If a name has no counterpart there, or the family has no such layout.
pub fn ldm_keys(family: Family, component: Component, names: &[String]) -> Result<Vec<LdmKey>> {
    let set: BTreeSet<String> = names.iter().cloned().collect();
    match (component, family) {
        (_, Family::Mini) => Err(Error::invalid(
            "the single-file layout has no room for configs, so models with sizes of their own cannot be in it",
        )
        .with_hint("give a folder's name instead of a file's: it will be in diffusers' layout")),
        (Component::Unet, _) => {
            let table = NameTable::unet_from_diffusers(names.iter().map(String::as_str));
            renamed(names, |name| Some(format!("{LDM_UNET}{}", table.to_ldm(name)?)))
        }
        (Component::Vae, _) => vae(names),
        (Component::TextEncoder, Family::Sd2) => Ok(open_clip(&set, "cond_stage_model.model.", Depth::Penultimate)),
        (Component::TextEncoder, family) => {
            let prefix = if family == Family::Sdxl {
                "conditioner.embedders.0.transformer."
            } else {
                "cond_stage_model.transformer."
            };
            // CLIP-L's projection is not part of Stable Diffusion.
            let model: Vec<String> = names.iter().filter(|n| n.starts_with("text_model.")).cloned().collect();
            renamed(&model, |name| Some(format!("{prefix}{name}")))
        }
        (Component::TextEncoder2, Family::SdxlRefiner) => {
            Ok(open_clip(&set, "conditioner.embedders.0.model.", Depth::Whole))
        }
        (Component::TextEncoder2, _) => Ok(open_clip(&set, "conditioner.embedders.1.model.", Depth::Whole)),
    }
}

fn renamed(names: &[String], ldm: impl Fn(&str) -> Option<String>) -> Result<Vec<LdmKey>> {
    let key = |name: &String| match ldm(name) {
        Some(key) => Ok(LdmKey { key, names: vec![name.clone()], join: Join::Rows }),
        None => Err(Error::invalid(format!("`{name}` has no place in a single-file checkpoint"))),
    };
    names.iter().map(key).collect()
}

fn vae(names: &[String]) -> Result<Vec<LdmKey>> {
    let level = |name: &String| name.strip_prefix("decoder.up_blocks.")?.split('.').next().map(String::from);
    let levels: BTreeSet<String> = names.iter().filter_map(level).collect();
    let table = NameTable::vae(levels.len());
    let mut keys = renamed(names, |name| Some(format!("first_stage_model.{}", table.to_ldm(name)?)))?;
    for key in &mut keys {
        let attention = key.names[0].contains(".attentions.") && !key.names[0].contains(".group_norm.");
        if attention && key.names[0].ends_with(".weight") {
            key.join = Join::Convolution;
        }
    }
    Ok(keys)
}

fn open_clip(names: &BTreeSet<String>, prefix: &str, depth: Depth) -> Vec<LdmKey> {
    let keys = open_clip::keys(names, prefix, depth).into_iter();
    keys.map(|(key, names, transform)| {
        let join = if transform == Transform::Transpose { Join::Transpose } else { Join::Rows };
        LdmKey { key, names, join }
    })
    .collect()
}
