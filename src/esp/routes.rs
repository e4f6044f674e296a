//! Who owns an inner address: longest prefix first, looked up twice per packet, never changed once built.
//!
//! Each family is a trie of six bits per step, stored as a Poptrie (Asai and Ohara, SIGCOMM 2015): a node is two bit maps and
//! two offsets, so a step costs a shift, a population count and one load, and 100,000 prefixes take a few megabytes. The
//! bits that all prefixes of a family share are compared once before the first step, which is why IPv6 (with its long shared
//! `fd…` prefix) is as quick as IPv4.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{PeerIndex, WorkerIndex};

/// Address bits that one step consumes: a node's bit maps are one word each.
const STRIDE: u32 = 6;

/// Where a prefix leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// To containers and addresses of this host.
    Local,
    /// To a peer.
    Peer {
        /// Who.
        peer: PeerIndex,
        /// Which worker seals for those that have no SA of their own with it.
        owner: WorkerIndex,
    },
}

/// Longest prefix first: the authority on who owns an inner address, in both directions (design: routes and selectors are
/// both checked).
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    v4: Trie,
    v6: Trie,
}

impl RouteTable {
    /// Builds the table; a later entry for the same prefix replaces an earlier one.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = (IpNet, Route)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, route) in entries {
            let family = if prefix.addr().is_ipv4() { &mut v4 } else { &mut v6 };
            family.push(Prefix { bits: left_aligned(prefix.network()), len: prefix.prefix_len().into(), route });
        }
        Self { v4: Trie::new(v4), v6: Trie::new(v6) }
    }

    /// The longest match.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<Route> {
        match address {
            IpAddr::V4(address) => self.v4.lookup(u64::from(address.to_bits()) << 32),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        }
    }

    /// Whether this host owns the address.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.lookup(address) == Some(Route::Local)
    }
}

/// An address as a number whose first bit is the most significant one of 128, whatever the family.
fn left_aligned(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// One entry while the trie is built.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// Left-aligned, zero behind `len`.
    bits: u128,
    len: u32,
    route: Route,
}

/// An address during a look-up: left-aligned in the smallest number that holds it.
trait Key: Copy {
    /// The six bits behind the first `depth`.
    fn step(self, depth: u32) -> u32;
    /// The first 128 bits, zero-filled.
    fn widen(self) -> u128;
}

impl Key for u64 {
    fn step(self, depth: u32) -> u32 {
        ((self << depth) >> (u64::BITS - STRIDE)) as u32
    }

    fn widen(self) -> u128 {
        u128::from(self) << 64
    }
}

impl Key for u128 {
    fn step(self, depth: u32) -> u32 {
        ((self << depth) >> (u128::BITS - STRIDE)) as u32
    }

    fn widen(self) -> u128 {
        self
    }
}

/// The longest-prefix match of one family.
#[derive(Clone, Debug, Default)]
struct Trie {
    /// The bits that every prefix begins with, left-aligned.
    shared: u128,
    /// Which bits of `shared` count.
    shared_mask: u128,
    /// How many.
    shared_len: u32,
    /// The root first; empty if there are no prefixes.
    nodes: Vec<Node>,
    leaves: Vec<Option<Route>>,
}

/// Sixty-four slots: those with a bit in `children` go on in a node, all others end in a leaf.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Slots that go on in a node.
    children: u64,
    /// Slots at which another leaf begins than the one of the slots before: equal neighbours share one.
    starts: u64,
    /// Where this node's children begin in `nodes`.
    first_child: u32,
    /// Where this node's leaves begin in `leaves`.
    first_leaf: u32,
}

impl Trie {
    fn new(mut prefixes: Vec<Prefix>) -> Self {
        // Stable, so that of equal prefixes the later one stands last; it is the one to keep.
        prefixes.sort_by_key(|prefix| (prefix.bits, prefix.len));
        prefixes.dedup_by(|later, kept| {
            let same = (later.bits, later.len) == (kept.bits, kept.len);
            if same {
                kept.route = later.route;
            }
            same
        });
        let (Some(first), Some(last)) = (prefixes.first(), prefixes.last()) else {
            return Self::default();
        };
        let shortest = prefixes.iter().map(|prefix| prefix.len).min().unwrap_or(0);
        let shared_len = (first.bits ^ last.bits).leading_zeros().min(shortest).min(u128::BITS - 1);
        let shared_mask = u128::MAX.checked_shl(u128::BITS - shared_len).unwrap_or(0);
        let mut trie = Self { shared: first.bits & shared_mask, shared_mask, shared_len, ..Self::default() };
        trie.nodes.push(Node::default());
        trie.fill(0, shared_len, None, &prefixes);
        trie
    }

    /// Makes the node at `index` of the prefixes under it; `depth` bits lead there, `inherited` is their longest match above.
    fn fill(&mut self, index: usize, depth: u32, inherited: Option<Route>, prefixes: &[Prefix]) {
        let slot_of = |prefix: &Prefix| ((prefix.bits << depth.min(127)) >> (u128::BITS - STRIDE)) as usize;
        // Short ones first in address order paint their slots; a longer one of the same address comes later and paints over.
        let mut slots = [inherited; 1 << STRIDE];
        let mut children = [(0, 0); 1 << STRIDE];
        for (place, prefix) in prefixes.iter().enumerate() {
            if prefix.len <= depth {
                slots.fill(Some(prefix.route));
            } else if prefix.len <= depth + STRIDE {
                let first = slot_of(prefix);
                slots[first..first + (1 << (depth + STRIDE - prefix.len))].fill(Some(prefix.route));
            } else {
                let (start, end) = &mut children[slot_of(prefix)];
                if *end == 0 {
                    *start = place;
                }
                *end = place + 1;
            }
        }
        let mut node =
            Node { first_child: self.nodes.len() as u32, first_leaf: self.leaves.len() as u32, ..Node::default() };
        let mut previous = None;
        for (slot, &(_, end)) in children.iter().enumerate() {
            if end > 0 {
                node.children |= 1 << slot;
                self.nodes.push(Node::default());
            } else if previous != Some(slots[slot]) {
                node.starts |= 1 << slot;
                self.leaves.push(slots[slot]);
                previous = Some(slots[slot]);
            }
        }
        self.nodes[index] = node;
        let with_prefixes = children.iter().enumerate().filter(|&(_, &(_, end))| end > 0);
        for (child, (slot, &(start, end))) in with_prefixes.enumerate() {
            self.fill(node.first_child as usize + child, depth + STRIDE, slots[slot], &prefixes[start..end]);
        }
    }

    fn lookup(&self, key: impl Key) -> Option<Route> {
        if (key.widen() ^ self.shared) & self.shared_mask != 0 {
            return None;
        }
        let mut node = self.nodes.first()?;
        let mut depth = self.shared_len;
        loop {
            let step = key.step(depth);
            // The slots up to and including this one.
            let below = u64::MAX >> (63 - step);
            if node.children >> step & 1 == 0 {
                return self.leaves[(node.first_leaf + (node.starts & below).count_ones() - 1) as usize];
            }
            node = &self.nodes[(node.first_child + (node.children & below).count_ones() - 1) as usize];
            depth += STRIDE;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn peer(index: u32) -> Route {
        Route::Peer { peer: PeerIndex(index), owner: WorkerIndex(0) }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_longest_prefix_wins_and_families_stay_apart() {
        let table = RouteTable::new([
            (net("10.42.0.0/16"), peer(9)),
            (net("10.42.1.0/24"), Route::Local),
            (net("10.42.2.0/24"), peer(2)),
            (net("10.42.2.77/32"), peer(3)),
            (net("10.42.1.128/25"), peer(4)),
            (net("fd00:42:1::/64"), Route::Local),
            (net("fd00:42:2::/64"), peer(2)),
        ]);
        assert_eq!(table.lookup(ip("10.42.1.5")), Some(Route::Local));
        assert_eq!(table.lookup(ip("10.42.1.200")), Some(peer(4)));
        assert_eq!(table.lookup(ip("10.42.2.76")), Some(peer(2)));
        assert_eq!(table.lookup(ip("10.42.2.77")), Some(peer(3)));
        assert_eq!(table.lookup(ip("10.42.2.78")), Some(peer(2)));
        assert_eq!(table.lookup(ip("10.42.255.255")), Some(peer(9)));
        assert_eq!(table.lookup(ip("10.43.0.0")), None);
        assert_eq!(table.lookup(ip("fd00:42:1::1")), Some(Route::Local));
        assert_eq!(table.lookup(ip("fd00:42:2:0:ffff::")), Some(peer(2)));
        assert_eq!(table.lookup(ip("fd00:42:2:1::")), None);
        assert_eq!(table.lookup(ip("::10.42.1.5")), None);
        assert!(table.is_local(ip("10.42.1.127")) && !table.is_local(ip("10.42.2.1")));
    }

    #[test]
    fn edges_default_routes_and_replacement() {
        assert_eq!(RouteTable::default().lookup(ip("10.0.0.1")), None);
        assert_eq!(RouteTable::new([]).lookup(ip("::1")), None);
        let only = RouteTable::new([(net("255.255.255.255/32"), peer(1)), (net("::/0"), peer(2))]);
        assert_eq!(only.lookup(ip("255.255.255.255")), Some(peer(1)));
        assert_eq!(only.lookup(ip("255.255.255.254")), None);
        assert_eq!(only.lookup(ip("ffff::")), Some(peer(2)));
        let twice = RouteTable::new([(net("10.0.0.0/8"), peer(1)), (net("10.0.0.0/8"), peer(2))]);
        assert_eq!(twice.lookup(ip("10.255.0.0")), Some(peer(2)));
        let zero = RouteTable::new([(net("0.0.0.0/0"), peer(1)), (net("0.0.0.0/32"), peer(2)), (net("::1/128"), peer(3))]);
        assert_eq!(zero.lookup(ip("0.0.0.0")), Some(peer(2)));
        assert_eq!(zero.lookup(ip("0.0.0.1")), Some(peer(1)));
        assert_eq!(zero.lookup(ip("::1")), Some(peer(3)));
        assert_eq!(zero.lookup(ip("::2")), None);
        // Host bits in an entry do not count.
        assert_eq!(RouteTable::new([(net("10.1.2.3/8"), peer(1))]).lookup(ip("10.9.9.9")), Some(peer(1)));
    }

    /// The definition: of all prefixes that contain the address, the longest, and of equal ones the last.
    fn naive(entries: &[(IpNet, Route)], address: IpAddr) -> Option<Route> {
        entries
            .iter()
            .filter(|(net, _)| net.contains(&address))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|&(_, route)| route)
    }

    /// Addresses that share many bits, so that prefixes nest.
    fn v4() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), (0u32..1024).prop_map(|low| 0x0a2a_0000 | low), (0u32..32).prop_map(|high| high << 27)]
    }

    fn v6() -> impl Strategy<Value = u128> {
        prop_oneof![any::<u128>(), (0u128..1024).prop_map(|low| 0xfd00_0042 << 96 | low << 60), (0u128..16)]
    }

    proptest! {
        #[test]
        fn look_ups_agree_with_the_definition(
            v4_entries in prop::collection::vec((v4(), 0u8..=32), 0..60),
            v6_entries in prop::collection::vec((v6(), 0u8..=128), 0..60),
            v4_probes in prop::collection::vec(v4(), 50),
            v6_probes in prop::collection::vec(v6(), 50),
        ) {
            let v4_nets = v4_entries.iter().map(|&(bits, len)| IpNet::new(Ipv4Addr::from_bits(bits).into(), len));
            let v6_nets = v6_entries.iter().map(|&(bits, len)| IpNet::new(Ipv6Addr::from_bits(bits).into(), len));
            let entries: Vec<_> = v4_nets.chain(v6_nets).enumerate().map(|(i, net)| (net.unwrap(), peer(i as u32))).collect();
            let table = RouteTable::new(entries.clone());
            let own = v4_entries.iter().map(|&(bits, _)| Ipv4Addr::from_bits(bits).into());
            let own6 = v6_entries.iter().map(|&(bits, _)| Ipv6Addr::from_bits(bits).into());
            let probes = v4_probes.iter().map(|&bits| Ipv4Addr::from_bits(bits).into());
            let probes6 = v6_probes.iter().map(|&bits| Ipv6Addr::from_bits(bits).into());
            for address in own.chain(own6).chain(probes).chain(probes6) {
                prop_assert_eq!(table.lookup(address), naive(&entries, address), "{}", address);
            }
        }
    }
}
