//! The system calls that no crate gives safely. The only module where `unsafe` is allowed; each use says why it is sound.

#![allow(unsafe_code, reason = "this module is where it belongs")]

#[cfg(test)]
pub(crate) mod testing;
pub mod tun;
//! The system calls that no crate gives, as safe functions over owned descriptors: the only place where `unsafe` may stand,
//! each time with the reason why it is sound.

pub mod caps;
pub mod netlink;
pub mod netns;
// nft
