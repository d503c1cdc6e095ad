//! How strongly an adapter acts, and where.

use std::{fmt, str::FromStr};

use crate::{
    error::{Error, Result},
    nn::{LayerPath, Part},
};

/// The weight m of an adapter in a blend: W' = W + m · ΔW. Negative weights and weights above 1 are legal.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Strength {
    unet: f64,
    text_encoder: f64,
}

impl Strength {
    /// The same weight everywhere.
    pub fn uniform(weight: f64) -> Self {
        Self { unet: weight, text_encoder: weight }
    }

    /// One weight for the denoising network, one for the text encoders.
    pub fn split(unet: f64, text_encoder: f64) -> Self {
        Self { unet, text_encoder }
    }

    /// The weight in the denoising network.
    pub fn unet(&self) -> f64 {
        self.unet
    }

    /// The weight in the text encoders.
    pub fn text_encoder(&self) -> f64 {
        self.text_encoder
    }

    /// The weight on one layer.
    pub fn at(&self, layer: &LayerPath) -> f64 {
        match layer.part {
            Part::Unet => self.unet,
            Part::TextEncoder | Part::TextEncoder2 => self.text_encoder,
        }
    }

    /// True if no layer is touched.
    pub fn is_zero(&self) -> bool {
        self.unet == 0.0 && self.text_encoder == 0.0
    }
}

impl Default for Strength {
    fn default() -> Self {
        Self::uniform(1.0)
    }
}

/// `0.8`, or `unet=0.8,te=0.4` where what is left out is 1.
impl FromStr for Strength {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let number = |text: &str| match text.trim().parse::<f64>() {
            Ok(weight) if weight.is_finite() => Ok(weight),
            _ => {
                Err(Error::invalid(format!("an adapter's weight must be a number, found `{}`", text.trim())))
            }
        };
        if !s.contains('=') {
            return number(s).map(Self::uniform);
        }
        let mut strength = Self::default();
        for item in s.split(',') {
            match item.split_once('=').map(|(name, weight)| (name.trim(), number(weight))) {
                Some(("unet", weight)) => strength.unet = weight?,
                Some(("te", weight)) => strength.text_encoder = weight?,
                Some((name, _)) => {
                    return Err(Error::unknown("part of an adapter's weight", name, ["unet", "te"]));
                }
                None => {
                    return Err(Error::invalid(format!(
                        "expected `unet=…` or `te=…`, found `{}`",
                        item.trim()
                    )));
                }
            }
        }
        Ok(strength)
    }
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unet == self.text_encoder {
            write!(f, "{}", self.unet)
        } else {
            write!(f, "unet={},te={}", self.unet, self.text_encoder)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints() -> Result<()> {
        for s in ["0.8", "-1.5", "unet=0.4,te=0"] {
            assert_eq!(s.parse::<Strength>()?.to_string(), s);
        }
        assert_eq!("te=0.5".parse::<Strength>()?, Strength::split(1.0, 0.5));
        assert!("nan".parse::<Strength>().is_err());
        assert!("unet=x".parse::<Strength>().is_err());
        assert!("vae=1".parse::<Strength>().is_err_and(|e| e.hint().is_some()));
        Ok(())
    }
}
