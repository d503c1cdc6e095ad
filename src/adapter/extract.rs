//! The adapter between two checkpoints: what one of them was trained to do, at a rank.

use candle_core::{DType, Tensor};

use super::{
    Adapter, Delta, Group, LowRank, Metadata, NameTable,
    delta::frobenius,
    layers::{self, Progress},
    merge::record_ranks,
    resize::{Cut, in_dtype},
    svd::Svd,
    truncate::{LayerLoss, low_rank},
};
use crate::{
    error::{Error, Result},
    nn::{LayerPath, Part},
    weights::{Checkpoint, Component, Family, Store},
};

/// What to extract.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExtractOptions {
    /// r.
    pub rank: usize,
    /// r of the resnets' and resamplers' convolutions larger than 1×1; `None` leaves resnets and resamplers alone, as
    /// kohya does.
    pub conv_rank: Option<usize>,
    /// Cuts factors at this quantile of their numbers, as kohya does at 0.99.
    pub clamp_quantile: Option<f64>,
    /// Layers of which no weight differs by more than this are left out.
    pub min_difference: f64,
    /// Decomposes whole matrices instead of looking for the first singular values: slow.
    pub exact: bool,
    /// Where the search starts.
    pub seed: u64,
    /// Of the factors.
    pub dtype: DType,
}

impl ExtractOptions {
    /// kohya's layers at a rank, without its clamp, in f16.
    pub fn new(rank: usize) -> Self {
        Self {
            rank,
            conv_rank: None,
            clamp_quantile: None,
            min_difference: 0.0,
            exact: false,
            seed: 0,
            dtype: DType::F16,
        }
    }

    fn check(&self) -> Result<()> {
        if self.rank == 0 || self.conv_rank == Some(0) {
            return Err(Error::invalid("the rank must be at least 1"));
        }
        match self.clamp_quantile {
            Some(q) if !(q > 0.5 && q <= 1.0) => Err(Error::invalid(format!(
                "the quantile to clamp at must be above 0.5 and at most 1, found {q}"
            ))),
            _ => Ok(()),
        }
    }

    /// The rank of a layer; `None` leaves it out.
    fn rank_of(&self, path: &LayerPath, shape: &[usize]) -> Option<usize> {
        let wide = shape.len() == 4 && shape[2..] != [1, 1];
        if shape.len() < 2 {
            return None; // a normalisation
        }
        match Group::of(path)? {
            Group::Convolution if wide => self.conv_rank,
            Group::Convolution => self.conv_rank.map(|_| self.rank),
            _ => Some(self.rank),
        }
    }
}

/// Extracts `tuned` − `base` on kohya's layers of `table`, one layer at a time. Layers that are equal are left out.
///
/// # Errors
/// If the models are of two families, a weight is missing or of another shape, nothing differs, or the user stopped it.
pub fn extract(
    tuned: &Checkpoint,
    base: &Checkpoint,
    table: &NameTable,
    options: &ExtractOptions,
    progress: &mut Progress<'_>,
) -> Result<Cut> {
    options.check()?;
    if tuned.family != base.family {
        let (a, b) = (tuned.family.title(), base.family.title());
        return Err(Error::invalid(format!("{} is {a}, {} is {b}", tuned.origin, base.origin))
            .with_hint("an adapter is the difference of two models of one family"));
    }
    let mut layers = Vec::new();
    for component in base.family.components() {
        let part = match component {
            Component::Unet => Part::Unet,
            Component::TextEncoder => Part::TextEncoder,
            Component::TextEncoder2 => Part::TextEncoder2,
            Component::Vae => continue,
        };
        let pair = (tuned.component(*component)?.store, base.component(*component)?.store);
        for (path, shape) in table.layers().filter(|(path, _)| path.part == part) {
            layers.push((path, shape, options.rank_of(path, shape), pair.clone()));
        }
    }
    let results = layers::map(&layers, progress, |(path, shape, rank, (tuned, base))| {
        let delta = difference(&**tuned, &**base, path, shape)?;
        extract_layer(&delta, path, shape, *rank, options).map_err(|e| e.context(path.to_string()))
    })?;
    let mut adapter = Adapter { metadata: metadata(tuned, base), ..Adapter::default() };
    let (mut losses, mut left_out) = (Vec::new(), Vec::new());
    for ((path, ..), found) in layers.into_iter().zip(results) {
        match found {
            Found::Equal => {}
            Found::LeftOut => left_out.push(path.clone()),
            Found::Extracted(low_rank, loss) => {
                adapter.layers.insert(path.clone(), Delta::LowRank(low_rank));
                losses.push(loss);
            }
        }
    }
    if adapter.layers.is_empty() {
        let message = format!("{} and {} do not differ", tuned.origin, base.origin);
        return Err(match left_out.len() {
            0 => Error::invalid(message),
            n => Error::invalid(format!("{message} on the layers that are extracted, and do on {n} others"))
                .with_hint("`--conv-rank` extracts convolutions, too"),
        });
    }
    record_ranks(&mut adapter);
    Ok(Cut { adapter, losses, kept: Vec::new(), left_out })
}

/// What became of a layer.
enum Found {
    Equal,
    /// It differs, and no rank was given for its kind.
    LeftOut,
    Extracted(LowRank, LayerLoss),
}

/// In f32, in the table's shape.
fn difference(tuned: &dyn Store, base: &dyn Store, path: &LayerPath, shape: &[usize]) -> Result<Tensor> {
    let load = |store: &dyn Store| -> Result<Tensor> {
        let tensor = store.load(&format!("{}.weight", path.name))?;
        if tensor.elem_count() != shape.iter().product::<usize>() || tensor.dim(0)? != shape[0] {
            let found = tensor.dims();
            return Err(Error::invalid(format!(
                "{}: {path} has shape {found:?}, expected {shape:?}",
                store.origin()
            )));
        }
        // A 1×1 convolution in one of the two may be a matrix in the other.
        Ok(tensor.to_dtype(DType::F32)?.reshape(shape)?)
    };
    Ok((load(tuned)? - load(base)?)?)
}

fn extract_layer(
    delta: &Tensor,
    path: &LayerPath,
    shape: &[usize],
    rank: Option<usize>,
    options: &ExtractOptions,
) -> Result<Found> {
    let largest = delta.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    if largest.is_nan() || largest.is_infinite() {
        return Err(Error::invalid("the difference holds NaN or infinity"));
    }
    if f64::from(largest) <= options.min_difference {
        return Ok(Found::Equal);
    }
    let Some(rank) = rank else { return Ok(Found::LeftOut) };
    let delta = delta.flatten_from(1)?;
    let full = delta.dim(0)?.min(delta.dim(1)?);
    let svd = if options.exact { Svd::of_matrix(&delta)? } else { Svd::leading(&delta, rank, options.seed)? };
    let (mut up, mut down) = svd.factors(rank.min(full))?;
    if let Some(q) = options.clamp_quantile {
        (up, down) = clamped(&up, &down, q)?;
    }
    let left = (&delta - up.matmul(&down)?)?;
    let rank = up.dim(1)?;
    let loss = LayerLoss {
        layer: path.clone(),
        ranks: (full, rank),
        norm: frobenius(&delta)?,
        error: frobenius(&left)?,
    };
    let low_rank = low_rank((up, down), shape, Some(rank as f64))?;
    Ok(Found::Extracted(in_dtype(low_rank, options.dtype)?, loss))
}

/// Numbers beyond the quantile of both factors' numbers are brought to it, on both sides of 0. The quantile is torch's:
/// of the signed numbers, between neighbours by the straight line.
fn clamped(up: &Tensor, down: &Tensor, quantile: f64) -> Result<(Tensor, Tensor)> {
    let mut all = [up.flatten_all()?.to_vec1::<f32>()?, down.flatten_all()?.to_vec1::<f32>()?].concat();
    all.sort_by(f32::total_cmp);
    let at = quantile * (all.len() - 1) as f64;
    let (below, above) = (f64::from(all[at.floor() as usize]), f64::from(all[at.ceil() as usize]));
    let limit = below + (above - below) * at.fract();
    Ok((up.clamp(-limit, limit)?, down.clamp(-limit, limit)?))
}

fn metadata(tuned: &Checkpoint, base: &Checkpoint) -> Metadata {
    let mut metadata = Metadata::default();
    let v = base.prediction().prediction_type.as_deref() == Some("v_prediction");
    // The rest follows from the layers when the file is written.
    if base.family == Family::Sd2 && v {
        metadata.set("ss_base_model_version", "sd_v2_v");
    }
    metadata.set("ss_sd_model_name", base.name());
    metadata.set("ss_training_comment", format!("extracted from {} - {}", tuned.name(), base.name()));
    metadata
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_quantile_is_torchs() -> Result<()> {
        // torch.quantile(torch.tensor([-9., 1, 2, 3, 4, 100]), 0.9) = 52
        let up = Tensor::new(&[[-9f32, 1.0, 2.0], [3.0, 4.0, 100.0]], &Device::Cpu)?;
        let (up, _) = clamped(&up.narrow(1, 0, 3)?, &Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?, 0.9)?;
        assert_eq!(up.to_vec2::<f32>()?, [[-9.0, 1.0, 2.0], [3.0, 4.0, 52.0]]);
        Ok(())
    }
}
