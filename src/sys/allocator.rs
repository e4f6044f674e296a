//! The system's allocator, counting: what tests hold the packet path against, and what benches measure memory with. A binary
//! that wants it makes it its `#[global_allocator]`; the agent does not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts how often each thread asks for memory, and how much it holds.
#[derive(Debug)]
pub struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// How often the calling thread has asked for memory.
#[must_use]
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Octets that the calling thread asked for and did not give back; what it gave back for others counts against it.
#[must_use]
pub fn held() -> i64 {
    HELD.get()
}

/// Memory was asked for, so many octets in place of so many.
fn count(octets: usize, before: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    HELD.set(HELD.get() + octets as i64 - before as i64);
}

// SAFETY: everything is the system allocator's doing; the counters need no memory of their own and are never dropped.
unsafe impl GlobalAlloc for CountingAllocator {
    // SAFETY: the contract is the trait's; it is handed on as it is.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the contract is the trait's; it is handed on as it is.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    // SAFETY: the contract is the trait's; it is handed on as it is.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as i64);
        // SAFETY: as above; the memory came from the same allocator.
        unsafe { System.dealloc(memory, layout) }
    }

    // SAFETY: the contract is the trait's; it is handed on as it is.
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}
