//! The worker's SAs: found by SPI on the way in, by peer on the way out.
//!
//! One slot per CHILD_SA in three parallel lists: what every inbound packet touches, what every outbound packet touches, and
//! the rest. Slots are used again; the serial number of a [`SaRef`] tells one tenant from the next.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::inbound::InboundSa;
use super::outbound::OutboundSa;
use super::path::InnerMtu;
use crate::model::{Instant, PeerIndex, Spi};

/// A hash map under small integers.
pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<IntegerHasher>>;

/// Multiplies by 2^64/φ. Good for SPIs (random, and chosen by us) and peer indexes (dense): nobody outside picks the keys
/// that are stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct IntegerHasher(u64);

impl Hasher for IntegerHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        for &octet in octets {
            self.write_u32(octet.into());
        }
    }

    fn write_u32(&mut self, value: u32) {
        let mixed = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The map takes its bucket from the low bits, which a product mixes least.
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A place in the table and who lived there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SaRef {
    slot: u32,
    serial: u32,
}

/// What no packet needs.
#[derive(Debug)]
pub struct ColdSa {
    /// Whose packets it carries.
    pub peer: PeerIndex,
    /// Its name between the control thread and us.
    pub spi: Spi,
    /// When it ends, replaced or not.
    pub hard_at: Instant,
    /// When the inbound half ends, once retired.
    pub grace_until: Option<Instant>,
    /// Whether `SoftExpired` was told.
    pub soft_told: bool,
    /// Whether `HardExpired` was told.
    pub hard_told: bool,
    /// When the next `AddressSeen` may be told.
    pub next_address: Instant,
}

impl ColdSa {
    /// Nothing told yet, nothing retired.
    #[must_use]
    pub const fn new(peer: PeerIndex, spi: Spi, hard_at: Instant) -> Self {
        Self { peer, spi, hard_at, grace_until: None, soft_told: false, hard_told: false, next_address: Instant::ORIGIN }
    }

    /// When something of it ends.
    #[must_use]
    pub fn ends_at(&self) -> Instant {
        self.grace_until.map_or(self.hard_at, |grace| grace.min(self.hard_at))
    }
}

/// What a packet to a peer needs to know.
#[derive(Debug)]
pub struct Peer {
    /// The SA to send with.
    pub active: Option<u32>,
    /// All SAs with an outbound half, oldest first.
    pub outbound: Vec<u32>,
    /// The largest inner packets that its path carries.
    pub mtu: InnerMtu,
    /// Whether somebody measured that.
    pub is_measured: bool,
    /// When the next `WantSa` may be told.
    pub next_want: Instant,
}

impl Peer {
    /// A peer without SAs.
    #[must_use]
    pub const fn new(mtu: InnerMtu) -> Self {
        Self { active: None, outbound: Vec::new(), mtu, is_measured: false, next_want: Instant::ORIGIN }
    }
}

/// All SAs of a worker.
#[derive(Debug, Default)]
pub struct SaTable {
    by_spi: FastMap<u32, u32>,
    inbound: Vec<Option<InboundSa>>,
    outbound: Vec<Option<OutboundSa>>,
    cold: Vec<Option<ColdSa>>,
    serials: Vec<u32>,
    free: Vec<u32>,
    /// When each SA ends, the first in front.
    ends: BTreeSet<(Instant, u32)>,
}

impl SaTable {
    /// Puts both halves into a slot.
    pub fn insert(&mut self, inbound: InboundSa, outbound: OutboundSa, cold: ColdSa) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.inbound.push(None);
            self.outbound.push(None);
            self.cold.push(None);
            self.serials.push(0);
            self.serials.len() as u32 - 1
        });
        let place = slot as usize;
        self.by_spi.insert(cold.spi.value(), slot);
        self.ends.insert((cold.ends_at(), slot));
        self.inbound[place] = Some(inbound);
        self.outbound[place] = Some(outbound);
        self.cold[place] = Some(cold);
        self.serials[place] = self.serials[place].wrapping_add(1);
        slot
    }

    /// The slot of our inbound SPI.
    #[must_use]
    pub fn slot(&self, spi: Spi) -> Option<u32> {
        self.by_spi.get(&spi.value()).copied()
    }

    /// Names the tenant of a slot for later.
    #[must_use]
    pub fn reference(&self, slot: u32) -> SaRef {
        SaRef { slot, serial: self.serials[slot as usize] }
    }

    /// The outbound half, if it is still the same SA's.
    #[must_use]
    pub fn outbound_of(&self, sa: SaRef) -> Option<&OutboundSa> {
        let same = self.serials[sa.slot as usize] == sa.serial;
        self.outbound[sa.slot as usize].as_ref().filter(|_| same)
    }

    /// Both halves and the rest.
    pub fn parts(&mut self, slot: u32) -> (Option<&mut InboundSa>, Option<&mut OutboundSa>, Option<&mut ColdSa>) {
        let place = slot as usize;
        (self.inbound[place].as_mut(), self.outbound[place].as_mut(), self.cold[place].as_mut())
    }

    /// Removes the outbound half; its key is wiped as far as its library does that.
    pub fn remove_outbound(&mut self, slot: u32) {
        self.outbound[slot as usize] = None;
    }

    /// Removes what is left and frees the slot.
    pub fn remove(&mut self, slot: u32) {
        let place = slot as usize;
        self.inbound[place] = None;
        self.outbound[place] = None;
        if let Some(cold) = self.cold[place].take() {
            self.by_spi.remove(&cold.spi.value());
            self.ends.remove(&(cold.ends_at(), slot));
            self.free.push(slot);
        }
    }

    /// Ends a retired SA by then; one that was retired before keeps its time. Says when.
    pub fn end_by(&mut self, slot: u32, until: Instant) -> Option<Instant> {
        let cold = self.cold[slot as usize].as_mut()?;
        self.ends.remove(&(cold.ends_at(), slot));
        let until = *cold.grace_until.get_or_insert(until);
        self.ends.insert((cold.ends_at(), slot));
        Some(until)
    }

    /// When the first of them ends.
    #[must_use]
    pub fn first_end(&self) -> Option<Instant> {
        self.ends.first().map(|&(at, _)| at)
    }

    /// An SA that has ended by now.
    #[must_use]
    pub fn ended(&self, now: Instant) -> Option<u32> {
        self.ends.first().filter(|&&(at, _)| at <= now).map(|&(_, slot)| slot)
    }
}
