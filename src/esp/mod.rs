//! The data plane: ESP in tunnel mode (RFC 4303) inside UDP (RFC 3948), as a machine without sockets or clock.
//!
//! One [`DataPlane`] belongs to one worker and to nobody else: it holds that worker's SAs, the shared routes and the peers'
//! path MTUs. Outbound packets go route -> SA -> selectors -> size -> ECN -> seal, straight into the caller's [`Outbox`];
//! super-packets are cut on that way.
//! Inbound datagrams go SPI -> replay check -> open in place -> replay accept -> selectors and routes -> ECN, and leave ranges of
//! the caller's receive buffer in the caller's [`Inbox`]. Nothing here allocates per packet.

mod control;
mod ecn;
mod events;
mod inbound;
mod inbox;
mod outbound;
mod outbox;
mod parking;
mod path;
mod replay;
mod routes;
mod sas;
mod selectors;
mod super_packet;
mod update;

#[cfg(test)]
mod tests;

pub use inbox::{Inbox, Incoming};
pub use outbox::{Outbox, Outgoing};
pub use path::InnerMtu;
pub use replay::{Accepted, Authenticated, Checked, ReplayWindow};
pub use routes::{Route, RouteTable};
pub use update::{Event, SaCounters, Update};

use std::sync::Arc;
use std::time::Duration;

use crate::crypto::Provider;
use crate::model::{DropReason, Drops, Instant, Path, PeerIndex, Spi, WorkerIndex};

use events::Events;
use inbound::Train;
use outbox::Room;
use parking::WaitingRoom;
use path::Paths;
use sas::{FastMap, Peer, SaTable};

/// The longest packet that a length field of 16 bits can tell.
const MAX_PACKET: usize = 65_535;

/// Settings of one worker's data plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose it is: inbound SPIs with another owner are strays.
    pub worker: WorkerIndex,
    /// AEAD library.
    pub provider: Provider,
    /// MTU of the TUN, the largest inner packet that a path can be asked for, in octets.
    pub tun_mtu: u16,
}

/// What became of a packet or datagram that was handed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Sealed, opened, parked, or answered: nothing left to do.
    Done,
    /// It belongs to this worker: hand the octets over unchanged.
    Stray(WorkerIndex),
    /// Dropped and counted.
    Dropped(DropReason),
}

/// One worker's data plane.
#[derive(Debug)]
pub struct DataPlane {
    config: Config,
    drops: Arc<Drops>,
    routes: Arc<RouteTable>,
    sas: SaTable,
    peers: FastMap<PeerIndex, Peer>,
    /// For peers whose path nobody measured yet.
    full_mtu: InnerMtu,
    /// The paths of those whose path somebody measured.
    paths: Paths,
    /// What one packet from the TUN may need in an outbox.
    reserve: Room,
    /// Packets to peers without SA.
    waiting_outbound: WaitingRoom<PeerIndex, Vec<u8>>,
    /// Peers that have an SA by now, and packets that waited for it and found no room in the outbox.
    resumable: Vec<PeerIndex>,
    /// Datagrams on SPIs without key.
    waiting_inbound: WaitingRoom<Spi, Datagram>,
    events: Events,
    /// How many too-big answers may go out.
    answers: Allowance,
    /// One fragment while it is built.
    fragment: Box<[u8]>,
    /// One packet of a super-packet, if that takes the long way.
    single: Box<[u8]>,
    /// Nothing ends before this.
    deadline: Option<Instant>,
    train: Train,
}

/// A whole ESP datagram with where it came from and its outer ECN bits.
type Datagram = (Path, u8, Vec<u8>);

impl DataPlane {
    /// An empty one: no SAs, no routes. `drops` is shared with whoever shows the counters; this is its only writer.
    #[must_use]
    pub fn new(config: Config, drops: Arc<Drops>) -> Self {
        let tun_mtu = config.tun_mtu;
        let full_mtu = InnerMtu::new(None, tun_mtu);
        Self {
            config,
            drops,
            routes: Arc::default(),
            sas: SaTable::default(),
            peers: FastMap::default(),
            full_mtu,
            paths: Paths::default(),
            reserve: full_mtu.room(tun_mtu),
            waiting_outbound: WaitingRoom::default(),
            resumable: Vec::new(),
            waiting_inbound: WaitingRoom::default(),
            events: Events::default(),
            answers: Allowance::default(),
            fragment: vec![0; full_mtu.v4.into()].into(),
            single: vec![0; MAX_PACKET].into(),
            deadline: None,
            train: Train::new(),
        }
    }

    /// Ends grace times, hard lifetimes and parked packets that waited too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.end_sas(now);
        for _ in 0..self.waiting_outbound.expire(now) + self.waiting_inbound.expire(now) {
            self.drops.count(DropReason::ParkedTooLong);
        }
        let waiting = [self.waiting_outbound.deadline(), self.waiting_inbound.deadline()];
        self.deadline = waiting.into_iter().chain([self.sas.first_end()]).flatten().min();
    }

    /// When `handle_timeout` wants to be called next.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// News for the control thread, oldest first. Level-triggered: what is not fetched may coalesce, never grow.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.poll()
    }

    /// Something will end at that time.
    fn wake_by(&mut self, time: Instant) {
        self.deadline = Some(self.deadline.map_or(time, |deadline| deadline.min(time)));
    }

    /// How much room in an outbox a packet from the TUN may need, now that a peer's path changed.
    fn measure_reserve(&mut self) {
        let narrowest = self.paths.narrowest().map_or(self.full_mtu, |mtu| mtu.min(self.full_mtu));
        self.reserve = narrowest.room(self.config.tun_mtu);
    }
}

/// Something that may happen now and then, and a few times in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    /// When all that was taken is paid back.
    paid_at: Instant,
}

impl Allowance {
    /// One more per ten milliseconds: enough for every new flow to learn its path's size, little enough to be no load.
    const INTERVAL: Duration = Duration::from_millis(10);

    /// Twenty in a row.
    const BURST: Duration = Duration::from_millis(200);

    /// Takes one, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let granted = self.paid_at.since(now) < Self::BURST;
        if granted {
            self.paid_at = self.paid_at.max(now) + Self::INTERVAL;
        }
        granted
    }
}
