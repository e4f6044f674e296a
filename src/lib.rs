//! underpass: a userspace IPsec overlay for container hosts.

#![doc = "The code map stands in each module; see the README for use."]

pub mod crypto;
pub mod esp;
pub mod ike;
pub mod model;
pub mod sys;
pub mod wire;
