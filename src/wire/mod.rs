//! Octets to values and back: one parser for every octet that comes from the network.
//!
//! Parsers take a slice, check it once, and return a value or a view that cannot be wrong any more; emitters cannot fail.
//! Nothing here allocates for the data plane's formats ([`ip`], [`icmp`], [`checksum`], [`segment`], [`esp`], [`natt`]).

pub mod checksum;
pub mod esp;
pub mod icmp;
pub mod ike;
pub mod ip;
pub mod natt;
pub mod segment;
#[cfg(test)]
pub(crate) mod testing;
