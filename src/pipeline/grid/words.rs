//! Sides of a grid from words, and back.

use std::str::FromStr;

use super::Axis;
use crate::error::{Error, Result};

/// What recipes call that which changes; steps and seeds as the web UI does.
const WEIGHT_OF: &str = "Weight of ";
const WEIGHTS: &str = "All weights times";
const STEPS: &str = "Steps";
const SEEDS: &str = "Seed";
const STYLES: &str = "Style";

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
            Kind::Weight(style) => Self::Weight { style, values: parsed(list, "numbers")? },
            Kind::Weights => Self::Weights(parsed(list, "numbers")?),
            Kind::Steps => Self::Steps(parsed(list, "whole numbers")?),
            Kind::Seeds => {
                Self::Seeds(parsed(list, &format!("seeds, whole numbers from 0 to {}", u64::MAX))?)
            }
            Kind::Styles => {
                Self::Styles(entries(list)?.map(|name| place(name, names)).collect::<Result<_>>()?)
            }
        })
    }

    /// What [`Axis::words`] says, and the web UI where it means the same; `None` if nothing changes.
    pub(super) fn of_words(what: &str, list: &str, names: &[&str]) -> Result<Option<Self>> {
        let kind = match (what, what.strip_prefix(WEIGHT_OF)) {
            ("Nothing", _) => return Ok(None),
            (_, Some(name)) => Kind::Weight(place(name, names)?),
            (WEIGHTS, _) => Kind::Weights,
            (STEPS, _) => Kind::Steps,
            (SEEDS, _) => Kind::Seeds,
            (STYLES, _) => Kind::Styles,
            _ => {
                let message = format!("a grid whose pictures differ in `{what}` cannot be drawn here");
                return Err(Error::invalid(message).with_hint(
                    "`--grid-x` and `--grid-y` say what changes: weights, steps, seeds or styles",
                ));
            }
        };
        Self::of(kind, list, names).map(Some)
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
                (format!("{WEIGHT_OF}{}", names.get(*style).copied().unwrap_or_default()), join(values))
            }
            Self::Weights(values) => (WEIGHTS.into(), join(values)),
            Self::Steps(values) => (STEPS.into(), join(values)),
            Self::Seeds(values) => (SEEDS.into(), join(values)),
            Self::Styles(_) => (STYLES.into(), self.labels(names).join(", ")),
        }
    }
}

/// The values between the commas; none of a text that says nothing.
fn entries(list: &str) -> Result<impl Iterator<Item = &str>> {
    let words = || list.split(',').map(str::trim).filter(|_| !list.trim().is_empty());
    match words().position(str::is_empty) {
        Some(index) => Err(Error::invalid(format!("value {} of `{}` is empty", index + 1, list.trim()))
            .with_hint("values stand between single commas: `0,0.5,1`")),
        None => Ok(words()),
    }
}

fn parsed<T: FromStr>(list: &str, expected: &str) -> Result<Vec<T>> {
    let value = |word: &str| {
        let wrong = || Error::invalid(format!("expected {expected} with commas between, found `{word}`"));
        word.parse().map_err(|_| wrong())
    };
    entries(list)?.map(value).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_come_back_from_their_words() -> Result<()> {
        let names = ["ink", "riso"];
        for text in [
            "weight:riso=0,0.123456789,-1",
            "weights=0,1",
            "steps=5,10",
            "seed=0,18446744073709551615",
            "style=riso,ink",
        ] {
            let axis = Axis::parse(text, &names)?;
            let (what, list) = axis.words(&names);
            assert_eq!(Axis::of_words(&what, &list, &names)?, Some(axis), "{what}: {list}");
        }
        assert_eq!(Axis::of_words("Nothing", "", &names)?, None);
        let other = Axis::of_words("CFG Scale", "3, 7", &names).expect_err("not known here");
        assert!(other.to_string().contains("`CFG Scale`") && other.hint().is_some());
        Ok(())
    }

    #[test]
    fn an_empty_value_is_named() {
        let words = |text: &str| Axis::parse(text, &["ink"]).expect_err(text).to_string();
        assert_eq!(words("weights=0,,1"), "value 2 of `0,,1` is empty");
        assert_eq!(words("seed=7,"), "value 2 of `7,` is empty");
        assert_eq!(words("style= ,ink"), "value 1 of `,ink` is empty");
        let huge = words("seed=1,18446744073709551616");
        assert!(huge.contains("from 0 to 18446744073709551615") && huge.contains("found `18446"), "{huge}");
        // None at all is the grid's to refuse.
        assert_eq!(Axis::parse("seed=", &[]).ok(), Some(Axis::Seeds(Vec::new())));
    }
}
