//! Where base weights come from: checked safetensors, read from diffusers folders, single files or the hub, and seen
//! under diffusers' names whatever the layout was.

pub mod cache;
pub mod checkpoint;
pub mod detect;
pub mod diffusers;
#[cfg(feature = "hub")]
mod download;
mod dtype;
pub mod embedded;
pub mod export;
pub mod family;
#[cfg(feature = "hub")]
mod fetch;
pub mod hashes;
mod header;
mod hub;
pub mod installed;
pub mod ldm;
pub mod names;
mod open_clip;
pub mod reader;
pub mod relabel;
pub mod shapes;
mod shards;
mod sniff;
pub mod source;
pub mod store;
pub mod stream;
pub mod tree;
pub mod view;
pub mod writer;

pub use checkpoint::{Checkpoint, ComponentFiles};
pub use diffusers::TokenizerFiles;
pub use family::{Component, Family};
pub use shapes::record_shapes;
pub use source::{ModelSource, OpenOptions};
pub use store::{MemoryStore, RandomStore, Store, TensorInfo, Weights};
