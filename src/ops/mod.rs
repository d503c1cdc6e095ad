//! The arithmetic of the networks: each op with its value and its gradient.
//!
//! Activations are channels-last: pictures (b, h, w, c), token sequences (b, n, d).
//! Every function here is differentiable in its activations, never computes a gradient for a frozen operand,
//! and has a plain-candle `reference` beside it as the oracle and as the fallback on devices without a kernel.

pub mod activation;
pub mod attention;
pub mod checkpoint;
pub mod conv2d;
pub mod function;
pub mod linear;
pub mod norm;
pub mod resample;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use attention::{Mask, attention};
pub use checkpoint::Tape;
pub use conv2d::{Conv2dGeometry, conv2d};
pub use linear::{LowRank, linear};
pub use norm::{group_norm, layer_norm};
pub use resample::upsample_nearest;
