//! Turning gradients into new values.

pub mod adamw;

pub use adamw::{AdamW, AdamWConfig};
