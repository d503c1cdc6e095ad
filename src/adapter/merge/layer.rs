//! One layer of several adapters into one.

use candle_core::{DType, Device, Tensor};

use super::{
    MergeOptions, Method,
    methods::{self, Prune},
};
use crate::{
    adapter::{
        Delta, LowRank,
        delta::{Branch, frobenius, numbers},
        resize::in_dtype,
        svd::Svd,
        truncate::{Decomposed, LayerLoss, RankLimit, low_rank},
    },
    error::{Error, Result},
    nn::LayerPath,
};

/// The deltas of a layer with their weights; `index` numbers the layer.
pub(super) struct Layer<'a> {
    pub path: &'a LayerPath,
    pub shape: &'a [usize],
    pub index: u64,
    pub terms: Vec<(&'a Delta, f64)>,
}

impl Layer<'_> {
    pub fn merge(&self, options: &MergeOptions) -> Result<(LowRank, LayerLoss)> {
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
