//! How much arithmetic was done, for benchmarks: what the direct algorithm takes, whatever the kernel saved.

use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Floating point operations of convolutions, matrix products and attention since the program started; a multiplication
/// with its addition are two. Norms and activations are not counted, as in `torch.utils.flop_counter`.
pub fn counted() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

pub(super) fn count(multiplications: usize) {
    COUNT.fetch_add(2 * multiplications as u64, Ordering::Relaxed);
}
