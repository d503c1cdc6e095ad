//! Which way to merge, by PEFT's names.

use std::{fmt, str::FromStr};

use candle_core::DType;

use super::methods::Prune;
use crate::error::{Error, Result};

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
    pub(super) fn row(self) -> &'static (&'static str, Self, Prune, bool, bool) {
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
