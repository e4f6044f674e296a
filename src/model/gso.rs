//! One packet, or many in one piece.

use std::num::NonZeroU16;

/// How the octets between the host's stack and us are to be understood: generic segmentation offload lets many packets of a
/// flow travel as one, under one header, to be cut later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// One packet.
    #[default]
    None,
    /// TCP segments with so many octets of payload each; the last may have fewer.
    Tcp(NonZeroU16),
    /// UDP datagrams with so many octets of payload each; the last may have fewer.
    Udp(NonZeroU16),
}
