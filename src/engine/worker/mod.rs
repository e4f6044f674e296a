//! A worker: one thread that owns a TUN queue, a UDP socket and the SAs of its number, in both directions.
//!
//! A turn takes what waits, in this order: orders of the control thread, strays from other threads, inner packets from the TUN,
//! datagrams from the socket. Each source is bounded per turn, so that none starves another; a batch ends when its source is
//! empty or the buffers are full, never on a timer. Only when nothing is left does the worker sleep. What happens to the
//! packets is told in `lane.rs`.
//!
//! Readiness is edge-triggered: a source that was left before it said `WouldBlock` stays marked as ready, and nobody will
//! tell again.

mod lane;

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Shared;
use super::mailbox::News;
use crate::esp::{self, Incoming, Update};
use crate::model::{DropReason, Drops, Instant};
use crate::sys::tun::{Offloads, TunQueue};
use crate::sys::udp::{ReceiveBatch, UdpSocket};
use crate::wire::natt::{self, Natt};

use lane::Lane;

/// Inner packets per turn.
const TUN_BATCH: usize = 64;

/// Octets of inner packets per turn, but for the last: four super-packets. What came in meanwhile must not wait for more.
const TUN_OCTETS: usize = 256 << 10;

/// An inner packet that makes a train by itself leaves at once: the other host opens it while the next is read and sealed.
/// Smaller ones wait for company.
const TRAIN_OCTETS: usize = 16 << 10;

/// Messages per `recvmmsg`; each may be an aggregate of 64 KiB.
const RECEIVE_BATCH: usize = 16;

/// `recvmmsg` calls per turn: as many inner packets go out per turn as come in, when nothing is aggregated.
const RECEIVE_CALLS: usize = 4;

/// How soon a socket whose buffer was full, or a full channel, is tried again. The buffer lasts longer than that at 10 Gbit/s.
const RETRY: Duration = Duration::from_millis(1);

const TUN: Token = Token(0);
const UDP: Token = Token(1);
/// What wakes the thread.
pub(super) const WAKER: Token = Token(2);

/// Why a worker gave up.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    /// The device is gone, or broken.
    #[error("reading from the TUN device: {0}")]
    Tun(#[source] io::Error),
    /// The socket is broken.
    #[error("receiving from the UDP socket: {0}")]
    Udp(#[source] io::Error),
    /// The event loop is broken.
    #[error("waiting for events: {0}")]
    Poll(#[source] io::Error),
}

/// What a worker is made of.
pub(super) struct Setup {
    pub(super) config: esp::Config,
    pub(super) tun: Box<dyn TunQueue>,
    pub(super) offloads: Offloads,
    pub(super) udp: Arc<UdpSocket>,
    pub(super) poll: Poll,
    pub(super) mailbox: Receiver<Update>,
    pub(super) news: News,
    pub(super) drops: Arc<Drops>,
    pub(super) shared: Arc<Shared>,
}

/// A worker's thread.
pub(super) struct Worker {
    poll: Poll,
    events: Events,
    tun_ready: bool,
    udp_ready: bool,
    /// The device is being removed. The kernel tells that once, and until it is done a read says that nothing is there.
    tun_going: bool,
    udp: Arc<UdpSocket>,
    receive: ReceiveBatch,
    news: News,
    lane: Lane,
}

impl Worker {
    pub(super) fn new(setup: Setup) -> io::Result<Self> {
        let Setup { config, tun, offloads, udp, poll, mailbox, news, drops, shared } = setup;
        poll.registry().register(&mut SourceFd(&tun.as_raw_fd()), TUN, Interest::READABLE)?;
        poll.registry().register(&mut SourceFd(&udp.as_raw_fd()), UDP, Interest::READABLE)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(8),
            // Unknown: a try tells.
            tun_ready: true,
            udp_ready: true,
            tun_going: false,
            udp: Arc::clone(&udp),
            receive: ReceiveBatch::new(RECEIVE_BATCH),
            news,
            lane: Lane::new(config, (tun, offloads), udp, mailbox, drops, shared),
        })
    }

    /// Works until the engine stops.
    pub(super) fn run(mut self) -> Result<(), WorkerError> {
        while !self.lane.shared.is_stopping() {
            let now = self.lane.shared.now();
            self.turn(now)?;
            self.wait(now)?;
        }
        Ok(())
    }

    fn turn(&mut self, now: Instant) -> Result<(), WorkerError> {
        if self.lane.retry(now) {
            self.lane.take_orders(now);
            self.lane.take_parcels(now);
            self.read_tun(now)?;
        }
        self.read_udp(now)?;
        self.lane.handle_timeout(now);
        if self.news.send(|| self.lane.poll_event()) {
            self.lane.shared.exchange.doorbell(self.lane.shared.exchange.control()).ring();
        }
        Ok(())
    }

    /// Reads a batch of inner packets and sends what becomes of them.
    fn read_tun(&mut self, now: Instant) -> Result<(), WorkerError> {
        let mut octets = 0;
        for _ in 0..TUN_BATCH {
            // Without room to send the device keeps its packets: that is the back-pressure.
            if octets >= TUN_OCTETS || !self.tun_ready || !self.lane.make_room(now) {
                break;
            }
            match self.lane.read_inner(now) {
                Ok(len) => {
                    octets += len;
                    if len >= TRAIN_OCTETS {
                        self.lane.flush(now);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.tun_ready = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::InvalidData => self.lane.drops.count(DropReason::InnerMalformed),
                Err(error) => return Err(WorkerError::Tun(error)),
            }
        }
        self.lane.flush(now);
        Ok(())
    }

    /// Receives batches of datagrams and writes what becomes of them to the TUN.
    fn read_udp(&mut self, now: Instant) -> Result<(), WorkerError> {
        for _ in 0..RECEIVE_CALLS {
            if !self.udp_ready {
                break;
            }
            match self.udp.receive(&mut self.receive) {
                // Otherwise the queue was empty, and the next arrival will be told.
                Ok(may_have_more) => self.udp_ready = may_have_more,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.udp_ready = false,
                    ErrorKind::Interrupted | ErrorKind::OutOfMemory => {}
                    _ => return Err(WorkerError::Udp(error)),
                },
            }
            self.lane.drops.add(DropReason::SocketFull, self.receive.lost().into());
            self.lane.drops.add(DropReason::Truncated, self.receive.unusable().into());
            let (arena, messages) = self.receive.parts();
            for message in messages {
                for (start, len) in message.datagrams() {
                    let octets = &arena[start as usize..(start + len) as usize];
                    match natt::classify(octets) {
                        Natt::Keepalive => self.lane.drops.count(DropReason::Keepalive),
                        Natt::Ike(text) => self.lane.stray_ike(message.path, text),
                        Natt::Esp(spi) => {
                            let incoming = Incoming { start, len, path: message.path, ecn: message.ecn };
                            self.lane.gather(now, spi, incoming);
                        }
                        Natt::Malformed(reason) => self.lane.drops.count(reason),
                    }
                }
            }
            self.lane.open(now, arena);
        }
        Ok(())
    }

    /// Learns what became ready. Sleeps only if nothing is left to do.
    fn wait(&mut self, now: Instant) -> Result<(), WorkerError> {
        let lane = &self.lane;
        let doorbell = lane.shared.exchange.doorbell(lane.member());
        let busy = self.udp_ready || (lane.is_clear() && self.tun_ready);
        let asleep = !busy && doorbell.sleep_unless(|| lane.shared.is_stopping() || (lane.is_clear() && lane.has_mail()));
        let timeout = if asleep { self.patience(now) } else { Some(Duration::ZERO) };
        let polled = self.poll.poll(&mut self.events, timeout);
        doorbell.awake();
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(WorkerError::Poll(error)),
        }
        for event in &self.events {
            match event.token() {
                TUN => {
                    self.tun_ready = true;
                    self.tun_going |= event.is_error();
                }
                UDP => self.udp_ready = true,
                _ => {}
            }
        }
        self.tun_ready |= self.tun_going;
        Ok(())
    }

    /// How long to sleep at most; none: until something happens.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let retry = (!self.lane.is_clear() || self.news.is_behind() || self.tun_going).then_some(RETRY);
        let timer = self.lane.poll_timeout().map(|at| at.since(now));
        [retry, timer].into_iter().flatten().min()
    }
}
