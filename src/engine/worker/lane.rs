//! The way of packets through one worker, between TUN and UDP.
//!
//! Outbound: an inner packet goes to the data plane, which writes it into the outbox; a batch of them is sealed and leaves
//! in one call. If the socket's buffer is full, what is left waits (the backlog), and nothing new is taken that would need the
//! outbox: the TUN keeps its packets. A super-packet may need the outbox more than once; then its rest goes first. Inbound: a batch of datagrams is opened in the buffer that it was received into, and what
//! comes out is written to the TUN from there, joined where it can be.
//!
//! The tunnel's own datagrams never come back by the TUN as long as the routes to the peers' outer addresses lead elsewhere;
//! the agent sees to that when it sets routes. Here such a packet is one like any other: its destination has no route in
//! the overlay, so it is dropped and counted.

use std::io::{self, ErrorKind};
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::engine::Shared;
use crate::engine::coalesce::Coalescer;
use crate::engine::exchange::{Content, Member, Parcel};
use crate::engine::forward::Forwarder;
use crate::engine::narrow::Narrow;
use crate::engine::sink::{TunSink, write_to_tun};
use crate::engine::stranger::Stranger;
use crate::esp::{Config, DataPlane, Event, Inbox, Incoming, Outbox, Outcome, Outgoing, Update};
use crate::model::{DropReason, Drops, Gso, Instant, Path, Spi, Transport, WorkerIndex};
use crate::sys::tun::{Offloads, TunQueue};
use crate::sys::udp::{Datagram, SendBatch, UdpSocket};
use crate::wire::segment::{self, Split};

/// Octets of the outbox: a batch from the TUN at an MTU of 1500, or three super-packets of 64 KiB.
const OUTBOX_OCTETS: usize = 256 << 10;

/// Datagrams of the outbox: those of one super-packet at the smallest MSS in use (536), and a batch besides.
const OUTBOX_DATAGRAMS: usize = 256;

/// Datagrams of one receive at first; more make the list grow once.
const MAX_INCOMING: usize = 1024;

/// Datagrams that are opened together: 16 of 1500 octets leave room in the first-level cache, where what is to be joined is
/// read once more for its checksum.
const OPEN_TOGETHER: usize = 16;

/// Parcels per turn.
const PARCEL_BATCH: usize = 64;

/// How long a full socket may hold up the worker before what waits is dropped. By then it is of no use to anybody.
const BACKLOG_PATIENCE: Duration = Duration::from_millis(100);

impl Datagram for Outgoing {
    fn range(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.len as usize
    }

    fn path(&self) -> Path {
        self.path
    }

    fn ecn(&self) -> u8 {
        self.ecn
    }
}

/// Datagrams in the outbox that the socket did not take.
#[derive(Clone, Copy)]
struct Backlog {
    /// How many are gone, from the first on.
    done: usize,
    since: Instant,
}

/// A super-packet of which not all packets found room in the outbox.
struct Rest {
    /// Where it lies; if not here, then in the lane's own buffer.
    parcel: Option<Box<Parcel>>,
    /// How many of its packets are done.
    next: usize,
}

/// A worker's packets, in both directions.
pub(super) struct Lane {
    index: WorkerIndex,
    pub(super) shared: Arc<Shared>,
    pub(super) drops: Arc<Drops>,
    plane: DataPlane,
    mailbox: Receiver<Update>,
    forward: Forwarder,
    tun: Box<dyn TunQueue>,
    udp: Arc<UdpSocket>,
    // Outbound.
    /// What inner packets are read into; a stray takes it along.
    buffer: Box<Parcel>,
    outbox: Outbox,
    send: SendBatch,
    backlog: Option<Backlog>,
    rest: Option<Rest>,
    narrow: Narrow,
    // Inbound.
    incoming: Vec<Incoming>,
    /// Those of them whose SA is not here yet.
    unknown: Vec<Incoming>,
    inbox: Inbox,
    coalescer: Coalescer,
    released: Vec<(Path, u8, Vec<u8>)>,
    stranger: Stranger,
}

impl Lane {
    pub(super) fn new(
        config: Config,
        (tun, offloads): (Box<dyn TunQueue>, Offloads),
        udp: Arc<UdpSocket>,
        mailbox: Receiver<Update>,
        drops: Arc<Drops>,
        shared: Arc<Shared>,
    ) -> Self {
        let index = config.worker;
        let mut forward = Forwarder::new(index.0.into(), Arc::clone(&shared), Arc::clone(&drops));
        Self {
            index,
            plane: DataPlane::new(config, Arc::clone(&drops)),
            mailbox,
            tun,
            udp,
            buffer: forward.first_buffer(),
            forward,
            outbox: Outbox::new(OUTBOX_OCTETS, OUTBOX_DATAGRAMS),
            send: SendBatch::default(),
            backlog: None,
            rest: None,
            narrow: Narrow::default(),
            incoming: Vec::with_capacity(MAX_INCOMING),
            unknown: Vec::with_capacity(MAX_INCOMING),
            inbox: Inbox::default(),
            coalescer: Coalescer::new(offloads),
            released: Vec::new(),
            stranger: Stranger::default(),
            shared,
            drops,
        }
    }

    pub(super) fn member(&self) -> Member {
        self.index.0.into()
    }

    /// Whether nothing waits for the socket.
    pub(super) const fn is_clear(&self) -> bool {
        self.backlog.is_none() && self.rest.is_none()
    }

    /// Whether orders or parcels wait.
    pub(super) fn has_mail(&self) -> bool {
        !self.mailbox.is_empty() || self.shared.exchange.has_parcels(self.member())
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.plane.poll_timeout()
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.plane.poll_event().or_else(|| self.stranger.poll_event()).or_else(|| self.narrow.poll_event())
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.plane.poll_timeout().is_some_and(|at| at <= now) {
            self.plane.handle_timeout(now);
        }
    }

    // --- orders and strays ---

    /// Does what the control thread ordered, as far as the socket takes what that sets free.
    pub(super) fn take_orders(&mut self, now: Instant) {
        while self.is_clear() {
            let Ok(update) = self.mailbox.try_recv() else { break };
            self.plane.handle_update(now, update, &mut self.outbox, &mut self.released);
            self.admit_released(now);
            // The next order may set free as much again.
            self.flush(now);
            self.resume(now);
        }
    }

    /// Sends what waited for an SA that is there by now, as far as the socket takes it.
    fn resume(&mut self, now: Instant) {
        while self.is_clear() && self.plane.may_resume() {
            self.plane.resume_parked(now, &mut self.outbox);
            self.flush(now);
        }
    }

    /// Opens what was parked for a key that is here now.
    fn admit_released(&mut self, now: Instant) {
        let mut released = mem::take(&mut self.released);
        for (path, ecn, mut octets) in released.drain(..) {
            let incoming = Incoming { start: 0, len: octets.len() as u32, path, ecn };
            self.plane.handle_outer(now, &mut octets, &[incoming], true, &mut self.inbox);
            self.deliver(&octets);
        }
        self.released = released;
    }

    /// Takes what other threads have for us.
    pub(super) fn take_parcels(&mut self, now: Instant) {
        for _ in 0..PARCEL_BATCH {
            if !self.make_room(now) {
                break;
            }
            let Some(parcel) = self.shared.exchange.receive(self.member()) else { break };
            self.take_parcel(now, parcel);
        }
        self.flush(now);
    }

    fn take_parcel(&mut self, now: Instant, mut parcel: Box<Parcel>) {
        match parcel.content {
            Content::Inner(_) => return self.take_inner(now, parcel),
            Content::Outer { path, ecn, stride } => {
                let (len, stride) = (parcel.len, stride.max(1));
                for start in (0..len).step_by(stride) {
                    let len = stride.min(len - start) as u32;
                    self.incoming.push(Incoming { start: start as u32, len, path, ecn });
                }
                self.open(now, &mut parcel.octets[..len]);
            }
            // For the control thread only; nobody sends it here.
            Content::Ike { .. } => {}
        }
        self.shared.exchange.give_back(parcel);
    }

    // --- outbound ---

    /// Reads one inner packet or super-packet and says how many octets it had.
    pub(super) fn read_inner(&mut self, now: Instant) -> io::Result<usize> {
        let read = self.tun.read_packet(&mut self.buffer.octets)?;
        self.buffer.len = read.len;
        self.buffer.content = Content::Inner(read.gso);
        if let Some((start, offset)) = read.checksum {
            let packet = &mut self.buffer.octets[..read.len];
            segment::complete_checksum(packet, start, offset).map_err(|_| ErrorKind::InvalidData)?;
        }
        let mut next = 0;
        match admit(&mut self.plane, &mut self.outbox, &self.drops, now, &self.buffer, &mut next) {
            Progress::Done => {}
            Progress::Full => self.go_on(now, Rest { parcel: None, next }),
            Progress::Stray(owner) => match self.shared.exchange.worker(owner) {
                Some(to) => self.forward.inner(to, &mut self.buffer),
                None => self.drops.count(DropReason::NoRoute),
            },
        }
        Ok(read.len)
    }

    /// Takes what another worker read from its queue.
    fn take_inner(&mut self, now: Instant, parcel: Box<Parcel>) {
        let mut next = 0;
        match admit(&mut self.plane, &mut self.outbox, &self.drops, now, &parcel, &mut next) {
            Progress::Full => return self.go_on(now, Rest { parcel: Some(parcel), next }),
            // Its sender had other routes than we have: a moment of a change. It is not sent round and round.
            Progress::Stray(_) => self.drops.count(DropReason::NoRoute),
            Progress::Done => {}
        }
        self.shared.exchange.give_back(parcel);
    }

    /// Sends the rest of a super-packet, as far as the socket takes it.
    fn go_on(&mut self, now: Instant, mut rest: Rest) {
        loop {
            self.flush(now);
            if self.backlog.is_some() {
                self.rest = Some(rest);
                return;
            }
            let parcel = rest.parcel.as_deref().unwrap_or(&self.buffer);
            match admit(&mut self.plane, &mut self.outbox, &self.drops, now, parcel, &mut rest.next) {
                Progress::Full => {}
                Progress::Stray(_) => break self.drops.count(DropReason::NoRoute),
                Progress::Done => break,
            }
        }
        if let Some(parcel) = rest.parcel {
            self.shared.exchange.give_back(parcel);
        }
    }

    /// Sees to it that one more packet fits into the outbox; false if the socket is full.
    pub(super) fn make_room(&mut self, now: Instant) -> bool {
        // Set free by a packet of the peer's, or held up by a full socket: it came before.
        self.resume(now);
        if !self.outbox.has_room() {
            self.flush(now);
        }
        self.is_clear()
    }

    /// Seals and sends what is in the outbox.
    pub(super) fn flush(&mut self, now: Instant) {
        if self.backlog.is_some() {
            return;
        }
        self.plane.seal_pending(&mut self.outbox);
        for reply in self.outbox.replies() {
            write_to_tun(&self.drops, 1, || self.tun.write_packet(reply));
        }
        self.transmit(now, Backlog { done: 0, since: now });
    }

    /// Goes on with the backlog; true if there is none any more.
    pub(super) fn retry(&mut self, now: Instant) -> bool {
        if let Some(backlog) = self.backlog {
            self.transmit(now, backlog);
        }
        if self.backlog.is_none()
            && let Some(rest) = self.rest.take()
        {
            self.go_on(now, rest);
        }
        self.is_clear()
    }

    fn transmit(&mut self, now: Instant, mut backlog: Backlog) {
        let (datagrams, octets) = self.outbox.datagrams();
        let report = self.udp.send(&mut self.send, octets, &datagrams[backlog.done..]);
        if let Some(place) = report.narrow {
            self.narrow.note(now, datagrams[backlog.done + place].path);
        }
        backlog.done += report.done;
        let mut failed = report.too_large + report.no_buffers + report.refused;
        if report.blocked && now.since(backlog.since) < BACKLOG_PATIENCE {
            self.backlog = Some(backlog);
        } else {
            failed += datagrams.len() - backlog.done;
            self.outbox.clear();
            self.backlog = None;
        }
        self.drops.add(DropReason::SendFailed, failed as u64);
    }

    // --- inbound ---

    /// Adds a datagram to those that `open` will open, if its SPI can be one of ours.
    pub(super) fn gather(&mut self, now: Instant, spi: Spi, incoming: Incoming) {
        if self.shared.exchange.worker(spi.owner()).is_some() {
            self.incoming.push(incoming);
        } else {
            self.drops.count(DropReason::UnknownSpi);
            self.stranger.note(now, incoming.path);
        }
    }

    /// Opens the gathered datagrams, which lie in `buffer`.
    pub(super) fn open(&mut self, now: Instant, buffer: &mut [u8]) {
        if !self.incoming.is_empty() {
            let incoming = mem::take(&mut self.incoming);
            let mut unknown = mem::take(&mut self.unknown);
            for group in incoming.chunks(OPEN_TOGETHER) {
                self.plane.handle_outer(now, buffer, group, false, &mut self.inbox);
                self.join(buffer);
                self.pass_on_strays(buffer);
                unknown.append(&mut self.inbox.unknown);
            }
            self.write_joined(buffer);
            if !unknown.is_empty() {
                // The order that installs the SA may have overtaken nothing but our attention.
                self.take_orders(now);
                self.plane.handle_outer(now, buffer, &unknown, true, &mut self.inbox);
                self.deliver(buffer);
                unknown.clear();
            }
            self.unknown = unknown;
            self.incoming = incoming;
            self.incoming.clear();
        }
        self.forward.flush();
    }

    fn pass_on_strays(&mut self, buffer: &[u8]) {
        for &(owner, incoming) in &self.inbox.strays {
            let octets = &buffer[incoming.start as usize..(incoming.start + incoming.len) as usize];
            if let Some(to) = self.shared.exchange.worker(owner) {
                self.forward.outer(to, incoming.path, incoming.ecn, octets);
            }
        }
    }

    /// Writes the inner packets of the inbox, which lie in `buffer`, to the TUN.
    fn deliver(&mut self, buffer: &[u8]) {
        self.join(buffer);
        self.write_joined(buffer);
    }

    /// Joins the inner packets of the inbox with those before them, and writes what cannot be joined.
    fn join(&mut self, buffer: &[u8]) {
        self.coalescer.set_offloads(self.shared.joined.offloads());
        let mut sink = TunSink::new(self.tun.as_ref(), &self.drops, buffer);
        for &(start, len) in &self.inbox.packets {
            self.coalescer.push(buffer, start, len, &mut sink);
        }
        if let Some(gso) = sink.refused() {
            self.stop_joining(gso);
        }
    }

    /// Writes what is joined. `buffer` may be used for other datagrams then.
    fn write_joined(&mut self, buffer: &[u8]) {
        let mut sink = TunSink::new(self.tun.as_ref(), &self.drops, buffer);
        self.coalescer.flush(buffer, &mut sink);
        if let Some(gso) = sink.refused() {
            self.stop_joining(gso);
        }
    }

    /// The kernel does not take such super-packets: packets of that protocol go one by one on every worker, until the agent
    /// tries again.
    fn stop_joining(&mut self, gso: Gso) {
        let joined = &self.shared.joined;
        let of_protocol = if matches!(gso, Gso::Udp(_)) { &joined.udp } else { &joined.tcp };
        of_protocol.store(false, Ordering::Relaxed);
        self.coalescer.set_offloads(joined.offloads());
    }

    /// Hands an IKE message to the control thread.
    pub(super) fn stray_ike(&mut self, path: Path, message: &[u8]) {
        self.forward.ike(path, Transport::Natt, message);
    }
}

/// What became of an inner packet or super-packet.
enum Progress {
    /// Nothing is left to do.
    Done,
    /// There is no room for the rest of it.
    Full,
    /// It is another worker's.
    Stray(WorkerIndex),
}

/// Hands a packet to the data plane, or a super-packet from its packet number `next` on.
fn admit(
    plane: &mut DataPlane,
    outbox: &mut Outbox,
    drops: &Drops,
    now: Instant,
    parcel: &Parcel,
    next: &mut usize,
) -> Progress {
    let gso = if let Content::Inner(gso) = parcel.content { gso } else { Gso::None };
    let (outcome, left) = match Split::parse(parcel.text(), gso) {
        Ok(None) => (plane.handle_inner(now, parcel.text(), outbox), 0),
        Ok(Some(split)) => (plane.handle_split(now, &split, next, outbox), split.count() - *next),
        Err(_) => {
            drops.count(DropReason::InnerMalformed);
            return Progress::Done;
        }
    };
    match outcome {
        Outcome::Stray(owner) if *next == 0 => Progress::Stray(owner),
        // Its route changed while its first packets were sent.
        Outcome::Stray(_) => {
            drops.add(DropReason::NoRoute, left as u64);
            Progress::Done
        }
        _ if left > 0 => Progress::Full,
        _ => Progress::Done,
    }
}

#[cfg(test)]
mod tests;
