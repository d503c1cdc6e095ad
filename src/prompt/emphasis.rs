//! What a weight does to an encoded token.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// How weights are applied to the text encoder's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Emphasis {
    /// Scale each token, then bring the row's mean back to what it was: the web UI's "Original".
    #[default]
    Original,
    /// Scale each token and leave it: the web UI's "No norm", often better for SDXL.
    NoNorm,
    /// Take the weights out of the prompt and do nothing with them.
    Ignore,
}

impl Emphasis {
    /// All of them, in the order to offer them.
    pub const ALL: [Self; 3] = [Self::Original, Self::NoNorm, Self::Ignore];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::NoNorm => "no_norm",
            Self::Ignore => "ignore",
        }
    }

    /// Weights an encoded prompt. A row whose weights are all 1 comes back bit for bit.
    ///
    /// The mean is restored row by row, where the web UI restores it over whatever it happened to encode together:
    /// the same for one prompt, and independent of what else is in the batch.
    ///
    /// # Shapes
    /// - `encoded`: (b, n, d); `weights`: b rows of n
    /// - output: (b, n, d)
    ///
    /// # Errors
    /// When the shapes do not belong together.
    pub fn apply(self, encoded: &Tensor, weights: &[Vec<f32>]) -> Result<Tensor> {
        let (b, n, _) = encoded.dims3()?;
        if weights.len() != b || weights.iter().any(|row| row.len() != n) {
            let lengths: Vec<usize> = weights.iter().map(Vec::len).collect();
            return Err(Error::invalid(format!(
                "emphasis: {b} rows of {n} tokens, but weights of {lengths:?}"
            )));
        }
        if self == Self::Ignore || weights.iter().flatten().all(|w| *w == 1.0) {
            return Ok(encoded.clone());
        }
        let rows = weights.iter().enumerate().map(|(i, row)| self.apply_row(&encoded.narrow(0, i, 1)?, row));
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn apply_row(self, row: &Tensor, weights: &[f32]) -> Result<Tensor> {
        if weights.iter().all(|w| *w == 1.0) {
            return Ok(row.clone());
        }
        let exact = row.to_dtype(DType::F32)?; // (1, n, d)
        let weights = Tensor::from_slice(weights, (1, weights.len(), 1), row.device())?;
        let mut weighted = exact.broadcast_mul(&weights)?;
        if self == Self::Original {
            let (before, after) =
                (exact.mean_all()?.to_scalar::<f32>()?, weighted.mean_all()?.to_scalar::<f32>()?);
            // All weights 0 leave nothing to rescale.
            if after != 0.0 {
                weighted = (weighted * f64::from(before / after))?;
            }
        }
        Ok(weighted.to_dtype(row.dtype())?)
    }
}

impl fmt::Display for Emphasis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Emphasis {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let lower = name.to_lowercase().replace([' ', '-'], "_");
        let found = Self::ALL.into_iter().find(|e| e.name() == lower);
        found.ok_or_else(|| Error::unknown("emphasis", name, Self::ALL.map(Self::name)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn original_restores_the_mean_and_neutral_rows_are_untouched() -> Result<()> {
        let data: Vec<f32> = (0..24).map(|i| (i * 7 % 11) as f32 - 2.0).collect();
        let encoded = Tensor::from_vec(data, (2, 3, 4), &Device::Cpu)?;
        let weights = [vec![1.0, 1.5, 0.5], vec![1.0; 3]];
        let original = Emphasis::Original.apply(&encoded, &weights)?;
        let plain = Emphasis::NoNorm.apply(&encoded, &weights)?;
        let row = |t: &Tensor, i| -> Result<Vec<f32>> { Ok(t.get(i)?.flatten_all()?.to_vec1()?) };
        let (source, original, plain) = (
            [row(&encoded, 0)?, row(&encoded, 1)?],
            [row(&original, 0)?, row(&original, 1)?],
            [row(&plain, 0)?, row(&plain, 1)?],
        );
        assert_eq!((&original[1], &plain[1]), (&source[1], &source[1]));
        for i in 0..12 {
            assert_eq!(plain[0][i], source[0][i] * weights[0][i / 4]);
        }
        let sum = |v: &[f32]| v.iter().sum::<f32>();
        assert!((sum(&original[0]) - sum(&source[0])).abs() < 1e-4);
        let factor = sum(&source[0]) / sum(&plain[0]);
        assert!(original[0].iter().zip(&plain[0]).all(|(o, p)| (o - p * factor).abs() < 1e-5));
        assert!(Emphasis::Original.apply(&encoded, &weights[..1]).is_err());
        Ok(())
    }

    #[test]
    fn names_read_back() -> Result<()> {
        for emphasis in Emphasis::ALL {
            assert_eq!(emphasis.to_string().parse::<Emphasis>()?, emphasis);
        }
        assert_eq!("No norm".parse::<Emphasis>()?, Emphasis::NoNorm);
        Ok(())
    }
}
