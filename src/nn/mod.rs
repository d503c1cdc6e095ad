//! Layers with parameters, one a file. A layer without branches *is* the plain layer.

pub mod adaptable;
pub mod conv2d;
pub mod linear;
pub mod low_rank;

pub use adaptable::{Adaptable, LayerPath, Part, Slot};
pub use conv2d::Conv2d;
pub use linear::Linear;
pub use low_rank::Branches;
