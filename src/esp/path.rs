//! How large an inner packet may be so that its ESP datagram reaches the peer.

use std::collections::BTreeMap;

use super::outbox::Room;
use crate::wire::esp;
use crate::wire::ip::{IPV4_HEADER_LEN, IPV4_MAX_HEADER_LEN, Packet, Version};

/// The narrowest path that is taken seriously, in octets of UDP payload: every IPv4 host takes datagrams of 576 octets (RFC
/// 791 §3.1), and a lie about the path must not cut packets into crumbs.
const MIN_LIMIT: u16 = 548;

/// No link carries less IPv4 (RFC 791 §3.2): the longest header and eight octets.
const MIN_IPV4: u16 = 68;

/// No link carries less IPv6 (RFC 8200 §5). Smaller packets are sealed even where the path is narrower: no too-big answer
/// could make their sender cut them.
const MIN_IPV6: u16 = 1280;

/// What a fragment needs in an outbox besides its payload at most: a header, and ESP with the longest padding.
const FRAGMENT_OVERHEAD: usize = IPV4_MAX_HEADER_LEN + esp::sealed_len(3) - 3;

/// The largest inner packets that a path carries, by family, in octets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct InnerMtu {
    /// IPv4.
    pub v4: u16,
    /// IPv6.
    pub v6: u16,
}

impl InnerMtu {
    /// From the largest ESP datagram that arrives (`limit`, if known) and the TUN's MTU, which it never exceeds.
    #[must_use]
    pub fn new(limit: Option<u16>, tun_mtu: u16) -> Self {
        let v4 = match limit {
            Some(limit) => (esp::largest_inner(limit.max(MIN_LIMIT).into()) as u16).min(tun_mtu),
            None => tun_mtu,
        };
        Self { v4: v4.max(MIN_IPV4), v6: v4.max(MIN_IPV6) }
    }

    /// The one of a packet's family.
    #[must_use]
    pub fn of(self, packet: &Packet<'_>) -> usize {
        match packet.version() {
            Version::V4 => self.v4.into(),
            Version::V6 => self.v6.into(),
        }
    }

    /// What any packet from the TUN needs in an outbox at most.
    #[must_use]
    pub fn room(self, tun_mtu: u16) -> Room {
        room(tun_mtu.max(MIN_IPV6).into(), self.v4.into())
    }
}

/// The paths that somebody measured, as how many peers have each: ten thousand peers share a handful of lengths, so that one
/// more costs nothing.
#[derive(Debug, Default)]
pub struct Paths(BTreeMap<InnerMtu, u32>);

impl Paths {
    /// One more peer has such a path.
    pub fn add(&mut self, mtu: InnerMtu) {
        *self.0.entry(mtu).or_default() += 1;
    }

    /// One less.
    pub fn remove(&mut self, mtu: InnerMtu) {
        if let Some(count) = self.0.get_mut(&mtu) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&mtu);
            }
        }
    }

    /// The narrowest, which cuts a packet into the most pieces.
    pub fn narrowest(&self) -> Option<InnerMtu> {
        self.0.keys().next().copied()
    }
}

/// What a packet of `len` octets needs in an outbox at most, cut into fragments of `mtu` octets if it is longer.
#[must_use]
pub const fn room(len: usize, mtu: usize) -> Room {
    // Fragment offsets count in units of eight octets (RFC 791 §3.1), and each fragment may have all the options.
    let payload = (mtu - IPV4_MAX_HEADER_LEN) & !7;
    let datagrams = if len <= mtu { 1 } else { (len - IPV4_HEADER_LEN).div_ceil(payload) };
    Room { octets: len + datagrams * FRAGMENT_OVERHEAD, datagrams }
}
