//! The system calls that no crate gives, as safe functions over owned descriptors: the only place where `unsafe` may stand,
//! each time with the reason why it is sound. Beside them stands what several modules need of files, sockets and clocks.

#![allow(unsafe_code, reason = "this module is where it belongs")]

#[doc(hidden)]
pub mod allocator;
pub mod burst;
pub mod caps;
pub mod clock;
pub mod faults;
pub mod file;
pub mod http;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod packet;
#[cfg(test)]
pub(crate) mod testing;
pub mod tun;
pub mod udp;
pub mod vector;
