//! Seeds nobody chose.

use std::time::{SystemTime, UNIX_EPOCH};

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
