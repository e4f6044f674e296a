//! underpass: a userspace IPsec overlay for container hosts.

#![doc = "The code map stands in each module; see the README for use."]

pub mod control;
pub mod crypto;
pub mod esp;
pub mod ike;
pub mod model;
pub mod node;
pub mod observe;
pub mod wire;
