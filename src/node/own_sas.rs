//! One CHILD_SA per worker and peer between our own hosts (RFC 9611), so that what a TUN queue gives to a worker need not go by
//! another one.
//!
//! They are made for all workers as soon as anything is sent or received, and not one by one: a TUN queue follows a flow's last
//! write, so a flow that begins by another worker's SA stays with that worker. Beyond [`AHEAD`] SAs a worker gets one only when it
//! has packets and says so ([`crate::esp::Event::WantOwnSa`]). Until it is there they go by the worker that every route names.
//! Which worker has an SA stands in its inbound SPI. When a peer is quiet for [`IDLE`] they go again; the first one, which all
//! fall back to, never does.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::installs::Installed;
use super::peer::Peer;
use super::{Node, TICK, trouble};
use crate::esp::SaCounters;
use crate::ike::{CloseReason, Command};
use crate::model::{Instant, PeerIndex, Spi, WorkerIndex};

/// How long nothing may pass before own SAs go. Longer than the pauses of what people do; an hour's rekeys of what nobody uses
/// are spared.
pub(super) const IDLE: Duration = Duration::from_secs(300);

/// So many own SAs a host makes before they are needed: about ten megabytes.
const AHEAD: usize = 4096;

/// The side that did not begin the IKE SA leaves it to the other to make them, but not for longer than this: it may have fewer
/// workers, or be older.
const POLITE: Duration = Duration::from_secs(3);

/// What the SAs of one worker carried: inner packets and their octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkerTraffic {
    /// Packets and octets opened.
    pub inbound: (u64, u64),
    /// Packets and octets sealed.
    pub outbound: (u64, u64),
}

impl WorkerTraffic {
    /// Adds what one SA carried.
    pub(super) fn add(&mut self, counters: &SaCounters) {
        self.inbound.0 += counters.inbound_packets.load(Ordering::Relaxed);
        self.inbound.1 += counters.inbound_octets.load(Ordering::Relaxed);
        self.outbound.0 += counters.outbound_packets.load(Ordering::Relaxed);
        self.outbound.1 += counters.outbound_octets.load(Ordering::Relaxed);
    }
}

impl Node {
    /// A worker's packets to this peer go by another worker's SA.
    pub(super) fn want_own_sa(&mut self, now: Instant, index: PeerIndex, worker: WorkerIndex) {
        if self.peers.get(&index).is_some_and(|peer| peer.is_linked()) {
            self.endpoint.handle_command(now, Command::CreateWorkerChild(index, worker));
        }
    }

    /// The peer wants no more of them for now. Nothing is wrong with it.
    pub(super) fn own_sa_refused(&mut self, now: Instant, index: PeerIndex, reason: &CloseReason) {
        let Some(peer) = self.peers.get(&index) else { return };
        let text = trouble::in_full(peer.config(), reason);
        self.remember(now, index, format!("workers share an SA: {text}"), false);
    }

    /// The first packet came in on an SA.
    pub(super) fn spread(&mut self, now: Instant, spi: Spi) {
        if let Some(index) = self.installs.peer_of(spi)
            && self.installs.per_worker() < AHEAD
        {
            self.make_own_sas(now, index);
        }
    }

    /// Makes and ends own SAs, as the traffic of the last time was.
    pub(super) fn tend_own_sas(&mut self, now: Instant) {
        let mut room = AHEAD.saturating_sub(self.installs.per_worker());
        let kin: Vec<PeerIndex> = self.peers.values().filter(|peer| is_kin(peer)).map(Peer::index).collect();
        for index in kin {
            let (inbound, outbound) = self.installs.last_traffic(index);
            let quiet = inbound.max(outbound).map_or(Duration::MAX, |last| now.since(last));
            if room > 0 && quiet < 2 * TICK {
                room = room.saturating_sub(self.make_own_sas(now, index));
            }
            self.retire_idle(now, index, quiet >= IDLE || room == 0);
        }
    }

    /// Asks for what is missing; says how many.
    fn make_own_sas(&mut self, now: Instant, index: PeerIndex) -> usize {
        let Some(newest) = self.peers.get(&index).and_then(Peer::newest).filter(|newest| newest.kin) else { return 0 };
        if !newest.initiator && now.since(newest.established) < POLITE {
            return 0;
        }
        let owners: BTreeSet<WorkerIndex> = self.installs.of(index).map(|(spi, _)| spi.owner()).collect();
        let missing = (0..self.config.workers).map(WorkerIndex).filter(|worker| !owners.contains(worker));
        let missing: Vec<WorkerIndex> = missing.collect();
        for &worker in &missing {
            self.endpoint.handle_command(now, Command::CreateWorkerChild(index, worker));
        }
        missing.len()
    }

    /// Ends the own SAs of a peer that carried nothing for long, if they are not worth keeping.
    fn retire_idle(&mut self, now: Instant, index: PeerIndex, spare: bool) {
        let used = |sa: &Installed| {
            let (inbound, outbound) = sa.last_traffic();
            inbound.max(outbound).max(Some(sa.since)).unwrap_or(sa.since)
        };
        let idle = self.installs.of(index).filter(|(_, sa)| spare && sa.per_worker && now.since(used(sa)) >= IDLE);
        let idle: Vec<Spi> = idle.map(|(spi, _)| spi).collect();
        for spi in idle {
            self.endpoint.handle_command(now, Command::RetireWorkerChild(spi));
        }
    }

    /// What each worker carried since the start, by its number.
    #[must_use]
    pub fn worker_traffic(&self) -> Vec<WorkerTraffic> {
        let traffic = self.installs.traffic();
        let of = |worker| traffic.get(&WorkerIndex(worker)).copied().unwrap_or_default();
        (0..self.config.workers).map(of).collect()
    }
}

/// Whether the peer is one of our own hosts.
fn is_kin(peer: &Peer) -> bool {
    peer.newest().is_some_and(|newest| newest.kin)
}
