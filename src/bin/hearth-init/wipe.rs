//! Memory is zeroed when it is given back. Secrets pass through the channel's buffers, the decoder's, the message's and
//! every copy that growing one of them left behind: this is the one place that all of them come through.

use nix::libc;
use std::alloc::{GlobalAlloc, Layout, System};

pub struct Wiping;

// SAFETY: every call is handed to the system's allocator with the same arguments; `dealloc` only writes inside the block
// that its caller owns until then. `realloc` is the trait's own: a new block, a copy, and our `dealloc` of the old one.
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
        // SAFETY: the block is `layout.size()` bytes long and the caller's to write until it is given back.
        unsafe {
            libc::explicit_bzero(block.cast(), layout.size());
            System.dealloc(block, layout);
        }
    }
}
