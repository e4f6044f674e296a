//! Super-packets on their way out: what holds for all packets of one (route, SA, selectors, size) is looked up once, and each
//! is written straight into the outbox.

use super::outbound::next_header;
use super::outbox::{Outbox, Room};
use super::{DataPlane, Outcome, Route};
use crate::model::{DropReason, Instant};
use crate::wire::esp;
use crate::wire::segment::Split;

/// Packets that are sealed together: 16 of 1500 octets are still in the first-level cache when they are sealed.
const SEAL_TOGETHER: usize = 16;

impl DataPlane {
    /// Takes the packets of a super-packet from number `next` on, as far as the outbox has room, and moves `next` on. If it
    /// is not [`Split::count`] afterwards, send what the outbox holds, clear it, and call again.
    ///
    /// A stray is the other worker's as a whole, as far as it has not been taken here.
    pub fn handle_split(&mut self, now: Instant, split: &Split<'_>, next: &mut usize, outbox: &mut Outbox) -> Outcome {
        // What waited for an SA that is there by now came before.
        if !self.resumable.is_empty() && !self.resume_parked(now, outbox) {
            return Outcome::Done;
        }
        outbox.set_reserve(self.reserve);
        // What lies in the outbox unsealed from here on is of this super-packet's SA.
        self.seal_pending(outbox);
        match self.send_split(now, split, next, outbox) {
            Ok(true) => Outcome::Done,
            Ok(false) => self.handle_one_by_one(now, split, next, outbox),
            Err(reason) => {
                let lost = split.count() - *next;
                *next = split.count();
                self.drops.add(reason, lost as u64);
                Outcome::Dropped(reason)
            }
        }
    }

    /// The short way, for packets that all fit the path of an SA that is there; false if it is closed.
    fn send_split(
        &mut self,
        now: Instant,
        split: &Split<'_>,
        next: &mut usize,
        outbox: &mut Outbox,
    ) -> Result<bool, DropReason> {
        let packet = split.packet();
        let Some(Route::Peer { peer, .. }) = self.routes.lookup(packet.destination()) else {
            return Err(DropReason::NoRoute);
        };
        // Without an SA of our own it strays, or waits.
        let Some(peer) = self.peers.get(&peer) else { return Ok(false) };
        let (Some(slot), stride) = (peer.active, split.stride()) else { return Ok(false) };
        if !self.routes.is_local(packet.source()) {
            return Err(DropReason::SourceNotOurs);
        }
        if stride > peer.mtu.of(packet) {
            return Ok(false);
        }
        let reference = self.sas.reference(slot);
        let Some(sa) = self.sas.parts(slot).1 else { return Ok(false) };
        if !sa.allows(packet) {
            sa.count_drop(DropReason::OutboundSelector);
            return Err(DropReason::OutboundSelector);
        }
        let room = Room { octets: esp::sealed_len(stride), datagrams: 1 };
        let (next_header, ecn, first) = (next_header(packet), packet.ecn(), *next);
        let mut octets = 0;
        while *next < split.count() && sa.is_ready(outbox, room) {
            let (index, len) = (*next, split.len_of(*next));
            sa.put(reference, outbox, next_header, len, ecn, |space| split.emit(index, space));
            octets += len;
            *next += 1;
            if (*next - first).is_multiple_of(SEAL_TOGETHER) {
                outbox.seal(|_| Some(sa.aead()));
            }
        }
        sa.count(now, *next - first, octets);
        if sa.is_soft_expired() {
            self.tell_soft_expired(slot);
        }
        // Without progress the reason is another than a full outbox: the long way tells it.
        Ok(*next > first || !outbox.has_room())
    }

    /// The long way: each packet by itself, so that it can wait, stray, be cut into fragments, or be answered.
    fn handle_one_by_one(&mut self, now: Instant, split: &Split<'_>, next: &mut usize, outbox: &mut Outbox) -> Outcome {
        let mut single = std::mem::take(&mut self.single);
        let mut outcome = Outcome::Done;
        while *next < split.count() && outbox.has_room() {
            let packet = &mut single[..split.len_of(*next)];
            split.emit(*next, packet);
            outcome = self.handle_inner(now, packet, outbox);
            if matches!(outcome, Outcome::Stray(_)) {
                break;
            }
            *next += 1;
        }
        self.single = single;
        outcome
    }
}
