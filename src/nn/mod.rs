//! Layers with parameters, one a file. A layer without branches *is* the plain layer.

pub mod adaptable;
pub mod attention;
pub mod checkpointed;
pub mod conv2d;
pub mod embedding;
pub mod feed_forward;
pub mod linear;
pub mod low_rank;
pub mod norm;
pub mod resample;
pub mod resnet;
pub mod timestep;

pub use adaptable::{Adaptable, LayerPath, Part, Slot};
pub use attention::{Attention, AttentionConfig};
pub use checkpointed::checkpointed;
pub use conv2d::Conv2d;
pub use embedding::Embedding;
pub use feed_forward::FeedForward;
pub use linear::Linear;
pub use low_rank::{Branches, Regional};
pub use norm::{GroupNorm, LayerNorm, Norm};
pub use resample::{Downsample, Upsample};
pub use resnet::{ResnetBlock, ResnetConfig};
pub use timestep::{Sinusoid, TimestepEmbedding};
