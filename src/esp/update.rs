//! What travels between the control thread and a worker's data plane.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::RouteTable;
use crate::model::{ChildSaParams, Drops, Path, PeerIndex, Spi, Ticket, WorkerIndex};

/// An order of the control thread. None is ever lost; each takes effect at a batch boundary.
#[derive(Clone, Debug)]
pub enum Update {
    /// The routes from now on.
    Routes(Arc<RouteTable>),
    /// An inbound SPI that will get a key: park what arrives on it (64 packets per SPI).
    Reserve(Spi),
    /// It will not: forget what was parked.
    Release(Spi),
    /// Install the inbound half and keep the outbound half as standby; answer with [`Event::Installed`].
    Install {
        /// Both halves.
        child: Box<ChildSaParams>,
        /// Counters, which the control thread reads at any time.
        counters: Arc<SaCounters>,
        /// Named in the answer.
        ticket: Ticket,
    },
    /// Send with the outbound half of the SA that we receive on with this SPI.
    Activate(Spi),
    /// Send a dummy packet with it, so that the peer, which waits for a first packet, may send with it too.
    Announce(Spi),
    /// End the outbound half now (the newest standby of that peer takes over if it was active), and the inbound half now or
    /// after the grace time of five seconds.
    Retire {
        /// Names the SA by our inbound SPI.
        spi: Spi,
        /// Also the inbound half now.
        at_once: bool,
    },
    /// Where the SA sends to from now on.
    PathChanged(Spi, Path),
    /// The largest ESP datagram (UDP payload) that reaches this peer, in octets; none: as the TUN's MTU needs.
    PathLimit(PeerIndex, Option<u16>),
    /// The peer is not configured any more: forget its parked packets.
    RemovePeer(PeerIndex),
}

/// News for the control thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The update with this ticket took effect.
    Installed(Ticket),
    /// The first authenticated packet came in on this SPI.
    InboundUsed(Spi),
    /// A soft limit of packets or octets was reached, in either direction.
    SoftExpired(Spi),
    /// The SA ended hard (lifetime, or no sequence number left).
    HardExpired(Spi),
    /// An authenticated packet with a sequence number above all before it came from another path than the SA's.
    AddressSeen(Spi, Path),
    /// A packet to this peer waits and there is no SA.
    WantSa(PeerIndex),
    /// This worker has packets for the peer and no SA of its own: they go by another worker's.
    WantOwnSa(PeerIndex, WorkerIndex),
    /// ESP for an SPI of nobody came from there.
    UnknownSpi(Path),
    /// The kernel takes this path to be narrower than a datagram for it was.
    PathNarrow(Path),
}

/// Counters of one SA. One writer (its worker); anybody may read.
#[derive(Debug, Default)]
pub struct SaCounters {
    /// Inner packets opened.
    pub inbound_packets: AtomicU64,
    /// Octets of inner packets opened.
    pub inbound_octets: AtomicU64,
    /// Inner packets sealed.
    pub outbound_packets: AtomicU64,
    /// Octets of inner packets sealed.
    pub outbound_octets: AtomicU64,
    /// When the last authenticated packet came in: nanoseconds since the agent's origin, 0 if never.
    pub last_inbound: AtomicU64,
    /// When the last packet was sealed: nanoseconds since the agent's origin, 0 if never.
    pub last_outbound: AtomicU64,
    /// Packets of this SA that were dropped; they are in the worker's counters too.
    pub drops: Drops,
}
