//! What tests need of the system: network namespaces, into which a thread moves and which go away with it, and an allocator
//! that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` on a thread of its own in an empty network namespace whose loopback is up. Threads and processes that it starts
/// live there too. Needs root.
///
/// # Panics
/// If the namespace cannot be made, or if `test` panics.
pub(crate) fn in_new_netns<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        enter_new_netns();
        test()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Moves the calling thread into a new network namespace with its loopback up.
pub(crate) fn enter_new_netns() {
    // SAFETY: only FILES is dangerous, as it would part this thread from the others' descriptors; NEWNET does not touch them.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("these tests need root for a network namespace of their own");
    ip("link set lo up");
}

/// Runs iproute2 in the calling thread's network namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("these tests need iproute2");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// The system's allocator, which counts how often each thread asks it for memory.
struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often the calling thread has asked for memory.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

// SAFETY: everything is the system allocator's doing; the counter needs no memory of its own and is never dropped.
unsafe impl GlobalAlloc for CountingAllocator {
    // SAFETY: the contract is the trait's; it is handed on as it is.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the contract is the trait's; it is handed on as it is.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; the memory came from the same allocator.
        unsafe { System.dealloc(memory, layout) }
    }

    // SAFETY: the contract is the trait's; it is handed on as it is.
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}
