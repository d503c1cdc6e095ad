//! Seeds, and those nobody chose.

use std::{
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use super::console::Console;
use crate::error::{Error, Result};

/// What `--seed` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seed {
    /// This one.
    Fixed(u64),
    /// `-1`, as other programs have it: any.
    Random,
}

impl Seed {
    /// The number; one that nobody chose is said, so that what was made can be made again.
    pub fn number(self, console: &Console) -> u64 {
        match self {
            Self::Fixed(seed) => seed,
            Self::Random => {
                let seed = fresh();
                console.note(&format!("seed {seed}"));
                seed
            }
        }
    }
}

impl FromStr for Seed {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match (s.trim(), s.trim().parse()) {
            ("-1", _) => Ok(Self::Random),
            (_, Ok(seed)) => Ok(Self::Fixed(seed)),
            _ => Err(Error::invalid(format!(
                "expected a whole number from 0 to {}, or -1 for a random one, found `{s}`",
                u64::MAX
            ))),
        }
    }
}

/// A seed from the clock, small enough for every tool that reads the recipe. It is printed and written into the picture,
/// so that what was drawn can be drawn again.
pub(super) fn fresh() -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let mut x = nanos as u64 ^ (u64::from(std::process::id()) << 32);
    // The finalizer of SplitMix64: neighbouring clock values give unrelated seeds.
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) & 0xffff_ffff
}
