//! Every IKE SA by our SPI, with their clocks in order, who holds proof, and who is half-open.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::limits::{HALF_OPEN_CALM, HALF_OPEN_LIMIT, HALF_OPEN_MAX, HALF_OPEN_PER_SOURCE, HALF_OPEN_PER_SOURCE_MAX};
use super::state::{Established, IkeSa};
use crate::model::{IkeSpi, Instant, PeerIndex};

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    sas: BTreeMap<IkeSpi, Slot>,
    clocks: BTreeSet<(Instant, IkeSpi)>,
    by_peer: BTreeSet<(PeerIndex, IkeSpi)>,
    /// IKE SAs whose maker did not prove itself, with the source that they count against.
    half_open: BTreeMap<IkeSpi, IpAddr>,
    /// Whether everybody must return a cookie.
    wary: bool,
    /// Which sources must.
    wary_of: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Slot {
    sa: IkeSa,
    wake: Option<Instant>,
}

impl Table {
    /// Puts an IKE SA in, or back.
    pub fn put(&mut self, spi: IkeSpi, sa: IkeSa) {
        let wake = sa.poll_timeout();
        if let Some(at) = wake {
            self.clocks.insert((at, spi));
        }
        if let Some(peer) = sa.peer() {
            self.by_peer.insert((peer, spi));
        }
        let source = match &sa {
            IkeSa::HalfOpen(state) => Some(state.source.remote.ip()),
            IkeSa::Closed(state) => state.source,
            _ => None,
        };
        if let Some(source) = source {
            self.half_open.insert(spi, block(source));
        }
        self.sas.insert(spi, Slot { sa, wake });
    }

    /// Takes an IKE SA out, to be handled.
    pub fn take(&mut self, spi: IkeSpi) -> Option<IkeSa> {
        let Slot { sa, wake } = self.sas.remove(&spi)?;
        if let Some(at) = wake {
            self.clocks.remove(&(at, spi));
        }
        if let Some(peer) = sa.peer() {
            self.by_peer.remove(&(peer, spi));
        }
        self.half_open.remove(&spi);
        Some(sa)
    }

    /// Looks at an IKE SA.
    pub fn peek(&self, spi: IkeSpi) -> Option<&IkeSa> {
        self.sas.get(&spi).map(|slot| &slot.sa)
    }

    /// An IKE SA that is up.
    pub fn established(&self, spi: IkeSpi) -> Option<&Established> {
        match self.peek(spi) {
            Some(IkeSa::Established(state)) => Some(state),
            _ => None,
        }
    }

    /// The SPIs of everything that belongs to a peer, initiations included.
    pub fn of_peer(&self, peer: PeerIndex) -> Vec<IkeSpi> {
        let range = (peer, IkeSpi::MIN)..=(peer, IkeSpi::MAX);
        self.by_peer.range(range).map(|&(_, spi)| spi).collect()
    }

    /// The IKE SAs of a peer that are up.
    pub fn established_of(&self, peer: PeerIndex) -> impl Iterator<Item = &Established> {
        self.of_peer(peer).into_iter().filter_map(|spi| self.established(spi))
    }

    /// The first clock.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.clocks.first().map(|&(at, _)| at)
    }

    /// An IKE SA that has something to do.
    pub fn due(&self, now: Instant) -> Option<IkeSpi> {
        self.clocks.first().filter(|&&(at, _)| at <= now).map(|&(_, spi)| spi)
    }

    /// Whether one more half-open IKE SA may be made for this source.
    pub fn room_for(&mut self, source: IpAddr) -> Room {
        let all = self.half_open.len();
        let own = self.half_open_of(source);
        self.wary = all >= HALF_OPEN_LIMIT / if self.wary { HALF_OPEN_CALM } else { 1 };
        let name = block(source);
        if own >= HALF_OPEN_PER_SOURCE && self.wary_of.insert(name) {
            // Those who are calm now are no news; so there are never more than half-open IKE SAs.
            let mut counts = BTreeMap::<IpAddr, usize>::new();
            self.half_open.values().for_each(|source| *counts.entry(*source).or_default() += 1);
            let calm = HALF_OPEN_PER_SOURCE / HALF_OPEN_CALM;
            self.wary_of.retain(|source| counts.get(source).is_some_and(|&count| count >= calm));
        } else if own < HALF_OPEN_PER_SOURCE / HALF_OPEN_CALM {
            self.wary_of.remove(&name);
        }
        if !self.wary && !self.wary_of.contains(&name) {
            Room::Free
        } else if all < HALF_OPEN_MAX && own < HALF_OPEN_PER_SOURCE_MAX {
            Room::WithCookie
        } else {
            Room::None
        }
    }

    /// How many half-open IKE SAs count against this source.
    pub fn half_open_of(&self, source: IpAddr) -> usize {
        let source = block(source);
        self.half_open.values().filter(|&&other| other == source).count()
    }

    /// How many IKE SAs there are in any state.
    pub fn len(&self) -> usize {
        self.sas.len()
    }
}

/// Whether there is room for a stranger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Yes.
    Free,
    /// If it shows that it is where it says.
    WithCookie,
    /// No.
    None,
}

/// What counts as one source: who has one IPv6 address has the /64.
pub fn block(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}
