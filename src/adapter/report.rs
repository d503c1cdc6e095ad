//! What of an adapter's file was applied, and what not and why.

use std::fmt;

use super::Lineage;
use crate::{
    error::{Error, Result},
    nn::Part,
};

/// Why a key was not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The end of the key is no parameter of any known algorithm.
    UnknownParameter,
    /// The algorithm is known but cannot be applied yet.
    Unsupported(&'static str),
    /// The model has no layer of that name.
    UnknownLayer {
        /// The model's most similar layer.
        nearest: Option<String>,
    },
    /// The beginning of the key belongs to another kind of model.
    Foreign(&'static str),
    /// The component is not part of what the adapter is loaded onto.
    MissingComponent(Part),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownParameter => write!(f, "the key ends in no known parameter name"),
            Self::Unsupported(algorithm) => write!(f, "{algorithm} is not supported yet"),
            Self::UnknownLayer { nearest: None } => write!(f, "the model has no such layer"),
            Self::UnknownLayer { nearest: Some(name) } => {
                write!(f, "the model has no such layer; the nearest is `{name}`")
            }
            Self::Foreign(what) => write!(f, "belongs to {what}"),
            Self::MissingComponent(part) => write!(f, "the model has no {}", part_name(*part)),
        }
    }
}

fn part_name(part: Part) -> &'static str {
    match part {
        Part::Unet => "UNet here",
        Part::TextEncoder => "text encoder here",
        Part::TextEncoder2 => "second text encoder",
    }
}

/// A key that was not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// As in the file.
    pub key: String,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.reason)
    }
}

/// The account of one load.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// How names were spelled, for people.
    pub dialect: String,
    /// Told by the shapes of the file's cross-attention deltas, if it has any.
    pub lineage: Option<Lineage>,
    /// Keys that were applied.
    pub matched: usize,
    /// Keys that were not.
    pub unmatched: Vec<Unmatched>,
    /// Odd but harmless things.
    pub warnings: Vec<String>,
}

/// How many unmatched keys a message lists.
const LISTED: usize = 5;

impl LoadReport {
    /// The applied share of the file's keys, 0 to 1.
    pub fn coverage(&self) -> f64 {
        let total = self.matched + self.unmatched.len();
        if total == 0 { 0.0 } else { self.matched as f64 / total as f64 }
    }

    /// Applies the rule that nothing is dropped silently.
    ///
    /// # Errors
    /// If a key is unmatched and that is not allowed, or if no key matched at all.
    pub(crate) fn enforce(&self, allow_unmatched: bool) -> Result<()> {
        if self.matched == 0 && self.unmatched.is_empty() {
            return Err(Error::invalid("this file holds no tensors of an adapter"));
        }
        if self.matched == 0 {
            let foreign = self.unmatched.iter().find_map(|u| match u.reason {
                Reason::Foreign(what) => Some(what),
                _ => None,
            });
            if let Some(what) = foreign {
                let message = format!("this is no adapter for Stable Diffusion: it belongs to {what}");
                return Err(Error::invalid(format!("{message}{}", self.listing())));
            }
            let from = self.lineage.map(|l| format!(", it was made for {l}")).unwrap_or_default();
            return Err(Error::invalid(format!(
                "nothing in this file fits the model{from}{}",
                self.listing()
            )));
        }
        if self.unmatched.is_empty() || allow_unmatched {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} of {} keys were not applied{}",
            self.unmatched.len(),
            self.matched + self.unmatched.len(),
            self.listing()
        ))
        .with_hint("`--allow-unmatched` applies the rest anyway"))
    }

    fn listing(&self) -> String {
        let lines: Vec<String> = self.unmatched.iter().take(LISTED).map(|u| format!("\n  {u}")).collect();
        let more = self.unmatched.len().saturating_sub(LISTED);
        let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        format!("{}{more}", lines.concat())
    }
}
