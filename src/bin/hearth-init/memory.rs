//! The allocator: the system's, with two habits.
//!
//! **Memory is zeroed when it is given back.** Secrets pass through the channel's buffers, the decoder's, the message's
//! and every copy that growing one of them left behind: this is the one place that all of them come through.
//!
//! **Large blocks are kept for the next one while there is work.** musl maps and unmaps each block of more than about
//! 26 KB, and in gVisor that and the page faults after it cost far more than moving the data (measured: content of a
//! file 80 MB/s with, 280 MB/s without). [`rest`] gives them back.

use nix::libc;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering::AcqRel},
};

/// Sizes that are kept; smaller ones musl handles well, larger ones are rare. A block is rounded up to one of them.
const SIZES: [usize; 3] = [32 << 10, 64 << 10, 128 << 10];
/// What is not worth keeping, or could not be rounded up without waste.
const SMALLEST: usize = 24 << 10;
const ALIGNMENT: usize = 16;
/// Kept of each size.
const DEPTH: usize = 2;

pub struct Memory {
    spare: [[AtomicPtr<u8>; DEPTH]; SIZES.len()],
}

/// The place of a block's size in [`SIZES`], and the layout it really has.
fn class(layout: Layout) -> Option<(usize, Layout)> {
    if layout.size() < SMALLEST || layout.align() > ALIGNMENT {
        return None;
    }
    let at = SIZES.iter().position(|size| layout.size() <= *size)?;
    let real = Layout::from_size_align(SIZES[at], ALIGNMENT).ok()?;
    Some((at, real))
}

impl Memory {
    pub const fn new() -> Self {
        Self {
            spare: [const { [const { AtomicPtr::new(null_mut()) }; DEPTH] }; SIZES.len()],
        }
    }

    /// A kept block, or null.
    fn take(&self, at: usize) -> *mut u8 {
        let places = self.spare.get(at).into_iter().flatten();
        let mut blocks = places.map(|place| place.swap(null_mut(), AcqRel));
        blocks.find(|block| !block.is_null()).unwrap_or(null_mut())
    }

    /// Keeps a block, or returns one for which there is no place (null: none).
    fn keep(&self, at: usize, block: *mut u8) -> *mut u8 {
        let mut block = block;
        for place in self.spare.get(at).into_iter().flatten() {
            block = place.swap(block, AcqRel);
            if block.is_null() {
                break;
            }
        }
        block
    }

    /// Gives back what is kept.
    #[allow(unsafe_code)]
    pub fn rest(&self) {
        for (size, places) in SIZES.iter().zip(&self.spare) {
            let Ok(real) = Layout::from_size_align(*size, ALIGNMENT) else {
                continue;
            };
            for place in places {
                let block = place.swap(null_mut(), AcqRel);
                if !block.is_null() {
                    // SAFETY: `keep` got it from `dealloc`, so it came from `System` with this layout; the swap made it
                    // ours alone.
                    unsafe { System.dealloc(block, real) };
                }
            }
        }
    }
}

// SAFETY: a block that is handed out is the system's, of at least the layout's size and alignment; `class` depends on
// the layout alone, so `dealloc` finds the layout that `alloc` used. A block in `spare` belongs to nobody, and only a
// swap takes it out. `realloc` is the trait's own: a new block, a copy, and our `dealloc` of the old one.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((at, real)) = class(layout) else {
            // SAFETY: the caller's contract is the callee's.
            return unsafe { System.alloc(layout) };
        };
        let block = self.take(at);
        if block.is_null() {
            // SAFETY: `real` is not empty.
            return unsafe { System.alloc(real) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is at least `layout.size()` bytes long and the caller's to write until it is given back.
        unsafe { libc::explicit_bzero(block.cast(), layout.size()) };
        let Some((at, real)) = class(layout) else {
            // SAFETY: the caller's contract is the callee's.
            return unsafe { System.dealloc(block, layout) };
        };
        let block = self.keep(at, block);
        if !block.is_null() {
            // SAFETY: it was allocated by `System` with this layout, and nobody has it.
            unsafe { System.dealloc(block, real) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Acquire;

    #[test]
    #[allow(unsafe_code)]
    fn large_blocks_come_back_wiped_and_rest_gives_them_up() {
        let memory = Memory::new();
        let layout = |size| Layout::from_size_align(size, 1).expect("a layout");
        for (size, again) in [(24 << 10, 30_000), (40_000, 64 << 10), (128 << 10, 100_000)] {
            // SAFETY: every block is used within its layout and given back once with it.
            unsafe {
                let block = memory.alloc(layout(size));
                block.write_bytes(0xaa, size);
                memory.dealloc(block, layout(size));
                let same = memory.alloc(layout(again));
                assert_eq!(same, block);
                let bytes = std::slice::from_raw_parts(same, again.min(size));
                assert!(bytes.iter().all(|byte| *byte == 0));
                memory.dealloc(same, layout(again));
            }
        }
        let kept = || {
            let places = memory.spare.iter().flatten();
            places
                .filter(|place| !place.load(Acquire).is_null())
                .count()
        };
        assert_eq!(kept(), 3);
        memory.rest();
        assert_eq!(kept(), 0);
    }

    #[test]
    fn more_than_the_places_is_given_back() {
        let blocks: Vec<Vec<u8>> = (0..10).map(|_| vec![7; 60_000]).collect();
        drop(blocks);
        let again = vec![0_u8; 60_000];
        assert!(again.iter().all(|byte| *byte == 0), "alloc_zeroed zeroes");
        // Too small, too large, too strictly aligned.
        for (size, align) in [(1000, 1), (200 << 10, 1), (32 << 10, 4096)] {
            assert!(class(Layout::from_size_align(size, align).expect("a layout")).is_none());
        }
    }
}
