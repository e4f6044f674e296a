//! The way in: SPI, replay check, open, replay accept, selectors and routes, ECN.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::inbox::{Inbox, Incoming};
use super::outbound::{SOFT_32, aad, bump, keyed, nanoseconds, nonce};
use super::replay::{Accepted, Checked, ReplayWindow};
use super::selectors::Selectors;
use super::update::{Event, SaCounters};
use super::{DataPlane, Route, RouteTable, ecn};
use crate::crypto::{Aead, BatchItem, Provider};
use crate::model::{AeadAlgorithm, ChildSaParams, DropReason, Instant, Path, PeerIndex, Spi};
use crate::wire::esp;
use crate::wire::ip::{self, Packet, Trailing};

/// Datagrams that are opened together: what one aggregate of the kernel holds.
const TRAIN: usize = 64;

/// How often the same SA reports another source address: the control thread is not faster.
const ADDRESS_PAUSE: Duration = Duration::from_millis(100);

/// The inbound half of an SA: everything that a datagram touches.
pub struct InboundSa {
    aead: Box<dyn Aead>,
    replay: ReplayWindow,
    selectors: Arc<Selectors>,
    counters: Arc<SaCounters>,
    /// Opening so many packets or octets asks for a successor, once.
    soft_packets: u64,
    soft_octets: u64,
    /// So does a sequence number this high.
    soft_top: u64,
    spi: Spi,
    peer: PeerIndex,
    salt: [u8; AeadAlgorithm::SALT_LEN],
    esn: bool,
    /// Whether anything authentic ever came.
    used: bool,
    path: Path,
}

/// Three cache lines, one of which is the path.
const _: () = assert!(size_of::<InboundSa>() <= 192);

/// What authentic news a datagram brought, besides what is in it.
#[derive(Clone, Copy, Default)]
struct News {
    first: bool,
    moved: bool,
    soft: bool,
}

impl InboundSa {
    /// The inbound half of a fresh SA.
    ///
    /// # Panics
    /// If the keying material has another length than the algorithm's.
    pub fn new(child: &ChildSaParams, provider: Provider, selectors: Arc<Selectors>, counters: Arc<SaCounters>) -> Self {
        let (aead, salt) = keyed(child, provider, child.inbound_key.keymat.expose());
        Self {
            aead,
            replay: ReplayWindow::new(child.replay_window, child.suite.esn),
            selectors,
            counters,
            soft_packets: child.lifetime.soft_packets,
            soft_octets: child.lifetime.soft_octets,
            soft_top: if child.suite.esn { u64::MAX } else { SOFT_32 },
            spi: child.inbound_spi,
            peer: child.peer,
            salt,
            esn: child.suite.esn,
            used: false,
            path: child.path,
        }
    }

    /// Where its datagrams are expected to come from.
    pub const fn set_path(&mut self, path: Path) {
        self.path = path;
    }

    /// No more news about soft limits.
    pub const fn silence(&mut self) {
        self.soft_packets = u64::MAX;
        self.soft_octets = u64::MAX;
        self.soft_top = u64::MAX;
    }

    /// Replay check, and what the AEAD needs to open this datagram, which starts at `start` of its buffer.
    fn prepare(&self, datagram: &[u8], sequence: u32, start: u32) -> Result<(Checked, BatchItem), DropReason> {
        let text = esp::text_range(datagram.len())?;
        let checked = self.replay.check(sequence)?;
        let (aad, aad_len) = aad(self.spi, checked.value(), self.esn);
        let iv = datagram[esp::IV_OFFSET..].first_chunk().copied().unwrap_or_default();
        let (start, end) = (start + text.start as u32, start + text.end as u32);
        Ok((checked, BatchItem { start, end, nonce: nonce(self.salt, iv), aad, aad_len }))
    }

    /// Moves the window, if the ICV held and no twin was faster, and says what that tells about the SA.
    fn accept(&mut self, now: Instant, checked: Checked, icv_holds: bool, from: &Path) -> Result<News, DropReason> {
        let order = self.replay.accept(checked.authenticate(icv_holds)?)?;
        self.counters.last_inbound.store(nanoseconds(now), Ordering::Relaxed);
        Ok(News {
            first: !std::mem::replace(&mut self.used, true),
            moved: order == Accepted::Newest && !is_same_path(&self.path, from),
            soft: self.replay.top() >= self.soft_top,
        })
    }

    /// Whether the inner packet may come from this peer to this host: selectors first, then routes.
    fn admit(&self, routes: &RouteTable, packet: &Packet<'_>) -> Result<(), DropReason> {
        if !self.selectors.allow_inbound(packet) {
            return Err(DropReason::InboundSelector);
        }
        if !matches!(routes.lookup(packet.source()), Some(Route::Peer { peer, .. }) if peer == self.peer) {
            return Err(DropReason::SourceNotPeers);
        }
        if !routes.is_local(packet.destination()) {
            return Err(DropReason::DestinationNotOurs);
        }
        Ok(())
    }

    /// Counts one inner packet; true if a soft limit is reached.
    fn count(&self, octets: usize) -> bool {
        let packets = bump(&self.counters.inbound_packets, 1);
        let octets = bump(&self.counters.inbound_octets, octets as u64);
        packets >= self.soft_packets || octets >= self.soft_octets
    }
}

impl fmt::Debug for InboundSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InboundSa({}, of {:?}, top {}, {})", self.spi, self.peer, self.replay.top(), self.path)
    }
}

/// Whether a datagram came the way that the SA sends; where the SA leaves the local address open, any will do.
fn is_same_path(path: &Path, seen: &Path) -> bool {
    let local = path.local.ip().is_unspecified() || path.local.ip() == seen.local.ip();
    path.remote == seen.remote && local && path.local.port() == seen.local.port()
}

/// Datagrams of one SA that stand next to each other, to be opened together.
#[derive(Debug, Default)]
pub struct Train {
    slot: u32,
    items: Vec<BatchItem>,
    arrivals: Vec<(Checked, Incoming)>,
    good: Vec<bool>,
}

impl Train {
    /// An empty one, with all the memory that it will ever need.
    #[must_use]
    pub fn new() -> Self {
        Self { slot: 0, items: Vec::with_capacity(TRAIN), arrivals: Vec::with_capacity(TRAIN), good: vec![false; TRAIN] }
    }
}

impl DataPlane {
    /// Takes a batch of received datagrams, opens them in place and leaves the inner packets in `inbox` (which it clears
    /// first).
    pub fn handle_outer(
        &mut self,
        now: Instant,
        buffer: &mut [u8],
        datagrams: &[Incoming],
        last_try: bool,
        inbox: &mut Inbox,
    ) {
        inbox.clear();
        let mut train = std::mem::take(&mut self.train);
        for &incoming in datagrams {
            match self.classify(now, buffer, incoming, last_try, inbox) {
                Ok(None) => {}
                Ok(Some((slot, checked, item))) => {
                    if slot != train.slot || train.items.len() == TRAIN {
                        self.open(now, buffer, &mut train, inbox);
                        train.slot = slot;
                    }
                    train.items.push(item);
                    train.arrivals.push((checked, incoming));
                }
                Err(reason) => self.drops.count(reason),
            }
        }
        self.open(now, buffer, &mut train, inbox);
        self.train = train;
    }

    /// Whose datagram it is: none if it went elsewhere (to another worker, to wait, or back to be tried again).
    fn classify(
        &mut self,
        now: Instant,
        buffer: &[u8],
        incoming: Incoming,
        last_try: bool,
        inbox: &mut Inbox,
    ) -> Result<Option<(u32, Checked, BatchItem)>, DropReason> {
        let range = incoming.start as usize..(incoming.start + incoming.len) as usize;
        let datagram = buffer.get(range).ok_or(DropReason::Runt)?;
        let esp::Header { spi, sequence } = esp::Header::parse(datagram)?;
        if spi.owner() != self.config.worker {
            inbox.strays.push((spi.owner(), incoming));
            return Ok(None);
        }
        if let Some(slot) = self.sas.slot(spi)
            && let Some(sa) = self.sas.parts(slot).0
        {
            let prepared = sa.prepare(datagram, sequence, incoming.start);
            let (checked, item) = prepared.inspect_err(|&reason| sa.counters.drops.count(reason))?;
            return Ok(Some((slot, checked, item)));
        }
        if self.waiting_inbound.is_open(spi) {
            let make = || (incoming.path, incoming.ecn, datagram.to_vec());
            self.waiting_inbound.park(now, spi, datagram.len(), make).map_err(|_| DropReason::QueueFull)?;
            self.wake_by(now + super::parking::PATIENCE);
            return Ok(None);
        }
        if last_try {
            self.events.unknown_spi(now, incoming.path);
            return Err(DropReason::UnknownSpi);
        }
        inbox.unknown.push(incoming);
        Ok(None)
    }

    /// Opens a train and delivers what is in it; leaves it empty.
    fn open(&mut self, now: Instant, buffer: &mut [u8], train: &mut Train, inbox: &mut Inbox) {
        if train.items.is_empty() {
            return;
        }
        if let Some(sa) = self.sas.parts(train.slot).0 {
            sa.aead.open_batch(buffer, &train.items, &mut train.good);
        }
        for (index, &(checked, incoming)) in train.arrivals.iter().enumerate() {
            let item = &train.items[index];
            match self.deliver(now, train.slot, buffer, item, (checked, incoming), train.good[index]) {
                Ok(packet) => inbox.packets.push(packet),
                Err(reason) => {
                    self.drops.count(reason);
                    if let Some(sa) = self.sas.parts(train.slot).0 {
                        sa.counters.drops.count(reason);
                    }
                }
            }
        }
        train.items.clear();
        train.arrivals.clear();
    }

    /// What lies behind the ICV: start and length of the inner packet.
    fn deliver(
        &mut self,
        now: Instant,
        slot: u32,
        buffer: &mut [u8],
        item: &BatchItem,
        (checked, incoming): (Checked, Incoming),
        icv_holds: bool,
    ) -> Result<(u32, u32), DropReason> {
        let (sa, _, _) = self.sas.parts(slot);
        let sa = sa.ok_or(DropReason::UnknownSpi)?;
        let mut news = sa.accept(now, checked, icv_holds, &incoming.path)?;
        let text = &mut buffer[item.start as usize..item.end as usize];
        let packet = unwrap(text, incoming.ecn, |packet| sa.admit(&self.routes, packet));
        if let Ok(len) = packet {
            news.soft |= sa.count(len);
        }
        self.tell(now, slot, news, incoming.path);
        packet.map(|len| (item.start, len as u32))
    }

    /// Passes on what an authentic datagram said about its SA.
    fn tell(&mut self, now: Instant, slot: u32, news: News, path: Path) {
        let (_, outbound, Some(cold)) = self.sas.parts(slot) else { return };
        if news.first {
            self.events.push(Event::InboundUsed(cold.spi));
            // The peer has it, so it may be sent with, and an answer need not wait for the control thread to say so.
            let (index, sends) = (cold.peer, outbound.is_some());
            if let Some(peer) = self.peers.get_mut(&index).filter(|peer| sends && peer.active.is_none()) {
                peer.active = Some(slot);
                self.resumable.push(index);
            }
        }
        if news.moved && now >= cold.next_address {
            cold.next_address = now + ADDRESS_PAUSE;
            self.events.address_seen(cold.spi, path);
        }
        if news.soft {
            self.tell_soft_expired(slot);
        }
    }
}

/// Takes an opened payload apart (RFC 4303 §3.4.4.1): the inner packet's length if it is one, `admit` lets it in, and its ECN
/// bits stand for what the outer ones said.
fn unwrap(
    text: &mut [u8],
    outer_ecn: u8,
    admit: impl FnOnce(&Packet<'_>) -> Result<(), DropReason>,
) -> Result<usize, DropReason> {
    let (payload, next_header) = esp::parse_trailer(text)?;
    match next_header {
        esp::NEXT_IPV4 | esp::NEXT_IPV6 => {}
        esp::NEXT_DUMMY => return Err(DropReason::Dummy),
        _ => return Err(DropReason::NextHeader),
    }
    // The packet's own length counts: what follows it hides its size (TFC padding, RFC 4303 §2.7).
    let packet = Packet::parse(&text[..payload], Trailing::Ignored).map_err(|_| DropReason::BadInner)?;
    if super::outbound::next_header(&packet) != next_header {
        return Err(DropReason::BadInner);
    }
    admit(&packet)?;
    let (len, inner_ecn) = (packet.octets().len(), packet.ecn());
    let marked = ecn::decapsulate(inner_ecn, outer_ecn)?;
    if marked != inner_ecn {
        ip::set_ecn(&mut text[..len], marked);
    }
    Ok(len)
}
