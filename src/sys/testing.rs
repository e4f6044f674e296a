//! What tests need of the system: network namespaces, into which a thread moves and which go away with it, and an allocator
//! that counts.

use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::allocator::CountingAllocator;
pub(crate) use super::allocator::allocations;

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

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
