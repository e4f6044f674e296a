//! The way out: route, SA, selectors, size, ECN, and a datagram in the outbox that waits to be sealed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::outbox::{Outbox, Room};
use super::path::InnerMtu;
use super::sas::SaRef;
use super::selectors::Selectors;
use super::update::{Event, SaCounters};
use super::{DataPlane, Outcome, Route, path};
use crate::crypto::{self, Aead, BatchItem, NONCE_LEN, Provider};
use crate::model::{AeadAlgorithm, ChildSaParams, DropReason, Instant, Path, PeerIndex, Spi};
use crate::wire::esp;
use crate::wire::icmp;
use crate::wire::ip::{self, Packet, Trailing, Version};

/// The last sequence number without ESN: the next would be zero again (RFC 4303 §3.3.3).
const LAST_32: u64 = u32::MAX as u64;

/// Where an SA without ESN asks for its successor, in either direction: a quarter of its life is left for that.
pub const SOFT_32: u64 = 3 << 30;

/// The last sequence number with ESN: the counter itself never overflows.
const LAST_64: u64 = u64::MAX - 1;

/// How often a peer's missing SA is reported while packets to it keep coming.
const WANT_PAUSE: Duration = Duration::from_secs(1);

/// The outbound half of an SA: everything that a packet touches.
pub struct OutboundSa {
    aead: Box<dyn Aead>,
    /// The next sequence number, which is the next IV too: it only ever goes up.
    next: u64,
    /// The last that may be used.
    last: u64,
    /// Reaching it asks for a successor, once.
    soft_sequence: u64,
    /// So does sealing so many octets of inner packets.
    soft_octets: u64,
    selectors: Arc<Selectors>,
    counters: Arc<SaCounters>,
    spi: Spi,
    salt: [u8; AeadAlgorithm::SALT_LEN],
    esn: bool,
    path: Path,
}

/// Three cache lines, one of which is the path.
const _: () = assert!(size_of::<OutboundSa>() <= 192);

impl OutboundSa {
    /// The outbound half of a fresh SA.
    ///
    /// # Panics
    /// If the keying material has another length than the algorithm's.
    pub fn new(child: &ChildSaParams, provider: Provider, selectors: Arc<Selectors>, counters: Arc<SaCounters>) -> Self {
        let (aead, salt) = keyed(child, provider, child.outbound_key.keymat.expose());
        let esn = child.suite.esn;
        Self {
            aead,
            next: 1,
            last: if esn { LAST_64 } else { LAST_32 },
            soft_sequence: if esn { child.lifetime.soft_packets } else { child.lifetime.soft_packets.min(SOFT_32) },
            soft_octets: child.lifetime.soft_octets,
            selectors,
            counters,
            spi: child.outbound_spi,
            salt,
            esn,
            path: child.path,
        }
    }

    /// Seals and opens for this SA.
    pub fn aead(&self) -> &dyn Aead {
        &*self.aead
    }

    /// Where it sends to from now on.
    pub const fn set_path(&mut self, path: Path) {
        self.path = path;
    }

    /// Leaves sequence numbers out.
    #[cfg(test)]
    pub const fn skip_to(&mut self, next: u64) {
        self.next = next;
    }

    /// No more news about soft limits.
    pub const fn silence(&mut self) {
        self.soft_sequence = u64::MAX;
        self.soft_octets = u64::MAX;
    }

    /// Whether a soft limit is reached.
    pub fn is_soft_expired(&self) -> bool {
        self.next > self.soft_sequence || self.counters.outbound_octets.load(Ordering::Relaxed) >= self.soft_octets
    }

    /// Whether so many datagrams with so many octets in all can be made.
    ///
    /// # Errors
    /// [`DropReason::SequenceExhausted`] or [`DropReason::QueueFull`].
    fn ready(&self, outbox: &Outbox, room: Room) -> Result<(), DropReason> {
        if self.last + 1 - self.next < room.datagrams as u64 {
            Err(DropReason::SequenceExhausted)
        } else if !outbox.fits(room) {
            Err(DropReason::QueueFull)
        } else {
            Ok(())
        }
    }

    /// The same, if the reason does not matter yet.
    pub fn is_ready(&self, outbox: &Outbox, room: Room) -> bool {
        self.ready(outbox, room).is_ok()
    }

    /// Whether its selectors let the packet out.
    pub fn allows(&self, packet: &Packet<'_>) -> bool {
        self.selectors.allow_outbound(packet)
    }

    /// Counts a packet that was dropped.
    pub fn count_drop(&self, reason: DropReason) {
        self.counters.drops.count(reason);
    }

    /// Starts a datagram of this SA whose payload of `len` octets `write` fills in. The caller saw to it that the outbox has
    /// room and the SA a sequence number.
    pub fn put(
        &mut self,
        sa: SaRef,
        outbox: &mut Outbox,
        next_header: u8,
        len: usize,
        ecn: u8,
        write: impl FnOnce(&mut [u8]),
    ) {
        let sequence = self.next;
        self.next += 1;
        let datagram = outbox.push(esp::sealed_len(len), self.path, ecn);
        // The IV need not be random, only unique (RFC 4106 §3.1): the sequence number is.
        let iv = sequence.to_be_bytes();
        datagram[..esp::HEADER_LEN].copy_from_slice(&esp::Header { spi: self.spi, sequence: sequence as u32 }.emit());
        datagram[esp::IV_OFFSET..esp::TEXT_OFFSET].copy_from_slice(&iv);
        let text = &mut datagram[esp::TEXT_OFFSET..];
        write(&mut text[..len]);
        let end = esp::TEXT_OFFSET + esp::emit_trailer(text, len, next_header);
        let (aad, aad_len) = aad(self.spi, sequence, self.esn);
        let nonce = nonce(self.salt, iv);
        outbox.commit(sa, BatchItem { start: esp::TEXT_OFFSET as u32, end: end as u32, nonce, aad, aad_len });
    }

    /// One packet, one datagram.
    fn send_whole(&mut self, now: Instant, sa: SaRef, packet: &Packet<'_>, outbox: &mut Outbox) -> Result<(), DropReason> {
        let octets = packet.octets();
        self.ready(outbox, Room { octets: esp::sealed_len(octets.len()), datagrams: 1 })?;
        let write = |space: &mut [u8]| space.copy_from_slice(octets);
        self.put(sa, outbox, next_header(packet), octets.len(), packet.ecn(), write);
        self.count(now, 1, octets.len());
        Ok(())
    }

    /// One IPv4 packet cut into several as long as `fragment`, each with a datagram of its own.
    fn send_fragments(
        &mut self,
        now: Instant,
        sa: SaRef,
        packet: &Packet<'_>,
        fragment: &mut [u8],
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let mtu = fragment.len();
        self.ready(outbox, path::room(packet.octets().len(), mtu))?;
        let cut = ip::fragment(packet, mtu, fragment, |fragment| {
            let write = |space: &mut [u8]| space.copy_from_slice(fragment);
            self.put(sa, outbox, esp::NEXT_IPV4, fragment.len(), packet.ecn(), write);
            self.count(now, 1, fragment.len());
        });
        // The MTU has room for any header, so what is left is a fragment that ends beyond the longest packet.
        cut.map_err(|_| DropReason::InnerMalformed)
    }

    /// Counts inner packets.
    pub fn count(&self, now: Instant, packets: usize, octets: usize) {
        bump(&self.counters.outbound_packets, packets as u64);
        bump(&self.counters.outbound_octets, octets as u64);
        self.counters.last_outbound.store(nanoseconds(now), Ordering::Relaxed);
    }
}

impl fmt::Debug for OutboundSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutboundSa({}, next {}, {})", self.spi, self.next, self.path)
    }
}

/// The AEAD and the salt out of one direction's keying material (RFC 4106 §8.1).
pub fn keyed(child: &ChildSaParams, provider: Provider, keymat: &[u8]) -> (Box<dyn Aead>, [u8; AeadAlgorithm::SALT_LEN]) {
    let (key, salt) = keymat.split_at(child.aead().key_len());
    (crypto::aead(provider, child.aead(), key), salt.try_into().expect("keying material ends with four octets of salt"))
}

/// What ESP calls the packet's protocol.
pub const fn next_header(packet: &Packet<'_>) -> u8 {
    match packet.version() {
        Version::V4 => esp::NEXT_IPV4,
        Version::V6 => esp::NEXT_IPV6,
    }
}

/// Salt, then IV (RFC 4106 §4).
pub const fn nonce(salt: [u8; AeadAlgorithm::SALT_LEN], iv: [u8; AeadAlgorithm::IV_LEN]) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    let (head, tail) = nonce.split_at_mut(AeadAlgorithm::SALT_LEN);
    head.copy_from_slice(&salt);
    tail.copy_from_slice(&iv);
    nonce
}

/// SPI and the sequence number's 32 or 64 bits (RFC 4106 §5); the second value says how many octets count.
pub const fn aad(spi: Spi, sequence: u64, esn: bool) -> ([u8; 12], u8) {
    let mut aad = [0; 12];
    let (head, tail) = aad.split_at_mut(4);
    head.copy_from_slice(&spi.value().to_be_bytes());
    if esn {
        tail.copy_from_slice(&sequence.to_be_bytes());
        (aad, 12)
    } else {
        tail.split_at_mut(4).0.copy_from_slice(&(sequence as u32).to_be_bytes());
        (aad, 8)
    }
}

/// Adds to a counter whose only writer we are, and returns the sum.
pub fn bump(counter: &AtomicU64, by: u64) -> u64 {
    let sum = counter.load(Ordering::Relaxed) + by;
    counter.store(sum, Ordering::Relaxed);
    sum
}

/// A time as the counters show it.
pub const fn nanoseconds(now: Instant) -> u64 {
    now.since_origin().as_nanos() as u64
}

impl DataPlane {
    /// Takes one inner packet from the TUN: whole, with its checksums computed.
    pub fn handle_inner(&mut self, now: Instant, packet: &[u8], outbox: &mut Outbox) -> Outcome {
        if !self.resumable.is_empty() {
            self.resume_parked(now, outbox);
        }
        outbox.set_reserve(self.reserve);
        match self.forward(now, packet, outbox) {
            Ok(outcome) => outcome,
            Err(reason) => {
                self.drops.count(reason);
                Outcome::Dropped(reason)
            }
        }
    }

    /// Seals what `handle_inner` put into the outbox, one batch per SA. Call before sending.
    pub fn seal_pending(&mut self, outbox: &mut Outbox) {
        let lost = outbox.seal(|sa| self.sas.outbound_of(sa).map(OutboundSa::aead));
        for _ in 0..lost {
            self.drops.count(DropReason::NoOutboundSa);
        }
    }

    /// Whether packets may wait for an SA that is there by now.
    #[must_use]
    pub fn may_resume(&self) -> bool {
        !self.resumable.is_empty()
    }

    /// Puts packets that waited for an SA which is there by now into the outbox. False if not all found room: send, clear, and
    /// call again. (`handle_update`, `handle_inner` and `handle_split` call it too, so that only an outbox that is too small needs
    /// this, or what nobody calls these for.)
    pub fn resume_parked(&mut self, now: Instant, outbox: &mut Outbox) -> bool {
        outbox.set_reserve(self.reserve);
        while let Some(&index) = self.resumable.last() {
            // The SA may have gone again meanwhile: then what waits goes on waiting.
            let is_up = self.peers.get(&index).is_some_and(|peer| peer.active.is_some());
            if !is_up || !self.waiting_outbound.waits(index) {
                self.resumable.pop();
            } else if !outbox.has_room() {
                return false;
            } else if let Some(packet) = self.waiting_outbound.next(index) {
                self.resume(now, &packet, outbox);
            }
        }
        true
    }

    /// Puts a dummy packet (RFC 4303 §2.6) into the outbox whose ESP datagram has `len` octets or up to three less, sent with
    /// the SA that we receive on with `spi`: a probe of the path that the peer drops silently.
    pub fn seal_dummy(&mut self, now: Instant, spi: Spi, len: u16, outbox: &mut Outbox) -> Outcome {
        let payload = esp::largest_inner(len.into());
        let sealed = self.sas.slot(spi).ok_or(DropReason::NoOutboundSa).and_then(|slot| {
            let reference = self.sas.reference(slot);
            let sa = self.sas.parts(slot).1.ok_or(DropReason::NoOutboundSa)?;
            sa.ready(outbox, Room { octets: esp::sealed_len(payload), datagrams: 1 })?;
            sa.put(reference, outbox, esp::NEXT_DUMMY, payload, 0, |octets| octets.fill(0));
            sa.counters.last_outbound.store(nanoseconds(now), Ordering::Relaxed);
            Ok(())
        });
        match sealed {
            Ok(()) => Outcome::Done,
            Err(reason) => {
                self.drops.count(reason);
                Outcome::Dropped(reason)
            }
        }
    }

    /// Sends one packet that waited; the routes may have changed since it came.
    fn resume(&mut self, now: Instant, packet: &[u8], outbox: &mut Outbox) {
        match self.forward(now, packet, outbox) {
            Ok(Outcome::Done) => {}
            Ok(_) => self.drops.count(DropReason::NoOutboundSa),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// Route, then SA or waiting room.
    fn forward(&mut self, now: Instant, packet: &[u8], outbox: &mut Outbox) -> Result<Outcome, DropReason> {
        let packet = Packet::parse(packet, Trailing::Refused).map_err(|_| DropReason::InnerMalformed)?;
        let Some(Route::Peer { peer, owner }) = self.routes.lookup(packet.destination()) else {
            return Err(DropReason::NoRoute);
        };
        let (active, mtu) = self.peers.get(&peer).map_or((None, self.full_mtu), |peer| (peer.active, peer.mtu));
        if active.is_none() && owner != self.config.worker {
            self.want_own_sa(now, peer);
            return Ok(Outcome::Stray(owner));
        }
        if !self.routes.is_local(packet.source()) {
            return Err(DropReason::SourceNotOurs);
        }
        match active {
            Some(slot) => {
                if let Err(reason) = self.transmit(now, slot, mtu, &packet, outbox) {
                    if let Some(sa) = self.sas.parts(slot).1 {
                        sa.counters.drops.count(reason);
                    }
                    return Err(reason);
                }
            }
            None => self.wait_for_sa(now, peer, mtu, &packet, outbox)?,
        }
        Ok(Outcome::Done)
    }

    /// Keeps a copy of the packet and tells the control thread that an SA is wanted.
    fn wait_for_sa(
        &mut self,
        now: Instant,
        index: PeerIndex,
        mtu: InnerMtu,
        packet: &Packet<'_>,
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let mtu_of_packet = mtu.of(packet);
        if packet.octets().len() > mtu_of_packet && packet.dont_fragment() {
            self.answer_too_big(now, packet, mtu_of_packet, outbox);
            return Err(DropReason::TooBig);
        }
        let peer = self.peers.entry(index).or_insert_with(|| super::sas::Peer::new(mtu));
        // With a standby SA the control thread is about to activate it.
        if peer.outbound.is_empty() && now >= peer.next_want {
            peer.next_want = now + WANT_PAUSE;
            self.events.want(Event::WantSa(index));
        }
        let octets = packet.octets();
        self.waiting_outbound.park(now, index, octets.len(), || octets.to_vec()).map_err(|_| DropReason::NoOutboundSa)?;
        self.wake_by(now + super::parking::PATIENCE);
        Ok(())
    }

    /// Tells the control thread that an SA of our own is wanted, now and then while there are packets for it.
    fn want_own_sa(&mut self, now: Instant, index: PeerIndex) {
        let mtu = self.full_mtu;
        let peer = self.peers.entry(index).or_insert_with(|| super::sas::Peer::new(mtu));
        if now >= peer.next_want {
            peer.next_want = now + WANT_PAUSE;
            self.events.want(Event::WantOwnSa(index, self.config.worker));
        }
    }

    /// Selectors, size, and into the outbox with as many datagrams as it takes.
    fn transmit(
        &mut self,
        now: Instant,
        slot: u32,
        mtu: InnerMtu,
        packet: &Packet<'_>,
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let reference = self.sas.reference(slot);
        let sa = self.sas.parts(slot).1.ok_or(DropReason::NoOutboundSa)?;
        if !sa.allows(packet) {
            return Err(DropReason::OutboundSelector);
        }
        let mtu = mtu.of(packet);
        let sealed = if packet.octets().len() <= mtu {
            sa.send_whole(now, reference, packet, outbox)
        } else if packet.dont_fragment() {
            Err(DropReason::TooBig)
        } else {
            sa.send_fragments(now, reference, packet, &mut self.fragment[..mtu], outbox)
        };
        let is_soft_expired = sa.is_soft_expired();
        match sealed {
            Err(DropReason::TooBig) => self.answer_too_big(now, packet, mtu, outbox),
            Err(DropReason::SequenceExhausted) => self.tell_hard_expired(slot),
            _ if is_soft_expired => self.tell_soft_expired(slot),
            _ => {}
        }
        sealed
    }

    /// Tells the sender of a packet what size would have passed (RFC 1191 §4, RFC 4443 §3.2), if it has not been told a lot
    /// already.
    ///
    /// The answer comes from the packet's own destination. An address of ours would say better who speaks, but Linux drops
    /// what comes in from a TUN under an address of its own (a martian source), and one that routes elsewhere falls to its
    /// reverse path filter; the destination passes both, and senders heed the packet quoted inside only.
    fn answer_too_big(&mut self, now: Instant, packet: &Packet<'_>, mtu: usize, outbox: &mut Outbox) {
        if self.answers.take(now) {
            outbox.reply(|space| icmp::too_big(packet, mtu as u16, packet.destination(), space));
        }
    }
}
