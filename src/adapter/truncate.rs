//! How many singular values of a delta are kept, and what the rest amounted to.

use candle_core::Tensor;

use super::{LowRank, svd::Svd};
use crate::{
    error::{Error, Result},
    nn::LayerPath,
};

/// A delta whose largest singular value is below this is nothing (kohya's `MIN_SV`).
const MIN_VALUE: f64 = 1e-6;

/// Which rank a layer gets, as kohya's `resize_lora.py` defines it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RankRule {
    /// The same everywhere.
    Fixed,
    /// Keeps singular values above the largest divided by this.
    Ratio(f64),
    /// Keeps at least this share of the Frobenius norm.
    Frobenius(f64),
    /// Keeps at least this share of the singular values' sum.
    Cumulative(f64),
}

/// A [`RankRule`] with its upper bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankLimit {
    /// The rule.
    pub rule: RankRule,
    /// The largest rank, of [`RankRule::Fixed`] the only one.
    pub max_rank: usize,
    /// The same for convolutions.
    pub max_conv_rank: usize,
}

impl RankLimit {
    /// One rank for all layers.
    pub fn fixed(rank: usize) -> Self {
        Self { rule: RankRule::Fixed, max_rank: rank, max_conv_rank: rank }
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// If a rank is 0 or a share is not between 0 and 1.
    pub fn check(&self) -> Result<()> {
        if self.max_rank == 0 || self.max_conv_rank == 0 {
            return Err(Error::invalid("the rank must be at least 1"));
        }
        match self.rule {
            RankRule::Ratio(ratio) if !(ratio.is_finite() && ratio > 1.0) => {
                Err(Error::invalid(format!("the ratio of singular values must be above 1, found {ratio}"))
                    .with_hint("2 keeps little, 10 keeps much"))
            }
            RankRule::Frobenius(share) | RankRule::Cumulative(share) if !(share > 0.0 && share <= 1.0) => {
                Err(Error::invalid(format!("the share to keep must be between 0 and 1, found {share}")))
            }
            _ => Ok(()),
        }
    }

    /// The rank for these falling singular values.
    pub fn rank(&self, values: &[f64], conv: bool) -> usize {
        let max = if conv { self.max_conv_rank } else { self.max_rank }.min(values.len()).max(1);
        let largest = values.first().copied().unwrap_or_default();
        if largest <= MIN_VALUE {
            return 1;
        }
        let rank = match self.rule {
            RankRule::Fixed => max,
            RankRule::Ratio(ratio) => values.iter().filter(|v| **v > largest / ratio).count(),
            RankRule::Frobenius(share) => first_reaching(values.iter().map(|v| v * v), share * share),
            RankRule::Cumulative(share) => first_reaching(values.iter().copied(), share),
        };
        rank.clamp(1, max)
    }
}

/// How many of these sum up to a share of all.
fn first_reaching(values: impl Iterator<Item = f64> + Clone, share: f64) -> usize {
    let wanted = share * values.clone().sum::<f64>();
    let mut sum = 0.0;
    1 + values
        .take_while(|v| {
            sum += v;
            sum < wanted
        })
        .count()
}

/// What became of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerLoss {
    /// Which.
    pub layer: LayerPath,
    /// r before and after.
    pub ranks: (usize, usize),
    /// ‖ΔW‖ in the Frobenius norm, and ‖ΔW − what was kept‖.
    pub norm: f64,
    /// See `norm`.
    pub error: f64,
}

impl LayerLoss {
    /// error / norm; 0 where there was nothing.
    pub fn relative(&self) -> f64 {
        if self.norm > 0.0 { self.error / self.norm } else { 0.0 }
    }
}

/// The relative error of all layers together, ‖error‖ / ‖ΔW‖ over the whole adapter.
pub fn total_error(losses: &[LayerLoss]) -> f64 {
    let sum = |f: fn(&LayerLoss) -> f64| losses.iter().map(|l| f(l).powi(2)).sum::<f64>();
    let norm = sum(|l| l.norm);
    if norm > 0.0 { (sum(|l| l.error) / norm).sqrt() } else { 0.0 }
}

/// A delta as its singular values, to be cut.
#[derive(Debug)]
pub(crate) struct Decomposed {
    pub svd: Svd,
    /// ΔW = scale · U S Vᵀ.
    pub scale: f64,
    /// r before.
    pub rank: usize,
}

impl Decomposed {
    /// Keeps what `limit` says; alpha becomes scale · rank, so that the scale stays. `shape` is the base weight's.
    pub fn cut(&self, layer: &LayerPath, shape: &[usize], limit: &RankLimit) -> Result<(LowRank, LayerLoss)> {
        let rank = limit.rank(self.svd.values(), shape.len() == 4);
        let (up, down) = self.svd.factors(rank)?;
        let rest = |from: usize| {
            let tail = self.svd.values().iter().skip(from);
            tail.map(|v| v * v).sum::<f64>().sqrt() * self.scale.abs()
        };
        let loss =
            LayerLoss { layer: layer.clone(), ranks: (self.rank, rank), norm: rest(0), error: rest(rank) };
        Ok((low_rank((up, down), shape, Some(self.scale * rank as f64))?, loss))
    }
}

/// Factors (o, r) and (r, n) in the shapes files use beside a base weight of `shape`: convolutions have four dimensions.
pub(crate) fn low_rank((up, down): (Tensor, Tensor), shape: &[usize], alpha: Option<f64>) -> Result<LowRank> {
    let (o, rank) = up.dims2()?;
    let down = down.reshape(super::delta::branch_shape(rank, shape))?;
    let up = if shape.len() == 4 { up.reshape((o, rank, 1, 1))? } else { up };
    Ok(LowRank { down, up, mid: None, alpha })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of kohya's `index_sv_*` + 1 for the same values.
    #[test]
    fn rules_are_kohyas() {
        let values = [8.0, 4.0, 2.0, 1.0, 0.5];
        let rank = |rule, max| RankLimit { rule, max_rank: max, max_conv_rank: 1 }.rank(&values, false);
        assert_eq!(rank(RankRule::Fixed, 3), 3);
        assert_eq!(rank(RankRule::Fixed, 99), 5);
        assert_eq!(rank(RankRule::Ratio(2.0), 99), 1);
        assert_eq!(rank(RankRule::Ratio(4.5), 99), 3);
        assert_eq!(rank(RankRule::Ratio(1e9), 2), 2);
        // Cumulated shares: 0.516, 0.774, 0.903, 0.968, 1.
        assert_eq!(rank(RankRule::Cumulative(0.5), 99), 1);
        assert_eq!(rank(RankRule::Cumulative(0.9), 99), 3);
        assert_eq!(rank(RankRule::Cumulative(0.91), 99), 4);
        // Shares of the norm: 0.867, 0.969, 0.993, 0.999, 1.
        assert_eq!(rank(RankRule::Frobenius(0.9), 99), 2);
        assert_eq!(rank(RankRule::Frobenius(1.0), 99), 5);
        assert_eq!(RankLimit::fixed(4).rank(&[1e-7, 0.0], false), 1);
        assert_eq!(RankLimit { max_conv_rank: 2, ..RankLimit::fixed(4) }.rank(&values, true), 2);
    }
}
