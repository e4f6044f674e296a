//! The system calls that no crate gives, as safe functions over owned descriptors: the only place where `unsafe` may stand,
//! each time with the reason why it is sound.

#![allow(unsafe_code, reason = "this module is where it belongs")]

#[doc(hidden)]
pub mod allocator;
pub mod burst;
pub mod caps;
pub mod clock;
pub mod faults;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod packet;
#[cfg(test)]
pub(crate) mod testing;
pub mod tun;
pub mod udp;
pub mod vector;
