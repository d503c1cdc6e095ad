//! Several adapters into one. By concatenation of the factors the result is the blend itself; by SVD it is the nearest
//! adapter of a rank; the other methods are those of PEFT's `add_weighted_adapter`, number for number.

mod layer;
mod methods;
mod options;
mod record;

use std::collections::BTreeSet;

pub use options::{MajoritySign, MergeOptions, Method};

use super::{
    Adapter, Blend, Delta, NameTable, embedding,
    layers::{self, Progress},
    resize::Cut,
    truncate::RankLimit,
};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
};
use layer::Layer;
pub(crate) use layer::stored_dtype;
pub(crate) use record::{ingredients, record_ranks};

const BAKE: &str = "`scumble bake` puts any adapter into a model";

/// Merges a blend into an adapter that does at weight 1 what the blend does.
///
/// # Errors
/// If an adapter changes the base weight other than by adding to it, a method needs equal ranks and finds others, or the
/// user stopped it.
pub fn merge(
    blend: &Blend,
    table: &NameTable,
    options: &MergeOptions,
    progress: &mut Progress<'_>,
) -> Result<Cut> {
    check(blend, options)?;
    blend.check_fixed()?;
    if let Some(lineage) = table.lineage() {
        blend.check_family(lineage.family())?;
    }
    blend.check_blocks(table)?;
    let paths: BTreeSet<&LayerPath> = blend.entries.iter().flat_map(|e| e.adapter.layers.keys()).collect();
    let mut layers = Vec::new();
    for (index, path) in paths.into_iter().enumerate() {
        let shape = table
            .shape(path)
            .ok_or_else(|| Error::invalid(format!("{path}: the model has no such layer")))?;
        if shape.len() < 2 {
            return Err(Error::invalid(format!(
                "{path} is a normalisation, which a low-rank adapter cannot change"
            ))
            .with_hint(BAKE));
        }
        let terms = blend.on(path).map(|(_, e)| (&e.adapter.layers[path], e.strength.at(path)));
        let terms: Vec<_> = terms.filter(|(_, weight)| *weight != 0.0).collect();
        if !terms.is_empty() {
            layers.push(Layer { path, shape, index: index as u64, terms });
        }
    }
    if layers.is_empty() {
        return Err(Error::invalid("all weights are 0, so there is nothing to merge"));
    }
    let results = layers::map(&layers, progress, |layer| {
        layer.merge(options).map_err(|e| e.context(layer.path.to_string()))
    })?;
    let embeddings = embedding::distinct(&embedding::of_blend(blend), &[], embedding::CLASH)?;
    let metadata = record::metadata(blend, options);
    let mut adapter = Adapter { metadata, embeddings, ..Adapter::default() };
    let mut losses = Vec::new();
    for (layer, (low_rank, loss)) in layers.iter().zip(results) {
        adapter.layers.insert(layer.path.clone(), Delta::LowRank(low_rank));
        losses.push(loss);
    }
    record_ranks(&mut adapter);
    Ok(Cut { adapter, losses, kept: Vec::new(), left_out: Vec::new() })
}

fn check(blend: &Blend, options: &MergeOptions) -> Result<()> {
    if !(options.density > 0.0 && options.density <= 1.0) {
        return Err(Error::invalid(format!(
            "the density must be above 0 and at most 1, found {}",
            options.density
        )));
    }
    if let Some(rank) = options.rank {
        RankLimit::fixed(rank).check()?;
        if !options.method.takes_rank() {
            return Err(Error::invalid(format!("the method `{}` takes no rank", options.method))
                .with_hint("`svd` and the methods that end in `_svd` do"));
        }
    }
    for entry in &blend.entries {
        for (path, delta) in &entry.adapter.layers {
            let bias = delta.bias()?.is_some();
            if delta.is_additive() && !bias {
                continue;
            }
            let what = if bias { "a change of biases" } else { delta.algorithm() };
            return Err(Error::invalid(format!(
                "adapter `{}` has {what} on {path}, which cannot become a part of a low-rank adapter",
                entry.name
            ))
            .with_hint(BAKE));
        }
    }
    Ok(())
}
