//! Orders of the control thread, and what ends by itself: SAs come, take over from each other, and go.

use std::sync::Arc;
use std::time::Duration;

use super::inbound::InboundSa;
use super::outbound::OutboundSa;
use super::outbox::Outbox;
use super::path::InnerMtu;
use super::sas::{ColdSa, Peer};
use super::selectors::Selectors;
use super::update::{Event, SaCounters, Update};
use super::{DataPlane, Datagram};
use crate::model::{ChildSaParams, DropReason, Instant, Path, PeerIndex, Spi};

/// How long a retired SA still opens what is under way to us.
const GRACE: Duration = Duration::from_secs(5);

/// Octets of the ESP datagram that announces an SA: as short as a short packet's.
const ANNOUNCEMENT: u16 = 64;

impl DataPlane {
    /// Takes an update of the control thread over; takes effect at once. What was parked for it is put into `outbox` (if that
    /// is too small: as [`resume_parked`](Self::resume_parked) says) or, for inbound, into `released` as whole ESP datagrams to
    /// be handed in again.
    pub fn handle_update(
        &mut self,
        now: Instant,
        update: Update,
        outbox: &mut Outbox,
        released: &mut Vec<(Path, u8, Vec<u8>)>,
    ) {
        // What was written for an SA must be sealed before that SA may go.
        self.seal_pending(outbox);
        match update {
            Update::Routes(routes) => self.routes = routes,
            Update::Reserve(spi) => self.waiting_inbound.open(spi),
            Update::Release(spi) => self.release(spi),
            Update::Install { child, counters, ticket } => {
                self.install(now, *child, counters, released);
                self.events.push(Event::Installed(ticket));
            }
            Update::Activate(spi) => self.activate(spi),
            // One that does not fit is not missed: the first packet says the same.
            Update::Announce(spi) => {
                self.seal_dummy(now, spi, ANNOUNCEMENT, outbox);
            }
            Update::Retire { spi, at_once } => self.retire(now, spi, at_once),
            Update::PathChanged(spi, path) => self.change_path(spi, path),
            Update::PathLimit(peer, limit) => self.limit_path(peer, limit),
            Update::RemovePeer(peer) => self.remove_peer(peer),
        }
        self.resume_parked(now, outbox);
    }

    /// Both halves into the table; what waited for the inbound one comes out.
    fn install(&mut self, now: Instant, mut child: ChildSaParams, counters: Arc<SaCounters>, released: &mut Vec<Datagram>) {
        let (index, spi) = (child.peer, child.inbound_spi);
        // The control thread never installs an SPI twice; if it did, the first would be the one that nobody names any more.
        if let Some(slot) = self.sas.slot(spi) {
            self.remove(slot);
        }
        let local = std::mem::take(&mut child.local_selectors);
        let remote = std::mem::take(&mut child.remote_selectors);
        let selectors = Arc::new(Selectors::new(local, remote));
        let inbound = InboundSa::new(&child, self.config.provider, Arc::clone(&selectors), Arc::clone(&counters));
        let outbound = OutboundSa::new(&child, self.config.provider, selectors, counters);
        let cold = ColdSa::new(index, spi, now + child.lifetime.hard);
        self.wake_by(cold.hard_at);
        let slot = self.sas.insert(inbound, outbound, cold);
        self.peer(index).outbound.push(slot);
        while let Some(datagram) = self.waiting_inbound.next(spi) {
            released.push(datagram);
        }
        self.waiting_inbound.close(spi);
    }

    /// Sends with this SA from now on; the one before stays as standby until it is retired.
    fn activate(&mut self, spi: Spi) {
        let Some(slot) = self.sas.slot(spi) else { return };
        if let (_, Some(_), Some(cold)) = self.sas.parts(slot) {
            let index = cold.peer;
            self.peer(index).active = Some(slot);
            self.resumable.push(index);
        }
    }

    /// Ends the outbound half, and the inbound half now or soon.
    fn retire(&mut self, now: Instant, spi: Spi, at_once: bool) {
        let Some(slot) = self.sas.slot(spi) else { return };
        if at_once {
            self.remove(slot);
            return;
        }
        self.remove_outbound(slot);
        if let Some(until) = self.sas.end_by(slot, now + GRACE) {
            self.wake_by(until);
        }
    }

    fn change_path(&mut self, spi: Spi, path: Path) {
        let Some(slot) = self.sas.slot(spi) else { return };
        let (inbound, outbound, _) = self.sas.parts(slot);
        if let Some(inbound) = inbound {
            inbound.set_path(path);
        }
        if let Some(outbound) = outbound {
            outbound.set_path(path);
        }
    }

    fn limit_path(&mut self, index: PeerIndex, limit: Option<u16>) {
        let mtu = InnerMtu::new(limit, self.config.tun_mtu);
        let peer = self.peer(index);
        let before = std::mem::replace(&mut peer.mtu, mtu);
        if std::mem::replace(&mut peer.is_measured, true) {
            self.paths.remove(before);
        }
        self.paths.add(mtu);
        self.measure_reserve();
    }

    fn release(&mut self, spi: Spi) {
        for _ in 0..self.waiting_inbound.close(spi) {
            self.drops.count(DropReason::UnknownSpi);
        }
    }

    /// Its SAs are retired one by one; until then it stays known.
    fn remove_peer(&mut self, index: PeerIndex) {
        for _ in 0..self.waiting_outbound.close(index) {
            self.drops.count(DropReason::NoRoute);
        }
        if self.peers.get(&index).is_some_and(|peer| peer.outbound.is_empty())
            && let Some(peer) = self.peers.remove(&index)
            && peer.is_measured
        {
            self.paths.remove(peer.mtu);
            self.measure_reserve();
        }
    }

    /// Both halves now.
    fn remove(&mut self, slot: u32) {
        self.remove_outbound(slot);
        self.sas.remove(slot);
    }

    /// Ends the outbound half; if it was the active one, the newest of the others takes over.
    fn remove_outbound(&mut self, slot: u32) {
        let (_, Some(_), Some(cold)) = self.sas.parts(slot) else { return };
        let index = cold.peer;
        self.sas.remove_outbound(slot);
        let peer = self.peer(index);
        peer.outbound.retain(|&other| other != slot);
        if peer.active == Some(slot) {
            peer.active = peer.outbound.last().copied();
        }
    }

    /// Grace times and hard lifetimes.
    pub(super) fn end_sas(&mut self, now: Instant) {
        while let Some(slot) = self.sas.ended(now) {
            if self.sas.parts(slot).2.is_some_and(|cold| cold.grace_until.is_none()) {
                self.tell_hard_expired(slot);
            }
            self.remove(slot);
        }
    }

    /// A soft limit was reached: told once per SA.
    pub(super) fn tell_soft_expired(&mut self, slot: u32) {
        let (inbound, outbound, cold) = self.sas.parts(slot);
        if let Some(inbound) = inbound {
            inbound.silence();
        }
        if let Some(outbound) = outbound {
            outbound.silence();
        }
        if let Some(cold) = cold
            && !std::mem::replace(&mut cold.soft_told, true)
        {
            self.events.push(Event::SoftExpired(cold.spi));
        }
    }

    /// The SA ended: told once.
    pub(super) fn tell_hard_expired(&mut self, slot: u32) {
        if let Some(cold) = self.sas.parts(slot).2
            && !std::mem::replace(&mut cold.hard_told, true)
        {
            self.events.push(Event::HardExpired(cold.spi));
        }
    }

    /// What packets to this peer need to know.
    fn peer(&mut self, index: PeerIndex) -> &mut Peer {
        self.peers.entry(index).or_insert_with(|| Peer::new(self.full_mtu))
    }
}
