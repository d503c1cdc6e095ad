//! OpenCLIP's text encoder (SD2, and SDXL's second) under Hugging Face's names.

use std::collections::BTreeSet;

use super::{store::Store, view::Transform};

/// Parameters of one residual block: OpenCLIP, Hugging Face, and the slice of the stacked q, k, v.
const BLOCK: &[(&str, &str, Transform)] = &[
    ("ln_1.weight", "layer_norm1.weight", Transform::Keep),
    ("ln_1.bias", "layer_norm1.bias", Transform::Keep),
    ("ln_2.weight", "layer_norm2.weight", Transform::Keep),
    ("ln_2.bias", "layer_norm2.bias", Transform::Keep),
    ("mlp.c_fc.weight", "mlp.fc1.weight", Transform::Keep),
    ("mlp.c_fc.bias", "mlp.fc1.bias", Transform::Keep),
    ("mlp.c_proj.weight", "mlp.fc2.weight", Transform::Keep),
    ("mlp.c_proj.bias", "mlp.fc2.bias", Transform::Keep),
    ("attn.in_proj_weight", "self_attn.q_proj.weight", Transform::Rows { part: 0, of: 3 }),
    ("attn.in_proj_weight", "self_attn.k_proj.weight", Transform::Rows { part: 1, of: 3 }),
    ("attn.in_proj_weight", "self_attn.v_proj.weight", Transform::Rows { part: 2, of: 3 }),
    ("attn.in_proj_bias", "self_attn.q_proj.bias", Transform::Rows { part: 0, of: 3 }),
    ("attn.in_proj_bias", "self_attn.k_proj.bias", Transform::Rows { part: 1, of: 3 }),
    ("attn.in_proj_bias", "self_attn.v_proj.bias", Transform::Rows { part: 2, of: 3 }),
    ("attn.out_proj.weight", "self_attn.out_proj.weight", Transform::Keep),
    ("attn.out_proj.bias", "self_attn.out_proj.bias", Transform::Keep),
];

/// Parameters outside the blocks. The projection is the transpose of Hugging Face's unless it is named like theirs.
const FIXED: &[(&str, &str, Transform)] = &[
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight", Transform::Keep),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight", Transform::Keep),
    ("ln_final.weight", "text_model.final_layer_norm.weight", Transform::Keep),
    ("ln_final.bias", "text_model.final_layer_norm.bias", Transform::Keep),
    ("text_projection", "text_projection.weight", Transform::Transpose),
    ("text_projection.weight", "text_projection.weight", Transform::Keep),
    ("text_projection.weight.weight", "text_projection.weight", Transform::Keep),
];

/// More layers than any text encoder has.
const MAX_LAYERS: usize = 256;

/// Which parts of the encoder are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// All of it, with the projection: SDXL.
    Whole,
    /// Without the last block and the projection: SD2 conditions on the output of the last block but one, and
    /// diffusers stores no more than that.
    Penultimate,
}

/// The other way round: OpenCLIP's keys for Hugging Face's `names`, each with the names it is made of. Several are
/// stacked; one is transposed where it says so.
pub(super) fn keys(
    names: &BTreeSet<String>,
    prefix: &str,
    depth: Depth,
) -> Vec<(String, Vec<String>, Transform)> {
    let layers = (0..MAX_LAYERS)
        .take_while(|n| names.contains(&format!("text_model.encoder.layers.{n}.layer_norm1.weight")))
        .count();
    let mut keys: Vec<(String, Vec<String>, Transform)> = Vec::new();
    for (from, to, transform) in FIXED {
        // The first spelling of a name is OpenCLIP's own.
        let again = keys.iter().any(|(_, made_of, _)| made_of[0] == *to);
        if names.contains(*to) && !again {
            keys.push((format!("{prefix}{from}"), vec![(*to).to_string()], *transform));
        }
    }
    // OpenCLIP's last block is not read by SD2; files have it, so it gets the weights of the one before.
    let blocks = if depth == Depth::Penultimate && layers > 0 { layers + 1 } else { layers };
    for n in 0..blocks {
        for (from, to, transform) in BLOCK {
            let key = format!("{prefix}transformer.resblocks.{n}.{from}");
            let name = format!("text_model.encoder.layers.{}.{to}", n.min(layers - 1));
            match keys.last_mut() {
                Some((last, made_of, _)) if *last == key => made_of.push(name),
                _ => keys.push((key, vec![name], *transform)),
            }
        }
    }
    keys
}

/// Hugging Face's names of what is stored under `prefix`, with where each comes from.
pub(super) fn entries(store: &dyn Store, prefix: &str, depth: Depth) -> Vec<(String, (String, Transform))> {
    let block = |n: usize| format!("{prefix}transformer.resblocks.{n}.");
    let layers =
        (0..MAX_LAYERS).take_while(|n| store.info(&format!("{}ln_1.weight", block(*n))).is_some()).count();
    let layers = match depth {
        Depth::Whole => layers,
        Depth::Penultimate => layers.saturating_sub(1),
    };

    let fixed = FIXED
        .iter()
        .filter(|(_, to, _)| depth == Depth::Whole || *to != "text_projection.weight")
        .map(|(from, to, transform)| ((*to).to_string(), (format!("{prefix}{from}"), *transform)));
    let blocks = (0..layers).flat_map(|n| {
        BLOCK.iter().map(move |(from, to, transform)| {
            let key = format!("{}{from}", block(n));
            (format!("text_model.encoder.layers.{n}.{to}"), (key, *transform))
        })
    });
    fixed.chain(blocks).filter(|(_, (key, _))| store.info(key).is_some()).collect()
}
