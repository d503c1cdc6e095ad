//! The whole viewer with the real engine on the embedded model, through its accessibility labels; no display needed.

mod again;
mod draw;
mod kept;
mod mended;
mod names;
mod pictures;
mod support;
mod train;
mod weights;
