//! Task arithmetic on vectors of numbers, as PEFT's `merge_utils.py` defines it.

use super::{MajoritySign, MergeOptions};
use crate::{
    error::Result,
    random::{Rng, Stream},
};

/// What is dropped before adding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prune {
    Nothing,
    /// The smallest.
    Magnitude,
    /// Any, and the rest made larger for it (DARE, <https://arxiv.org/abs/2311.03099>).
    Random,
}

/// How many numbers each adapter has on a layer, for naming random streams.
const STREAMS_PER_LAYER: u64 = 1 << 20;

/// Σ weight · vector after pruning; with `elect_sign`, only numbers of the sign that the majority has, averaged over how
/// many those are (TIES, <https://arxiv.org/abs/2306.01708>). `stream` numbers what is merged, for the random masks.
pub(super) fn combine(
    mut tasks: Vec<Vec<f32>>,
    weights: &[f64],
    (prune, elect_sign): (Prune, bool),
    options: &MergeOptions,
    stream: u64,
) -> Result<Vec<f32>> {
    for (i, task) in tasks.iter_mut().enumerate() {
        match prune {
            Prune::Nothing => {}
            Prune::Magnitude => keep_largest(task, options.density),
            Prune::Random => {
                let index = stream * STREAMS_PER_LAYER + i as u64;
                keep_random(task, options.density, &mut Rng::new(options.seed, Stream::Merge, index));
            }
        }
    }
    let n = tasks.first().map_or(0, Vec::len);
    Ok((0..n)
        .map(|at| {
            let numbers = tasks.iter().map(|t| t[at]);
            let weighted = numbers.clone().zip(weights).map(|(x, w)| x * *w as f32);
            if !elect_sign {
                return weighted.sum();
            }
            let majority = majority(numbers.clone(), options.majority);
            let agreeing = numbers.zip(weighted).filter(|(x, _)| sign(*x) == majority);
            let (sum, count) = agreeing.fold((0.0, 0u32), |(sum, n), (_, x)| (sum + x, n + 1));
            sum / count.max(1) as f32
        })
        .collect())
}

/// -1, 0 or 1, unlike [`f32::signum`].
fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

fn majority(numbers: impl Iterator<Item = f32>, by: MajoritySign) -> f32 {
    let sum: f32 = match by {
        MajoritySign::Total => numbers.sum(),
        MajoritySign::Frequency => numbers.map(sign).sum(),
    };
    if sum >= 0.0 { 1.0 } else { -1.0 }
}

fn keep_largest(task: &mut [f32], density: f64) {
    let keep = (density * task.len() as f64) as usize;
    if density >= 1.0 || keep >= task.len() {
        return;
    }
    let mut order: Vec<usize> = (0..task.len()).collect();
    // Equal numbers in the order they stand in, so that results repeat.
    let larger = |a: &usize, b: &usize| task[*b].abs().total_cmp(&task[*a].abs()).then(a.cmp(b));
    order.select_nth_unstable_by(keep, larger);
    order[keep..].iter().for_each(|at| task[*at] = 0.0);
}

fn keep_random(task: &mut [f32], density: f64, rng: &mut Rng) {
    if density >= 1.0 {
        return;
    }
    for x in task {
        *x = if rng.unit() < density { (f64::from(*x) / density) as f32 } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dare_keeps_a_share_and_the_expectation() -> Result<()> {
        let options = MergeOptions { density: 0.3, seed: 5, ..MergeOptions::default() };
        let merge =
            |stream| combine(vec![vec![2.0; 20_000]], &[0.5], (Prune::Random, false), &options, stream);
        let merged = merge(1)?;
        let kept = merged.iter().filter(|x| **x != 0.0).count() as f64 / 2e4;
        assert!((kept - 0.3).abs() < 0.02, "{kept}");
        assert!(merged.iter().all(|x| *x == 0.0 || (x - 1.0 / 0.3).abs() < 1e-5));
        assert_eq!(merged, merge(1)?);
        assert_ne!(merged, merge(2)?);
        Ok(())
    }
}
