//! The worker's send arena: where packets are written in clear, sealed in place, and sent from.
//!
//! What `handle_inner` writes is plaintext until [`Outbox::seal`] ran over it, so [`Outbox::datagrams`] shows sealed ones only:
//! forgetting to seal sends nothing.

use std::fmt;

use crate::crypto::{Aead, BatchItem, ICV_LEN};
use crate::model::Path;
use crate::wire::icmp;

use super::sas::SaRef;

/// Too-big answers per turn: one wakes a sender up, and the rate limit behind it is lower still.
const MAX_REPLIES: usize = 16;

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
pub struct Outbox {
    buffer: Box<[u8]>,
    used: usize,
    datagrams: Vec<Outgoing>,
    max_datagrams: usize,
    /// How many of `datagrams` are sealed: they come first.
    sealed: usize,
    pending: Vec<Pending>,
    /// The items of one SA, while they are sealed.
    train: Vec<BatchItem>,
    /// What the next packet may need; the data plane says it, as it depends on the peers' paths.
    reserve: Room,
    replies: Box<[u8]>,
    reply_ends: Vec<u32>,
}

/// Octets and datagrams of an outbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Octets of the buffer.
    pub octets: usize,
    /// Entries in the list of datagrams.
    pub datagrams: usize,
}

/// A datagram that lies in clear and waits for its ICV.
#[derive(Clone, Copy, Debug)]
struct Pending {
    sa: SaRef,
    /// Its place in the list of datagrams.
    datagram: u32,
    item: BatchItem,
}

impl Outbox {
    /// An arena of so many octets for so many datagrams; it never grows.
    ///
    /// # Panics
    /// If offsets into it would not fit 32 bits.
    #[must_use]
    pub fn new(octets: usize, datagrams: usize) -> Self {
        assert!(u32::try_from(octets).is_ok(), "an outbox of 4 GiB");
        Self {
            buffer: vec![0; octets].into(),
            used: 0,
            datagrams: Vec::with_capacity(datagrams),
            max_datagrams: datagrams,
            sealed: 0,
            pending: Vec::with_capacity(datagrams),
            train: Vec::with_capacity(datagrams),
            reserve: Room::default(),
            replies: vec![0; MAX_REPLIES * icmp::MAX_ANSWER_LEN].into(),
            reply_ends: Vec::with_capacity(MAX_REPLIES),
        }
    }

    /// Whether a full-sized inner packet (with its fragments) still fits: if not, send and clear first.
    ///
    /// How much that is depends on the TUN's MTU and on the narrowest path, which the last [`DataPlane`](super::DataPlane) that
    /// wrote here told. An empty outbox always has room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.datagrams.is_empty() || self.fits(self.reserve)
    }

    /// The sealed datagrams (after [`DataPlane::seal_pending`](super::DataPlane::seal_pending)), in the order to be sent, and
    /// the buffer they lie in.
    #[must_use]
    pub fn datagrams(&self) -> (&[Outgoing], &[u8]) {
        (&self.datagrams[..self.sealed], &self.buffer)
    }

    /// Inner packets for this host's own TUN: ICMP and ICMPv6 too-big answers.
    pub fn replies(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.reply_ends.iter().copied());
        starts.zip(&self.reply_ends).map(|(start, &end)| &self.replies[start as usize..end as usize])
    }

    /// Forgets everything; keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.sealed = 0;
        self.datagrams.clear();
        self.pending.clear();
        self.reply_ends.clear();
    }

    /// Whether so much still fits.
    pub(super) fn fits(&self, room: Room) -> bool {
        self.datagrams.len() + room.datagrams <= self.max_datagrams && self.used + room.octets <= self.buffer.len()
    }

    /// Says what the next packet may need at most.
    pub(super) const fn set_reserve(&mut self, reserve: Room) {
        self.reserve = reserve;
    }

    /// Adds a datagram of `len` octets and gives its octets to be written; [`commit`](Self::commit) must follow. The caller saw
    /// to it that it fits.
    pub(super) fn push(&mut self, len: usize, path: Path, ecn: u8) -> &mut [u8] {
        let start = self.used;
        self.used += len;
        self.datagrams.push(Outgoing { start: start as u32, len: len as u32, path, ecn });
        &mut self.buffer[start..self.used]
    }

    /// Says how the datagram that was pushed last is to be sealed: `item` counts from its first octet.
    pub(super) fn commit(&mut self, sa: SaRef, mut item: BatchItem) {
        let datagram = self.datagrams.len() - 1;
        let start = self.datagrams[datagram].start;
        item.start += start;
        item.end += start;
        self.pending.push(Pending { sa, datagram: datagram as u32, item });
    }

    /// Lets `write` put a packet into the replies; it says its length, or none to leave it.
    pub(super) fn reply(&mut self, write: impl FnOnce(&mut [u8; icmp::MAX_ANSWER_LEN]) -> Option<usize>) {
        let start = self.reply_ends.last().map_or(0, |&end| end as usize);
        let Some(space) = self.replies[start..].first_chunk_mut() else { return };
        if self.reply_ends.len() < MAX_REPLIES
            && let Some(len) = write(space)
        {
            self.reply_ends.push((start + len) as u32);
        }
    }

    /// Seals what is pending, one train per SA. An SA that is gone by now takes its datagrams with it: says how many.
    pub(super) fn seal<'a>(&mut self, aead: impl Fn(SaRef) -> Option<&'a dyn Aead>) -> usize {
        let mut lost = 0;
        // Trains of one SA: the order of sealing is free, the order of sending stays that of `datagrams`.
        self.pending.sort_unstable_by_key(|pending| pending.sa);
        for run in self.pending.chunk_by(|a, b| a.sa == b.sa) {
            if let Some(aead) = aead(run[0].sa) {
                self.train.clear();
                self.train.extend(run.iter().map(|pending| pending.item));
                aead.seal_batch(&mut self.buffer, &self.train);
            } else {
                for pending in run {
                    // The plaintext must not stay where sealed datagrams are taken from.
                    self.buffer[pending.item.start as usize..pending.item.end as usize + ICV_LEN].fill(0);
                    self.datagrams[pending.datagram as usize].len = 0;
                }
                lost += run.len();
            }
        }
        if lost > 0 {
            self.datagrams.retain(|datagram| datagram.len > 0);
        }
        self.pending.clear();
        self.sealed = self.datagrams.len();
        lost
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, datagrams, sealed) = (self.used, self.datagrams.len(), self.sealed);
        write!(f, "Outbox({used} of {} octets, {datagrams} datagrams, {sealed} sealed)", self.buffer.len())
    }
}
