//! Between which addresses datagrams travel.

use std::fmt;
use std::net::SocketAddr;

/// The outer addresses and ports of a flow: ours and the peer's. Kept per SA and per IKE SA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Path {
    /// Our address and port; an unspecified address leaves the choice to the kernel.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
}

/// How an IKE message travels (RFC 3948 §2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// The IKE port (500): the bare message.
    Plain,
    /// The NAT-T port (4500): four zero octets, the non-ESP marker, come first.
    Natt,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.local, self.remote)
    }
}
