//! One CHILD_SA per worker and peer between our own hosts (RFC 9611), so that what a TUN queue gives to a worker need not go by
//! another one.
//!
//! A worker without its own says so while it has packets ([`crate::esp::Event::WantOwnSa`]) and lets them go by the worker that
//! every route names; IKE knows whether the peer is one of ours and wants more. Which worker has an SA stands in its inbound SPI.
//! An SA that neither side used for [`IDLE`] goes again; the first one, which all fall back to, never does.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Node, trouble};
use crate::esp::SaCounters;
use crate::ike::{CloseReason, Command};
use crate::model::{Instant, PeerIndex, Spi, WorkerIndex};

/// How long a worker's own SA may carry nothing before it goes. Longer than the pauses of what people do; an hour's rekeys of
/// what nobody uses are spared.
pub(super) const IDLE: Duration = Duration::from_secs(300);

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

    /// Ends the own SAs that carry nothing.
    pub(super) fn retire_idle(&mut self, now: Instant) {
        let used = |sa: &super::installs::Installed| {
            let (inbound, outbound) = sa.last_traffic();
            inbound.max(outbound).max(Some(sa.since)).unwrap_or(sa.since)
        };
        let idle = self.installs.per_worker().filter(|(_, sa)| now.since(used(sa)) >= IDLE);
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
