//! The heap of programs that compute: large blocks on large pages, freed memory kept for the next tensor.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with huge pages for large blocks where the system gives them on request (Linux): a model of
/// gigabytes is filled with a five-hundredth of the page faults, and kernels miss fewer addresses.
#[derive(Debug, Clone, Copy)]
pub struct Heap;

// SAFETY: the system's allocator, plus advice that changes no values.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: promised by the caller.
        advise(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: promised by the caller.
        advise(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: promised by the caller.
        advise(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Asks for huge pages under a large block.
#[cfg(target_os = "linux")]
fn advise(block: *mut u8, bytes: usize) -> *mut u8 {
    /// Bytes of a huge page; smaller blocks hold none.
    const HUGE: usize = 2 << 20;
    if bytes >= HUGE && !block.is_null() {
        let skipped = block.align_offset(HUGE);
        let whole = bytes.saturating_sub(skipped) / HUGE * HUGE;
        if whole > 0 {
            // SAFETY: the range lies inside of the block. A refusal leaves small pages.
            unsafe { libc::madvise(block.add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    block
}

#[cfg(not(target_os = "linux"))]
fn advise(block: *mut u8, _: usize) -> *mut u8 {
    block
}

/// Keeps freed memory for the next tensor: getting it afresh and cleared from the system each time takes a tenth of a
/// training step (only glibc listens). Before there are threads.
pub(crate) fn keep_what_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest glibc takes: larger blocks come from the system each time.
        const LARGEST: libc::c_int = 32 << 20;
        /// Freed memory at the end of the heap that is kept.
        const KEPT: libc::c_int = 1 << 30;
        // SAFETY: these calls set numbers in the allocator, before there are other threads.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
            // One heap for all threads: what a worker frees, the next layer gets.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}
