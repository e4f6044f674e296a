//! One thread's way to the others: packs strays into parcels of its own pool and hands them over.

use std::mem;
use std::sync::Arc;

use super::Shared;
use super::exchange::{Content, Member, Parcel, Pool};
use crate::model::{DropReason, Drops, Path, Transport};

/// Parcels per worker: two batches from the TUN may be under way.
const WORKER_POOL: usize = 128;

/// Parcels of the control thread, whose strays are rare: datagrams that came before steering worked, and aggregates that begin
/// with the non-ESP marker.
const CONTROL_POOL: usize = 32;

/// How many parcels a member owns.
pub(super) const fn pool_size(member: Member, workers: usize) -> usize {
    if member < workers { WORKER_POOL } else { CONTROL_POOL }
}

/// The sending side of a member.
pub(super) struct Forwarder {
    member: Member,
    shared: Arc<Shared>,
    pool: Pool,
    drops: Arc<Drops>,
    /// A parcel of ESP datagrams that may take more.
    open: Option<(Member, Box<Parcel>)>,
}

impl Forwarder {
    /// `drops` belongs to the thread that uses this.
    pub(super) fn new(member: Member, shared: Arc<Shared>, drops: Arc<Drops>) -> Self {
        let pool = Pool::new(member, pool_size(member, shared.exchange.workers()));
        Self { member, shared, pool, drops, open: None }
    }

    /// A buffer to read into, before any was sent.
    ///
    /// # Panics
    /// If the pool is empty, which it is not at the start.
    pub(super) fn first_buffer(&mut self) -> Box<Parcel> {
        self.pool.take(&self.shared.exchange).expect("a new pool is full")
    }

    /// Hands over the inner packet or super-packet that `buffer` holds, and leaves an empty one in its place.
    pub(super) fn inner(&mut self, to: Member, buffer: &mut Box<Parcel>) {
        self.shared.exchange.count_inner(self.member);
        let Some(empty) = self.pool.take(&self.shared.exchange) else {
            return self.drops.count(DropReason::QueueFull);
        };
        let parcel = mem::replace(buffer, empty);
        self.send(to, parcel);
    }

    /// Hands over an IKE message, copied.
    pub(super) fn ike(&mut self, path: Path, transport: Transport, message: &[u8]) {
        let Some(mut parcel) = self.pool.take(&self.shared.exchange) else {
            return self.drops.count(DropReason::QueueFull);
        };
        parcel.content = Content::Ike { path, transport };
        // It came in one UDP datagram, so it fits.
        parcel.append(message);
        self.send(self.shared.exchange.control(), parcel);
    }

    /// Hands over an ESP datagram, copied. It may share its parcel with its neighbours: call [`flush`](Self::flush) after the
    /// last.
    pub(super) fn outer(&mut self, to: Member, path: Path, ecn: u8, octets: &[u8]) {
        self.shared.exchange.count_outer(self.member);
        if let Some((member, parcel)) = &mut self.open
            && *member == to
            && let Content::Outer { path: its_path, ecn: its_ecn, stride } = parcel.content
            && (its_path, its_ecn) == (path, ecn)
            && (1..=stride).contains(&octets.len())
            && parcel.len.is_multiple_of(stride)
            && parcel.append(octets)
        {
            return;
        }
        self.flush();
        let Some(mut parcel) = self.pool.take(&self.shared.exchange) else {
            return self.drops.count(DropReason::QueueFull);
        };
        parcel.content = Content::Outer { path, ecn, stride: octets.len() };
        parcel.append(octets);
        self.open = Some((to, parcel));
    }

    /// Sends what is packed.
    pub(super) fn flush(&mut self) {
        if let Some((to, parcel)) = self.open.take() {
            self.send(to, parcel);
        }
    }

    fn send(&mut self, to: Member, parcel: Box<Parcel>) {
        if let Err(parcel) = self.shared.exchange.send(to, parcel) {
            self.pool.put(parcel);
            self.drops.count(DropReason::QueueFull);
        }
    }
}
