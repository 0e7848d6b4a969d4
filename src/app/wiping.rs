//! hearthd's allocator: the system's, and memory is zeroed when it is given back. A claim's secrets pass through the
//! buffers of HTTP/2, of the decoder, of the message to the guest, and through every copy that growing one of them left
//! behind: this is the one place that all of them come through. (hearth-init has the same habit.) What it costs is a
//! memset of what was just used.

use nix::libc;
use std::alloc::{GlobalAlloc, Layout, System};

/// To be hearthd's `#[global_allocator]`.
#[derive(Debug, Clone, Copy)]
pub struct Wiping;

// SAFETY: every block is the system's, with the caller's own layout. `realloc` is the trait's: a new block, a copy, and
// our `dealloc` of the old one.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is `layout.size()` bytes long and the caller's to write until it is given back; no compiler
        // takes explicit_bzero away.
        unsafe { libc::explicit_bzero(block.cast(), layout.size()) };
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.dealloc(block, layout) };
    }
}
