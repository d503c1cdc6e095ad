//! Sides of a grid from words, and back.

use std::str::FromStr;

use super::Axis;
use crate::error::{Error, Result};

/// What changes along a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The weight of one style, by its place.
    Weight(usize),
    /// All styles' weights times a number.
    Weights,
    /// Denoising steps.
    Steps,
    /// Seeds.
    Seeds,
    /// One style at a time.
    Styles,
}

impl Axis {
    /// A side from a list with commas: numbers, or names out of `names`.
    ///
    /// # Errors
    /// If an entry is no number, or no style's name.
    pub fn of(kind: Kind, list: &str, names: &[&str]) -> Result<Self> {
        Ok(match kind {
            Kind::Weight(style) => Self::Weight { style, values: parsed(list)? },
            Kind::Weights => Self::Weights(parsed(list)?),
            Kind::Steps => Self::Steps(parsed(list)?),
            Kind::Seeds => Self::Seeds(parsed(list)?),
            Kind::Styles => {
                Self::Styles(entries(list).map(|name| place(name, names)).collect::<Result<_>>()?)
            }
        })
    }

    /// `weight:STYLE=0,0.5,1`, `weights=…`, `steps=…`, `seed=…`, or `style=NAME,NAME`.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn parse(text: &str, names: &[&str]) -> Result<Self> {
        let Some((what, list)) = text.split_once('=') else {
            return Err(Error::invalid(format!("expected what changes, `=` and its values, found `{text}`"))
                .with_hint("for example `weight:my-style=0,0.5,1`, `weights=0,1`, `steps=10,20`, `seed=7,8`, `style=a,b`"));
        };
        let kind = match what.trim() {
            "weights" => Kind::Weights,
            "steps" => Kind::Steps,
            "seed" | "seeds" => Kind::Seeds,
            "style" | "styles" => Kind::Styles,
            other => match other.split_once(':') {
                Some(("weight", name)) => Kind::Weight(place(name.trim(), names)?),
                _ => {
                    let known = ["weight:STYLE", "weights", "steps", "seed", "style"];
                    return Err(Error::unknown("side of a grid", other, known));
                }
            },
        };
        Self::of(kind, list, names)
    }

    pub(super) fn labels(&self, names: &[&str]) -> Vec<String> {
        let name = |style: &usize| names.get(*style).copied().unwrap_or_default();
        match self {
            Self::Weight { style, values } => {
                values.iter().map(|value| format!("{} {}", name(style), short(*value))).collect()
            }
            Self::Weights(values) => values.iter().map(|value| format!("all {}", short(*value))).collect(),
            Self::Steps(values) => values.iter().map(|value| format!("{value} steps")).collect(),
            Self::Seeds(values) => values.iter().map(|value| format!("seed {value}")).collect(),
            Self::Styles(styles) => styles.iter().map(|style| name(style).to_owned()).collect(),
        }
    }

    /// What it is and its values, as words.
    pub(super) fn words(&self, names: &[&str]) -> (String, String) {
        fn join<T: ToString>(values: &[T]) -> String {
            values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        match self {
            Self::Weight { style, values } => {
                (format!("Weight of {}", names.get(*style).copied().unwrap_or_default()), join(values))
            }
            Self::Weights(values) => ("All weights times".into(), join(values)),
            Self::Steps(values) => ("Steps".into(), join(values)),
            Self::Seeds(values) => ("Seed".into(), join(values)),
            Self::Styles(_) => ("Style".into(), self.labels(names).join(", ")),
        }
    }
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn parsed<T: FromStr>(list: &str) -> Result<Vec<T>> {
    let value = |word: &str| {
        let wrong = || Error::invalid(format!("expected numbers with commas between, found `{word}`"));
        word.parse().map_err(|_| wrong())
    };
    entries(list).map(value).collect()
}

fn place(name: &str, names: &[&str]) -> Result<usize> {
    let found = names.iter().position(|known| *known == name);
    found.ok_or_else(|| Error::unknown("style", name, names.iter().copied()))
}

/// Two digits at most, none that say nothing.
fn short(weight: f64) -> String {
    let weight = format!("{weight:.2}");
    weight.trim_end_matches('0').trim_end_matches('.').to_owned()
}
