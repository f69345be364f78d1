// SPDX-License-Identifier: Apache-2.0
//! The allocator of filters: hands out a fixed arena and frees next to nothing.
//!
//! An instance lives for one request, so freeing is the host's work: it drops the instance. The
//! arena is part of the initial memory; a filter that stays within it never grows its memory,
//! which saves the host two system calls for each request. Past the arena, memory grows by whole
//! pages up to the manifest's bound.
#![expect(
    unsafe_code,
    reason = "`GlobalAlloc` is an unsafe trait; the arithmetic is in `region`, and a filter's memory is its own"
)]

use crate::region::Region;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};

/// Enough for a body of 64 KiB, what is made of it, and the rest of a call. What of it is not used
/// costs nothing: it is memory that no instance has touched.
const ARENA_BYTES: usize = 192 * 1024;
/// The page of WebAssembly.
const PAGE_BYTES: usize = 65_536;

#[repr(align(16))]
struct Arena(UnsafeCell<[u8; ARENA_BYTES]>);

// SAFETY: a filter has one thread.
unsafe impl Sync for Arena {}

struct Bump(Cell<Option<Region>>);

// SAFETY: a filter has one thread.
unsafe impl Sync for Bump {}

static ARENA: Arena = Arena(UnsafeCell::new([0; ARENA_BYTES]));

#[global_allocator]
static ALLOCATOR: Bump = Bump(Cell::new(None));

impl Bump {
    fn region(&self) -> Region {
        self.0.get().unwrap_or_else(|| {
            let next = ARENA.0.get() as usize;
            Region { next, end: next + ARENA_BYTES }
        })
    }

    /// A region that holds at least `size` more bytes, from new pages; joined to `region` if they
    /// follow it.
    fn grow(region: Region, size: usize, align: usize) -> Option<Region> {
        let pages = size.checked_add(align)?.div_ceil(PAGE_BYTES);
        let before = core::arch::wasm32::memory_grow::<0>(pages);
        let start = before.checked_mul(PAGE_BYTES)?;
        let end = start.checked_add(pages.checked_mul(PAGE_BYTES)?)?;
        let next = if region.end == start { region.next } else { start };
        Some(Region { next, end })
    }
}

// SAFETY: `Region` hands out addresses of the arena, or of pages that `memory_grow` has just made
// ours, aligned and without overlap (its property test).
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut region = self.region();
        let mut start = region.take(layout.size(), layout.align());
        if start.is_none() {
            if let Some(grown) = Self::grow(region, layout.size(), layout.align()) {
                region = grown;
                start = region.take(layout.size(), layout.align());
            }
        }
        self.0.set(Some(region));
        start.map_or(std::ptr::null_mut(), |address| address as *mut u8)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let mut region = self.region();
        region.give_back(pointer as usize, layout.size());
        self.0.set(Some(region));
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let mut region = self.region();
        if region.resize(pointer as usize, layout.size(), new_size) {
            self.0.set(Some(region));
            return pointer;
        }
        // SAFETY: the caller's promise: `new_size` with this alignment does not overflow.
        let layout_wanted = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: the layout is the caller's, with a size that is not zero.
        let moved = unsafe { self.alloc(layout_wanted) };
        if !moved.is_null() {
            // SAFETY: both blocks are live, apart, and at least this long.
            unsafe {
                std::ptr::copy_nonoverlapping(pointer, moved, layout.size().min(new_size));
            }
        }
        moved
    }
}
