//! Lower ranks for the layers of an adapter: the nearest adapter of that rank (SVD), per layer where a rule says so.

use candle_core::{DType, Tensor};

use super::{
    Adapter, Delta, LowRank, Metadata, NameTable,
    delta::Branch,
    layers::{self, Progress},
    merge::{record_ranks, stored_dtype},
    svd::Svd,
    truncate::{Decomposed, LayerLoss, RankLimit, RankRule},
};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
};

/// An adapter after layers were cut, and what that cost.
#[derive(Debug)]
pub struct Cut {
    /// The new adapter.
    pub adapter: Adapter,
    /// One a layer that was decomposed, in the layers' order.
    pub losses: Vec<LayerLoss>,
    /// Layers that were kept as they are, with their algorithm.
    pub kept: Vec<(LayerPath, &'static str)>,
    /// Layers that differ and were not looked for, by the rank they were given.
    pub left_out: Vec<LayerPath>,
}

/// Cuts every low-rank layer to what `limit` says. The new alpha is the old scale times the new rank, and factors stay
/// in their dtype. Layers of other algorithms are kept as they are.
///
/// # Errors
/// If a layer is not in `table`, or the user stopped it.
pub fn resize(
    adapter: &Adapter,
    table: &NameTable,
    limit: &RankLimit,
    progress: &mut Progress<'_>,
) -> Result<Cut> {
    limit.check()?;
    let layers: Vec<(&LayerPath, &Delta)> = adapter.layers.iter().collect();
    let results = layers::map(&layers, progress, |(path, delta)| {
        resize_layer(path, delta, table, limit).map_err(|e| e.context(path.to_string()))
    })?;
    let (mut resized, mut losses, mut kept) = (adapter.clone(), Vec::new(), Vec::new());
    for ((path, delta), result) in layers.into_iter().zip(results) {
        match result {
            Some((low_rank, loss)) => {
                resized.layers.insert(path.clone(), Delta::LowRank(low_rank));
                losses.push(loss);
            }
            None => kept.push((path.clone(), delta.algorithm())),
        }
    }
    record(&mut resized.metadata, limit, &losses);
    record_ranks(&mut resized);
    Ok(Cut { adapter: resized, losses, kept, left_out: Vec::new() })
}

/// `None` for what is not two factors whatever the base weight is.
fn resize_layer(
    path: &LayerPath,
    delta: &Delta,
    table: &NameTable,
    limit: &RankLimit,
) -> Result<Option<(LowRank, LayerLoss)>> {
    let shape = table.shape(path).ok_or_else(|| Error::invalid("the model has no such layer"))?;
    let Some(Branch { down, up, scale }) = delta.branch(shape)? else { return Ok(None) };
    let svd = Svd::of_product(&up, &down.flatten_from(1)?)?;
    let (cut, loss) = Decomposed { svd, scale, rank: up.dim(1)? }.cut(path, shape, limit)?;
    Ok(Some((in_dtype(cut, stored_dtype(delta))?, loss)))
}

/// Rounds the factors once, and says so if that overflows.
pub(crate) fn in_dtype(low_rank: LowRank, dtype: DType) -> Result<LowRank> {
    let cast = |t: Tensor| -> Result<Tensor> {
        let rounded = t.to_dtype(dtype)?;
        if dtype == DType::F16 && !super::delta::all_finite(&rounded)? {
            return Err(Error::invalid("a factor leaves the range of F16").with_hint("use `--dtype f32`"));
        }
        Ok(rounded)
    };
    Ok(LowRank {
        down: cast(low_rank.down)?,
        up: cast(low_rank.up)?,
        mid: low_rank.mid.map(cast).transpose()?,
        alpha: low_rank.alpha,
    })
}

/// As kohya writes it, so that other tools show it.
fn record(metadata: &mut Metadata, limit: &RankLimit, losses: &[LayerLoss]) {
    let old = losses.iter().map(|l| l.ranks.0).max().unwrap_or_default();
    let comment = metadata.get("ss_training_comment").unwrap_or_default().to_owned();
    let dynamic =
        |name: &str, value: f64| format!("Dynamic resize with {name}: {value} from {old}; {comment}");
    let comment = match limit.rule {
        RankRule::Fixed => {
            let conv =
                (limit.max_conv_rank != limit.max_rank).then(|| format!(" (conv: {})", limit.max_conv_rank));
            let conv = conv.unwrap_or_default();
            format!("dimension is resized from {old} to {}{conv}; {comment}", limit.max_rank)
        }
        RankRule::Ratio(value) => dynamic("sv_ratio", value),
        RankRule::Frobenius(value) => dynamic("sv_fro", value),
        RankRule::Cumulative(value) => dynamic("sv_cumulative", value),
    };
    metadata.set("ss_training_comment", comment);
}
