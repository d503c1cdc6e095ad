//! Several adapters into one. By concatenation of the factors the result is the blend itself; by SVD it is the nearest
//! adapter of a rank; the other methods are those of PEFT's `add_weighted_adapter`, number for number.

mod methods;
mod record;

use std::{collections::BTreeSet, fmt, str::FromStr};

use candle_core::{DType, Device, Tensor};

use super::{
    Adapter, Blend, Delta, LowRank, NameTable,
    delta::{Branch, frobenius, numbers},
    embedding,
    layers::{self, Progress},
    resize::{Cut, in_dtype},
    svd::Svd,
    truncate::{Decomposed, LayerLoss, RankLimit, low_rank},
};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
};
use methods::Prune;
pub(crate) use record::{ingredients, record_ranks};

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[allow(missing_docs, reason = "PEFT's names, explained in its `add_weighted_adapter`")]
pub enum Method {
    /// Exact: factors side by side, ranks add up.
    #[default]
    Cat,
    /// The nearest adapter of a rank.
    Svd,
    Linear,
    Ties,
    TiesSvd,
    DareLinear,
    DareLinearSvd,
    DareTies,
    DareTiesSvd,
    MagnitudePrune,
    MagnitudePruneSvd,
}

/// Name, what is dropped, whether signs are elected, and whether that happens to ΔW (then cut by SVD) or to the factors.
const METHODS: &[(&str, Method, Prune, bool, bool)] = &[
    ("cat", Method::Cat, Prune::Nothing, false, false),
    ("svd", Method::Svd, Prune::Nothing, false, true),
    ("linear", Method::Linear, Prune::Nothing, false, false),
    ("ties", Method::Ties, Prune::Magnitude, true, false),
    ("ties_svd", Method::TiesSvd, Prune::Magnitude, true, true),
    ("dare_linear", Method::DareLinear, Prune::Random, false, false),
    ("dare_linear_svd", Method::DareLinearSvd, Prune::Random, false, true),
    ("dare_ties", Method::DareTies, Prune::Random, true, false),
    ("dare_ties_svd", Method::DareTiesSvd, Prune::Random, true, true),
    ("magnitude_prune", Method::MagnitudePrune, Prune::Magnitude, false, false),
    ("magnitude_prune_svd", Method::MagnitudePruneSvd, Prune::Magnitude, false, true),
];

impl Method {
    fn row(self) -> &'static (&'static str, Self, Prune, bool, bool) {
        METHODS.iter().find(|row| row.1 == self).unwrap_or(&METHODS[0])
    }

    /// True if ΔW is decomposed, so that a rank can be chosen.
    pub fn takes_rank(self) -> bool {
        self.row().4
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let name = s.replace('-', "_");
        let name = if name == "dare" { "dare_linear" } else { &name };
        let found = METHODS.iter().find(|row| row.0 == name);
        found.map(|row| row.1).ok_or_else(|| Error::unknown("method", s, METHODS.iter().map(|row| row.0)))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().0)
    }
}

/// Whose sign counts where adapters pull in opposite directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MajoritySign {
    /// That of the sum.
    #[default]
    Total,
    /// That of most adapters.
    Frequency,
}

impl FromStr for MajoritySign {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "total" => Ok(Self::Total),
            "frequency" => Ok(Self::Frequency),
            _ => Err(Error::unknown("majority sign", s, ["total", "frequency"])),
        }
    }
}

/// How to merge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MergeOptions {
    /// What happens to the factors.
    pub method: Method,
    /// The rank of methods that decompose; `None` is the largest of the adapters', layer by layer.
    pub rank: Option<usize>,
    /// The share of numbers that methods which prune keep.
    pub density: f64,
    /// For TIES.
    pub majority: MajoritySign,
    /// For DARE's masks.
    pub seed: u64,
    /// Of the result's factors. `None`: f32 for [`Method::Cat`], so that nothing is rounded; else the widest of the
    /// adapters'.
    pub dtype: Option<DType>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            method: Method::Cat,
            rank: None,
            density: 0.5,
            majority: MajoritySign::Total,
            seed: 0,
            dtype: None,
        }
    }
}

const BAKE: &str = "`scumble bake` puts any adapter into a model";

/// The deltas of a layer with their weights; `index` numbers the layer.
struct Layer<'a> {
    path: &'a LayerPath,
    shape: &'a [usize],
    index: u64,
    terms: Vec<(&'a Delta, f64)>,
}

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
    Ok(Cut { adapter, losses, kept: Vec::new() })
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

impl Layer<'_> {
    fn merge(&self, options: &MergeOptions) -> Result<(LowRank, LayerLoss)> {
        let (_, method, prune, elect_sign, whole) = *options.method.row();
        let branches: Vec<Option<Branch>> =
            self.terms.iter().map(|(delta, _)| delta.branch(self.shape)).collect::<Result<_>>()?;
        let without = branches.iter().position(Option::is_none);
        let branches = without.is_none().then(|| branches.into_iter().flatten().collect::<Vec<_>>());
        let weights: Vec<f64> = self.terms.iter().map(|(_, weight)| *weight).collect();
        let rule = (prune, elect_sign);
        let (merged, loss) = match (method, branches) {
            (Method::Cat, Some(branches)) => self.exactly(concatenate(&branches, &weights)?)?,
            (Method::Svd, Some(branches)) => {
                let (up, down) = concatenate(&branches, &weights)?;
                let svd = Svd::of_product(&up, &down)?;
                let decomposed = Decomposed { svd, scale: 1.0, rank: up.dim(1)? };
                decomposed.cut(self.path, self.shape, &RankLimit::fixed(self.rank(options)?))?
            }
            _ if whole => {
                let deltas = self.terms.iter().map(|(delta, _)| numbers(&delta.weight(self.shape)?));
                let sum =
                    methods::combine(deltas.collect::<Result<_>>()?, &weights, rule, options, self.index)?;
                self.nearest(&Tensor::from_vec(sum, (self.shape[0], ()), &Device::Cpu)?, options)?
            }
            (_, Some(branches)) => self.exactly(self.factors(&branches, &weights, rule, options)?)?,
            (_, None) => {
                return Err(Error::invalid(format!(
                    "{} has no two factors for the method `{}`",
                    self.terms[without.unwrap_or_default()].0.algorithm(),
                    options.method
                ))
                .with_hint("`--rank N` merges it by its singular values (method `svd`)"));
            }
        };
        Ok((in_dtype(merged, self.dtype(options))?, loss))
    }

    /// A result that nothing was left out of.
    fn exactly(&self, (up, down): (Tensor, Tensor)) -> Result<(LowRank, LayerLoss)> {
        let rank = up.dim(1)?;
        let loss = LayerLoss { layer: self.path.clone(), ranks: (rank, rank), norm: 0.0, error: 0.0 };
        Ok((low_rank((up, down), self.shape, Some(rank as f64))?, loss))
    }

    /// The nearest delta of low rank to a whole one (o, i·k).
    fn nearest(&self, delta: &Tensor, options: &MergeOptions) -> Result<(LowRank, LayerLoss)> {
        let rank = self.rank(options)?;
        let factors = Svd::leading(delta, rank, options.seed)?.factors(rank)?;
        let left = (delta - factors.0.matmul(&factors.1)?)?;
        let full = delta.dim(0)?.min(delta.dim(1)?);
        let loss = LayerLoss {
            layer: self.path.clone(),
            ranks: (full, factors.0.dim(1)?),
            norm: frobenius(delta)?,
            error: frobenius(&left)?,
        };
        let alpha = factors.0.dim(1)? as f64;
        Ok((low_rank(factors, self.shape, Some(alpha))?, loss))
    }

    /// PEFT's arithmetic on the factors themselves: each gets the root of weight and scale, `down` also the sign.
    fn factors(
        &self,
        branches: &[Branch],
        weights: &[f64],
        rule: (Prune, bool),
        options: &MergeOptions,
    ) -> Result<(Tensor, Tensor)> {
        let ranks: Vec<usize> = branches.iter().map(|b| b.up.dims()[1]).collect();
        if ranks.iter().any(|rank| *rank != ranks[0]) {
            return Err(Error::invalid(format!(
                "the method `{}` needs adapters of one rank, found {ranks:?}",
                options.method
            ))
            .with_hint("`cat` and `svd` take any ranks"));
        }
        let scaled: Vec<f64> = branches.iter().zip(weights).map(|(b, w)| w * b.scale).collect();
        let roots: Vec<f64> = scaled.iter().map(|s| s.abs().sqrt()).collect();
        let signed: Vec<f64> =
            roots.iter().zip(&scaled).map(|(r, s)| if *s >= 0.0 { *r } else { -r }).collect();
        let merge = |tensors: Vec<Tensor>, weights: &[f64], stream: u64| -> Result<Tensor> {
            let shape = tensors[0].dims().to_vec();
            let tasks = tensors.iter().map(numbers).collect::<Result<_>>()?;
            let merged = methods::combine(tasks, weights, rule, options, stream)?;
            Ok(Tensor::from_vec(merged, shape, &Device::Cpu)?)
        };
        let down = branches.iter().map(|b| Ok(b.down.flatten_from(1)?)).collect::<Result<_>>()?;
        let up = branches.iter().map(|b| b.up.clone()).collect();
        Ok((merge(up, &roots, 2 * self.index + 1)?, merge(down, &signed, 2 * self.index)?))
    }

    fn rank(&self, options: &MergeOptions) -> Result<usize> {
        let of_factors = |delta: &Delta| match delta {
            Delta::LowRank(low_rank) => Ok(low_rank.rank()),
            // A LoHa of rank r is a matrix of rank r².
            other => {
                Err(Error::invalid(format!("{} has no rank that the result could have", other.algorithm()))
                    .with_hint("give one with `--rank`"))
            }
        };
        match options.rank {
            Some(rank) => Ok(rank),
            None => self.terms.iter().try_fold(1, |max, (delta, _)| Ok(of_factors(delta)?.max(max))),
        }
    }

    fn dtype(&self, options: &MergeOptions) -> DType {
        let stored = self.terms.iter().map(|(delta, _)| stored_dtype(delta));
        let widest = stored.reduce(|a, b| if a == b { a } else { DType::F32 }).unwrap_or(DType::F32);
        match options.dtype {
            Some(dtype) => dtype,
            None if options.method == Method::Cat => DType::F32,
            None => widest,
        }
    }
}

/// (o, R) and (R, i·k) with weights and scales in `up`.
fn concatenate(branches: &[Branch], weights: &[f64]) -> Result<(Tensor, Tensor)> {
    let ups = branches
        .iter()
        .zip(weights)
        .map(|(b, w)| Ok((&b.up * (w * b.scale))?))
        .collect::<Result<Vec<_>>>()?;
    let downs = branches.iter().map(|b| Ok(b.down.flatten_from(1)?)).collect::<Result<Vec<_>>>()?;
    Ok((Tensor::cat(&ups, 1)?, Tensor::cat(&downs, 0)?))
}

/// What a delta's factors are stored in; f32 for anything unusual.
pub(crate) fn stored_dtype(delta: &Delta) -> DType {
    match delta {
        Delta::LowRank(LowRank { down, .. }) if matches!(down.dtype(), DType::F16 | DType::BF16) => {
            down.dtype()
        }
        _ => DType::F32,
    }
}
