//! Strengths as text: `0.8`, `unet=0.8,te=0.4`, `0..1@0-50%`, `0.8@mask=left.png,down.0=0.5`.
//!
//! ```text
//! strength = item { "," item }
//! item     = weight                              first only: for every part
//!          | "unet=" weight | "te=" weight       what is not named is 1, or what the first item says
//!          | block "=" number                    a factor on a block: down, down.0, mid, up, up.2, in04, out05
//!          | "lbw=" number { "," number }        12, 17, 20 or 26 of them
//! weight   = number { ".." number } { "@" where }
//! where    = percent "-" percent { "-" percent } "%" | "mask=" file | "outside=" file | "left" | "right" | "top" | "bottom"
//! ```

use std::{fmt, str::FromStr};

use super::{Blocks, Curve, Region, Strength, blocks::vector, curve::number};
use crate::error::{Error, Result};

impl FromStr for Strength {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let mut parts = Words::default();
        for (i, item) in items(s)?.into_iter().enumerate() {
            match key_of(item) {
                None if i == 0 => parts.all = Some(Weight::parse(item)?),
                None => {
                    return Err(Error::invalid(format!("expected `name=weight`, found `{}`", item.trim()))
                        .with_hint("only the first weight of a list has no name"));
                }
                Some((key, value)) => parts.set(key, value)?,
            }
        }
        parts.strength()
    }
}

/// What a text has said so far.
#[derive(Debug, Default)]
struct Words {
    all: Option<Weight>,
    unet: Option<Weight>,
    te: Option<Weight>,
    blocks: Blocks,
}

impl Words {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let slot = match key {
            "unet" => &mut self.unet,
            "te" => &mut self.te,
            "lbw" => return self.blocks.set_vector(vector(value.split(','))?),
            block => {
                let block = block.parse()?;
                let factor = number(value).map_err(|e| {
                    e.with_hint(
                        "a block has one factor for all steps; the weight itself may change, as `unet=0..1`",
                    )
                })?;
                return self.blocks.set(block, factor);
            }
        };
        match slot.replace(Weight::parse(value)?) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("`{key}` has two weights"))),
        }
    }

    fn strength(self) -> Result<Strength> {
        if self.te.as_ref().is_some_and(|te| te.region.is_some()) {
            return Err(Error::invalid("the text encoder sees no picture: a region has no meaning in `te`")
                .with_hint("write `unet=0.8@mask=FILE,te=0.4`"));
        }
        // A text that names a region for everything means the picture: the text has no places.
        let everywhere = |all: &Weight| {
            if all.region.is_some() { Curve::Constant(0.0) } else { all.curve.clone() }
        };
        let text_encoder = match (self.te, &self.all) {
            (Some(te), _) => te.curve,
            (None, Some(all)) => everywhere(all),
            (None, None) => Curve::Constant(1.0),
        };
        let unet = self.unet.or(self.all).unwrap_or(Weight { curve: Curve::Constant(1.0), region: None });
        let strength = Strength::curves(unet.curve, text_encoder).with_blocks(self.blocks);
        Ok(match unet.region {
            Some(region) => strength.in_region(region),
            None => strength,
        })
    }
}

/// A weight with its points and its region.
#[derive(Debug)]
struct Weight {
    curve: Curve,
    region: Option<Region>,
}

impl Weight {
    fn parse(text: &str) -> Result<Self> {
        let mut words = split(text, '@')?.into_iter();
        let values = words.next().unwrap_or_default();
        let (mut points, mut region) = (None, None);
        for word in words {
            let again = if word.trim().ends_with('%') && !word.contains('=') {
                points.replace(word).is_some()
            } else {
                region.replace(Region::parse(word)?).is_some()
            };
            if again {
                return Err(Error::invalid(format!("two of a kind behind `@` in `{}`", text.trim())));
            }
        }
        Ok(Self { curve: Curve::parse(values, points)?, region })
    }
}

/// Splits at commas; numbers after `lbw=` are one item with it.
fn items(text: &str) -> Result<Vec<&str>> {
    let mut items: Vec<&str> = Vec::new();
    let mut start = 0;
    for piece in split(text, ',')? {
        let end = start + piece.len();
        match items.last_mut() {
            Some(last) if key_of(piece).is_none() && key_of(last).is_some_and(|(key, _)| key == "lbw") => {
                let from = start - 1 - last.len();
                *last = &text[from..end];
            }
            _ => items.push(piece),
        }
        start = end + 1;
    }
    Ok(items)
}

/// `key=value`, unless the sign belongs to a region.
fn key_of(item: &str) -> Option<(&str, &str)> {
    let (key, value) = item.split_once('=')?;
    (!key.contains('@')).then_some((key.trim(), value.trim()))
}

/// Splits where `mark` stands outside of quotes.
fn split(text: &str, mark: char) -> Result<Vec<&str>> {
    let (mut pieces, mut start, mut quoted) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        quoted ^= c == '"';
        if c == mark && !quoted {
            pieces.push(&text[start..i]);
            start = i + c.len_utf8();
        }
    }
    pieces.push(&text[start..]);
    if quoted {
        return Err(Error::invalid(format!("a quote is not closed in `{}`", text.trim())));
    }
    Ok(pieces)
}

impl Strength {
    /// The weights of UNet and text encoder; one if they are the same.
    fn weights(&self) -> (String, Option<String>) {
        let mut unet = self.unet.to_string();
        if let Some(region) = &self.region {
            unet.push_str(&format!("@{region}"));
        }
        let same = match self.region {
            None => self.unet == self.text_encoder,
            Some(_) => self.text_encoder == Curve::Constant(0.0),
        };
        (unet, (!same).then(|| self.text_encoder.to_string()))
    }

    /// What a prompt's tag says behind the name, `:0.8` or `:te:unet:down.0=0.5`.
    pub fn tag_arguments(&self) -> String {
        let weights = match self.weights() {
            (unet, None) => vec![unet],
            (unet, Some(te)) => vec![te, unet],
        };
        weights.into_iter().chain(self.blocks.words()).map(|word| format!(":{word}")).collect()
    }
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = match self.weights() {
            (unet, None) => vec![unet],
            (unet, Some(te)) => vec![format!("unet={unet}"), format!("te={te}")],
        };
        let words: Vec<String> = weights.into_iter().chain(self.blocks.words()).collect();
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::adapter::strength::{Block, MAX_WEIGHT};

    #[test]
    fn parses_what_it_prints() -> Result<()> {
        for s in [
            "0.8",
            "-1.5",
            "unet=0.4,te=0",
            "0..1@0-50%",
            "unet=0.8@20-60%,te=1",
            "0.8@mask=left.png",
            "0.8@mask=\"C:\\a, b.png\"",
            "unet=0..1..0.5@0-30-100%@outside=m.png,te=0.4,down.0=0.5,mid=1,in04=2",
            "1,lbw=1,0,0,0,1,1,1,0.5,1,1,1,1,mid=0.25",
        ] {
            assert_eq!(s.parse::<Strength>()?.to_string(), s);
        }
        Ok(())
    }

    #[test]
    fn what_is_left_out() -> Result<()> {
        assert_eq!("te=0.5".parse::<Strength>()?, Strength::split(1.0, 0.5));
        assert_eq!("0.3,te=0.5".parse::<Strength>()?, Strength::split(0.3, 0.5));
        assert_eq!("0..1".parse::<Strength>()?.to_string(), "0..1@0-100%");
        assert_eq!("0.8@left".parse::<Strength>()?.text_encoder(), Curve::Constant(0.0));
        assert_eq!("unet=0.8@left".parse::<Strength>()?.text_encoder(), Curve::Constant(1.0));
        assert_eq!("in=0.5".parse::<Strength>()?, "down=0.5".parse()?);
        assert_eq!(
            "unet=0.5,te=0.25@0-50%,mid=2".parse::<Strength>()?.tag_arguments(),
            ":0.25@0-50%:0.5:mid=2"
        );
        Ok(())
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for s in [
            "",
            "nan",
            "1e30",
            "mid=-1001",
            "unet=x",
            "vae=1",
            "0.5,0.6",
            "unet=1,unet=2",
            "te=1@left",
            "1@left@right",
            "1@0-50",
            "mid=0..1",
            "lbw=1,2,3",
            "1@mask=",
            "1@mask=\"a",
            "1@middle",
            "mid=1,mid=2",
        ] {
            assert!(s.parse::<Strength>().is_err(), "{s}");
        }
        assert!("vae=1".parse::<Strength>().is_err_and(|e| e.hint().is_some()));
    }

    fn curve() -> impl Strategy<Value = Curve> {
        let value = || {
            let any = -MAX_WEIGHT as f32..MAX_WEIGHT as f32;
            prop_oneof![-3.0..3.0f64, Just(1.0), any.prop_map(f64::from)]
        };
        let line = proptest::collection::vec((0.0..=100.0f64, value()), 2..5).prop_map(|mut points| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Curve::Line(points)
        });
        prop_oneof![
            value().prop_map(Curve::Constant),
            (value(), 0.0..50.0f64, 51.0..=100.0f64).prop_map(|(value, from, to)| Curve::Span {
                value,
                from,
                to
            }),
            line,
        ]
    }

    fn block() -> impl Strategy<Value = Block> {
        prop_oneof![
            Just(Block::Mid),
            proptest::option::of(0..12usize).prop_map(Block::Down),
            proptest::option::of(0..12usize).prop_map(Block::Up),
            (0..12usize).prop_map(Block::In),
            (0..12usize).prop_map(Block::Out),
        ]
    }

    fn strength() -> impl Strategy<Value = Strength> {
        let region = prop_oneof![
            Just("left".to_owned()),
            "(mask|outside)=\"[a-z:,@=<> é\\\\/%]{1,12}\"",
            "mask=[a-z][a-z/. ]{0,8}[a-z]",
        ];
        let blocks = proptest::collection::btree_map(block(), -2.0..2.0f64, 0..4);
        let vector = proptest::option::of(proptest::collection::vec(-1.0..2.0f64, 17));
        (curve(), curve(), blocks, vector, proptest::option::of(region)).prop_map(
            |(unet, te, named, vector, region)| {
                let mut blocks = Blocks::default();
                vector.into_iter().for_each(|v| blocks.set_vector(v).expect("17 numbers"));
                named.into_iter().for_each(|(b, f)| blocks.set(b, f).expect("each block once"));
                let strength = Strength::curves(unet, te).with_blocks(blocks);
                match region {
                    Some(words) => strength.in_region(Region::parse(&words).expect("a region")),
                    None => strength,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn any_strength_reads_back(strength in strength()) {
            let text = strength.to_string();
            prop_assert_eq!(text.parse::<Strength>().ok(), Some(strength), "{}", text);
        }

        #[test]
        fn no_text_breaks_the_reader(text in "([0-9.@%,=-]|lbw=|unet=|te=|mask=|\"|\\PC){0,40}") {
            if let Ok(strength) = text.parse::<Strength>() {
                prop_assert_eq!(strength.to_string().parse::<Strength>().ok(), Some(strength));
            }
        }
    }
}
