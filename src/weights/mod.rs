//! Where base weights come from.

pub mod store;

pub use store::{MemoryStore, RandomStore, Store, TensorInfo, Weights};
