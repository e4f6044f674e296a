//! Who is in the overlay: hosts, their keys, where they are, and which blocks they own.
//!
//! Two kinds of store say so: a list of hosts in a file, the same on every host (`file.rs`), and etcd, where hosts join by themselves
//! (`etcd/`). Both make [`Members`] of what they know, and the agent makes peers and routes of these. A host is its key: two hosts
//! with one address, or with one name, are two hosts.
//!
//! A store says what is to be; it is never in the way of a packet. One that is broken or away leaves everything as it was, and
//! what etcd said last is kept on disk for the next start (`cache.rs`).

mod cache;
pub mod etcd;
mod file;
mod members;

use file::MAX_HOSTS;
pub use file::{FileStore, Look, load, parse};
pub use members::{Member, Members, Own};
