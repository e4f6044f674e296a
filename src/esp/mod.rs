//! The data plane: ESP in tunnel mode (RFC 4303) inside UDP (RFC 3948), as a machine without sockets or clock.
//!
//! One [`DataPlane`] belongs to one worker and to nobody else: it holds that worker's SAs, the shared routes and the peers'
//! path MTUs. Outbound packets go route -> SA -> selectors -> size -> ECN -> seal, straight into the caller's [`Outbox`].
//! Inbound datagrams go SPI -> replay check -> open in place -> replay accept -> selectors and routes -> ECN, and leave ranges of
//! the caller's receive buffer in the caller's [`Inbox`]. Nothing here allocates per packet.

mod replay;
mod routes;
mod update;

pub use routes::{Route, RouteTable};
pub use update::{Event, SaCounters, Update};

use std::sync::Arc;

use crate::crypto::Provider;
use crate::model::{DropReason, Drops, Instant, Path, WorkerIndex};

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

/// A datagram ready to be sent: a range of the [`Outbox`]'s buffer.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// First octet.
    pub start: u32,
    /// Length in octets.
    pub len: u32,
    /// From where to where.
    pub path: Path,
    /// The outer ECN bits (0 to 3); the rest of the outer TOS is zero.
    pub ecn: u8,
}

/// The worker's send arena: datagrams are sealed into it back to back and taken out by the engine, which then clears it.
#[derive(Debug)]
pub struct Outbox {
    _todo: (),
}

impl Outbox {
    /// An arena of so many octets for so many datagrams; it never grows.
    #[must_use]
    pub fn new(octets: usize, datagrams: usize) -> Self {
        todo!("{octets} {datagrams}")
    }

    /// Whether a full-sized inner packet (with its fragments) still fits: if not, send and clear first.
    #[must_use]
    pub fn has_room(&self) -> bool {
        todo!()
    }

    /// The sealed datagrams (after [`DataPlane::seal_pending`]), in the order to be sent, and the buffer they lie in.
    #[must_use]
    pub fn datagrams(&self) -> (&[Outgoing], &[u8]) {
        todo!()
    }

    /// Inner packets for this host's own TUN: ICMP and ICMPv6 too-big answers.
    pub fn replies(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }

    /// Forgets everything; keeps the memory.
    pub fn clear(&mut self) {
        todo!()
    }
}

/// A received datagram: a range of the caller's receive buffer that holds one ESP packet, without UDP header.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// First octet: the SPI.
    pub start: u32,
    /// Length in octets.
    pub len: u32,
    /// Between which addresses it came.
    pub path: Path,
    /// The outer ECN bits (0 to 3).
    pub ecn: u8,
}

/// What came out of a batch of datagrams: ranges of the receive buffer that hold inner packets, and strays.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Inner packets, in order: start and length in the receive buffer.
    pub packets: Vec<(u32, u32)>,
    /// Datagrams that belong to another worker, untouched.
    pub strays: Vec<(WorkerIndex, Incoming)>,
    /// Datagrams whose SPI this worker should have, but does not: drain the mailbox and hand them in once more; the second
    /// time they are dropped. Empty when `last_try` was given.
    pub unknown: Vec<Incoming>,
}

/// One worker's data plane.
#[derive(Debug)]
pub struct DataPlane {
    _todo: (),
}

impl DataPlane {
    /// An empty one: no SAs, no routes. `drops` is shared with whoever shows the counters; this is its only writer.
    #[must_use]
    pub fn new(config: Config, drops: Arc<Drops>) -> Self {
        todo!("{config:?} {drops:?}")
    }

    /// Takes an update of the control thread over; takes effect at once. What was parked for it is put into `outbox` or, for
    /// inbound, into `released` as whole ESP datagrams to be handed in again.
    pub fn handle_update(
        &mut self,
        now: Instant,
        update: Update,
        outbox: &mut Outbox,
        released: &mut Vec<(Path, u8, Vec<u8>)>,
    ) {
        todo!("{now:?} {update:?} {outbox:?} {released:?}")
    }

    /// Takes one inner packet from the TUN: whole, with its checksums computed.
    pub fn handle_inner(&mut self, now: Instant, packet: &[u8], outbox: &mut Outbox) -> Outcome {
        todo!("{now:?} {packet:?} {outbox:?}")
    }

    /// Seals what `handle_inner` put into the outbox, one batch per SA. Call before sending.
    pub fn seal_pending(&mut self, outbox: &mut Outbox) {
        todo!("{outbox:?}")
    }

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
        todo!("{now:?} {buffer:?} {datagrams:?} {last_try} {inbox:?}")
    }

    /// Ends grace times, hard lifetimes and parked packets that waited too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        todo!("{now:?}")
    }

    /// When `handle_timeout` wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }

    /// News for the control thread, oldest first. Level-triggered: what is not fetched may coalesce, never grow.
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }
}
