//! The arithmetic of the networks: each op with its value and its gradient.
//!
//! Activations are channels-last: pictures (b, h, w, c), token sequences (b, n, d).
//! Every function here is differentiable in its activations, never computes a gradient for a frozen operand,
//! and has a plain-candle `reference` beside it as the oracle. Where a weight that is usually frozen is itself
//! tracked, the reference computes, so that no gradient is ever lost.

pub mod activation;
pub mod attention;
pub mod checkpoint;
pub mod conv2d;
mod cpu;
pub mod function;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
mod low_rank;
pub mod resample;
#[cfg(test)]
mod testing;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use attention::{Mask, attention};
pub use checkpoint::Tape;
pub use conv2d::{Conv2dGeometry, conv2d};
pub use group_norm::group_norm;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use low_rank::LowRank;
pub use resample::upsample_nearest;
