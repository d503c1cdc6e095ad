//! diffusers' names and shapes into those of single files.

use candle_core::Tensor;
use scumble::{
    Error, Result,
    weights::{Component, Family, names::NameTable},
};

use crate::Tensors;

/// A component under the names, and in the shapes, of single files.
pub fn named(family: Family, component: Component, tensors: Tensors) -> Result<Tensors> {
    let table = match component {
        Component::Unet => NameTable::unet_from_diffusers(tensors.keys().map(String::as_str)),
        _ => NameTable::vae(4),
    };
    let rename = |(name, tensor): (String, Tensor)| -> Result<(String, Tensor)> {
        let ldm = || table.to_ldm(&name).ok_or_else(|| Error::invalid(format!("`{name}` has no LDM name")));
        Ok(match (component, family) {
            (Component::Unet, _) => (format!("model.diffusion_model.{}", ldm()?), tensor),
            // The attention in the middle is made of 1×1 convolutions there.
            (Component::Vae, _) if name.contains("attentions") && tensor.rank() == 2 => {
                (format!("first_stage_model.{}", ldm()?), tensor.unsqueeze(2)?.unsqueeze(3)?)
            }
            (Component::Vae, _) => (format!("first_stage_model.{}", ldm()?), tensor),
            (_, Family::Sdxl) => (format!("conditioner.embedders.0.transformer.{name}"), tensor),
            _ => (format!("cond_stage_model.transformer.{name}"), tensor),
        })
    };
    if component == Component::TextEncoder2 {
        open_clip(tensors)
    } else {
        tensors.into_iter().map(rename).collect()
    }
}

/// SDXL's second text encoder as OpenCLIP has it: q, k and v stacked, the projection transposed.
fn open_clip(mut tensors: Tensors) -> Result<Tensors> {
    let words = [
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.token_embedding", "token_embedding"),
        ("text_model.final_layer_norm", "ln_final"),
        ("layer_norm", "ln_"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn", "attn"),
    ];
    let stacks: Vec<String> = tensors.keys().filter(|name| name.contains("q_proj")).cloned().collect();
    for q in stacks {
        let rows = ["q_proj", "k_proj", "v_proj"].map(|p| tensors.remove(&q.replace("q_proj", p)));
        let rows: Vec<Tensor> = rows.into_iter().flatten().collect();
        tensors.insert(q.replace("q_proj.", "in_proj_"), Tensor::cat(&rows, 0)?);
    }
    if let Some(projection) = tensors.remove("text_projection.weight") {
        tensors.insert("text_projection".into(), projection.t()?.contiguous()?);
    }
    let renamed = tensors.into_iter().map(|(name, tensor)| {
        let name = words.iter().fold(name, |name, (from, to)| name.replace(from, to));
        (format!("conditioner.embedders.1.model.{name}"), tensor)
    });
    Ok(renamed.collect())
}
