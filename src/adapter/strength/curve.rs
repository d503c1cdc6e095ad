//! A weight that may change while a picture is drawn.

use std::fmt;

use crate::error::{Error, Result};

/// Weights beyond this, either way, are a slip of the finger: no adapter was made for them.
pub const MAX_WEIGHT: f64 = 1000.0;

/// A number as a function of how many of the steps are done, in percent: the first step is 0, the last 100.
#[derive(Debug, Clone, PartialEq)]
pub enum Curve {
    /// `0.8`: the same all the time.
    Constant(f64),
    /// `0.8@20-60%`: a value from one point on until another, 0 outside.
    Span {
        /// Within.
        value: f64,
        /// Percent; included.
        from: f64,
        /// Percent; included only if it is 100.
        to: f64,
    },
    /// `0..1@0-50%`: straight lines between (percent, value); before the first and after the last point, its value.
    /// Two points at one place are a jump.
    Line(Vec<(f64, f64)>),
}

impl Curve {
    /// The value when `percent` of the steps are done.
    pub fn at(&self, percent: f64) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Span { value, from, to } => {
                let inside = percent >= *from && (percent < *to || *to >= 100.0);
                if inside { *value } else { 0.0 }
            }
            Self::Line(points) => line(points, percent),
        }
    }

    /// True if it never changes.
    pub fn is_constant(&self) -> bool {
        match self {
            Self::Constant(_) => true,
            Self::Span { value, from, to } => *value == 0.0 || (*from <= 0.0 && *to >= 100.0),
            Self::Line(points) => points.windows(2).all(|w| w[0].1 == w[1].1),
        }
    }

    /// The largest distance from 0 it ever has, with its sign.
    pub fn peak(&self) -> f64 {
        match self {
            Self::Constant(value) | Self::Span { value, .. } => *value,
            Self::Line(points) => points
                .iter()
                .map(|p| p.1)
                .fold(0.0, |peak: f64, v| if v.abs() > peak.abs() { v } else { peak }),
        }
    }

    /// The curve times a number.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        match self {
            Self::Constant(value) => Self::Constant(value * factor),
            Self::Span { value, from, to } => Self::Span { value: value * factor, from: *from, to: *to },
            Self::Line(points) => Self::Line(points.iter().map(|(p, v)| (*p, v * factor)).collect()),
        }
    }

    /// `values` is `0.8` or `0..1..0.5`, `points` what stands behind `@` and ends in `%`: as many percentages as values,
    /// or two, between which the values are spread evenly.
    ///
    /// # Errors
    /// If something is not a number, points fall, leave 0 to 100, or do not go with the values.
    pub fn parse(values: &str, points: Option<&str>) -> Result<Self> {
        let values = values.split("..").map(number).collect::<Result<Vec<_>>>()?;
        let points = points.map(parse_points).transpose()?;
        match (values.as_slice(), points.as_deref()) {
            ([value], None) => Ok(Self::Constant(*value)),
            ([value], Some([from, to])) if from < to => {
                Ok(Self::Span { value: *value, from: *from, to: *to })
            }
            ([_], Some(_)) => {
                Err(Error::invalid("one weight needs two different points, as in `0.8@20-60%`"))
            }
            (values, points) => {
                let points = points.unwrap_or(&[0.0, 100.0]);
                let last = values.len() - 1;
                let spread = |(i, v): (usize, &f64)| match points {
                    [from, to] if last > 1 => Some((from + (to - from) * (i as f64 / last as f64), *v)),
                    _ => points.get(i).map(|p| (*p, *v)),
                };
                let line: Option<Vec<_>> = values.iter().enumerate().map(spread).collect();
                line.filter(|_| points.len() == 2 || points.len() == values.len()).map(Self::Line).ok_or_else(
                    || {
                        let (v, p) = (values.len(), points.len());
                        Error::invalid(format!("{v} weights need {v} points or 2, found {p}"))
                            .with_hint("a ramp is `0..1@0-50%`, keyframes are `0..1..0.3@0-40-100%`")
                    },
                )
            }
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |of: &mut dyn Iterator<Item = f64>, by: &str| {
            of.map(|v| v.to_string()).collect::<Vec<_>>().join(by)
        };
        match self {
            Self::Constant(value) => write!(f, "{value}"),
            Self::Span { value, from, to } => write!(f, "{value}@{from}-{to}%"),
            Self::Line(points) => {
                let values = join(&mut points.iter().map(|p| p.1), "..");
                write!(f, "{values}@{}%", join(&mut points.iter().map(|p| p.0), "-"))
            }
        }
    }
}

/// The last point wins where several are at one place.
fn line(points: &[(f64, f64)], percent: f64) -> f64 {
    let after = points.partition_point(|(p, _)| *p <= percent);
    match (after.checked_sub(1).and_then(|i| points.get(i)), points.get(after)) {
        (Some((_, value)), None) | (None, Some((_, value))) => *value,
        (Some((p0, v0)), Some((p1, v1))) => v0 + (v1 - v0) * ((percent - p0) / (p1 - p0)),
        (None, None) => 0.0,
    }
}

fn parse_points(text: &str) -> Result<Vec<f64>> {
    let wrong = || {
        Error::invalid(format!("expected points such as `0-50%`, found `{text}`"))
            .with_hint("percent of the steps, from 0 to 100, not falling")
    };
    let inner = text.trim().strip_suffix('%').ok_or_else(wrong)?;
    let points = inner.split('-').map(|p| p.trim().trim_end_matches('%').parse::<f64>().ok());
    let points = points.collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    let inside = points.iter().all(|p| (0.0..=100.0).contains(p));
    if points.len() < 2 || !inside || points.windows(2).any(|w| w[0] > w[1]) {
        return Err(wrong());
    }
    // `-0` would print a sign that reads as a dash.
    Ok(points.iter().map(|p| p + 0.0).collect())
}

/// A weight, or a factor on one.
pub(super) fn number(text: &str) -> Result<f64> {
    let weight = text.trim().parse::<f64>().ok().filter(|weight| weight.abs() <= MAX_WEIGHT);
    weight.ok_or_else(|| {
        Error::invalid(format!(
            "an adapter's weight must be a number from -{MAX_WEIGHT} to {MAX_WEIGHT}, found `{}`",
            text.trim()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_over_the_steps() -> Result<()> {
        let check = |values: &str, points: Option<&str>, expected: [f64; 5]| -> Result<()> {
            let curve = Curve::parse(values, points)?;
            assert_eq!([0.0, 25.0, 50.0, 75.0, 100.0].map(|p| curve.at(p)), expected, "{curve}");
            Ok(())
        };
        check("0.8", None, [0.8; 5])?;
        check("0..1", None, [0.0, 0.25, 0.5, 0.75, 1.0])?;
        check("0..1", Some("0-50%"), [0.0, 0.5, 1.0, 1.0, 1.0])?;
        check("2..-2", Some("50-100%"), [2.0, 2.0, 2.0, 0.0, -2.0])?;
        check("0..1..0.5", Some("0-50-100%"), [0.0, 0.5, 1.0, 0.75, 0.5])?;
        check("0..1..0", Some("0-100%"), [0.0, 0.5, 1.0, 0.5, 0.0])?;
        check("1..1..0..0", Some("0-50-50-100%"), [1.0, 1.0, 0.0, 0.0, 0.0])?;
        check("3", Some("25-75%"), [0.0, 3.0, 3.0, 0.0, 0.0])?;
        check("3", Some("75-100%"), [0.0, 0.0, 0.0, 3.0, 3.0])
    }

    #[test]
    fn what_makes_no_curve_is_refused() {
        for (values, points) in [
            ("0..1", "50-20%"),
            ("0..1", "0-50"),
            ("0..1", "-5-50%"),
            ("0..1", "0-200%"),
            ("0..1", "0-30-60%"),
            ("0.8", "50-50%"),
            ("0..x", "0-50%"),
            ("", "0-50%"),
        ] {
            assert!(Curve::parse(values, Some(points)).is_err(), "{values}@{points}");
        }
    }
}
