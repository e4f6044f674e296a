//! What every IKE SA works with besides its own state: configuration, chance, the two output queues and the tables of SPIs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::effect::Effect;
use super::limits::{HARD_MARGIN, LIFETIME_JITTER, NEW_SA_BURST, NEW_SA_INTERVAL, NONCE_LEN, SOFT_OCTETS, SOFT_PACKETS};
use super::{CloseReason, EndpointConfig, Event, PeerConfig, ProvedBy, Transmit};
use crate::model::{
    ChildSaParams, DropReason, Drops, IkeSpi, Instant, KeGroup, Lifetime, Path, PeerIndex, Rng, Spi, Ticket, Transport,
    WorkerIndex,
};

/// Handed to every handler.
pub struct Shared {
    pub config: EndpointConfig,
    pub rng: Box<dyn Rng + Send>,
    /// The key exchange that IKE_SA_INIT begins with; a peer that wants another one says so.
    pub first_group: KeGroup,
    pub peers: BTreeMap<PeerIndex, Arc<PeerConfig>>,
    pub drops: Drops,
    pub transmits: VecDeque<Transmit>,
    pub events: VecDeque<Event>,
    /// What a handler wants done to other IKE SAs; carried out when it has returned.
    pub effects: VecDeque<Effect>,
    /// Which IKE SA each of our inbound SPIs belongs to, from Reserve or Install to Release or Retire.
    pub spi_owners: BTreeMap<Spi, IkeSpi>,
    /// Which inbound SPI a ticket is about.
    tickets: BTreeMap<Ticket, Spi>,
    next_ticket: u64,
    /// IKE SAs on which a peer proved itself, and when; the one being handled is not among them.
    pub proven: BTreeMap<(PeerIndex, IkeSpi), Instant>,
    /// IKE SAs that a peer made by rekeying, while the collision with our own rekey is undecided.
    pub candidates: BTreeSet<IkeSpi>,
    /// When the SAs that a peer asked for are paid back.
    pub debts: BTreeMap<PeerIndex, Instant>,
    /// Which of its places an initiation to a peer begins with: the next one after each failure.
    pub places: BTreeMap<PeerIndex, usize>,
    /// The addresses that this host can be reached at, as far as somebody told.
    pub local_addresses: Vec<IpAddr>,
}

impl Shared {
    pub fn new(config: EndpointConfig, rng: Box<dyn Rng + Send>) -> Self {
        Self {
            config,
            rng,
            first_group: KeGroup::ALL[0],
            peers: BTreeMap::new(),
            drops: Drops::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            effects: VecDeque::new(),
            spi_owners: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            candidates: BTreeSet::new(),
            debts: BTreeMap::new(),
            places: BTreeMap::new(),
            local_addresses: Vec::new(),
            proven: BTreeMap::new(),
        }
    }

    /// Whether there is an IKE SA with this peer besides the one being handled.
    pub fn holds_proven(&self, peer: PeerIndex) -> bool {
        self.proven_of(peer).next().is_some()
    }

    fn proven_of(&self, peer: PeerIndex) -> impl Iterator<Item = Instant> {
        self.proven.range((peer, IkeSpi::MIN)..=(peer, IkeSpi::MAX)).map(|(_, &proved)| proved)
    }

    /// An initiation that was last asked for then has failed. If the peer proved itself since on an IKE SA of its own making,
    /// nothing did.
    pub fn initiate_failed(&mut self, peer: PeerIndex, wanted: Instant, reason: CloseReason) {
        *self.places.entry(peer).or_default() += 1;
        if !self.proven_of(peer).any(|proved| proved >= wanted) {
            self.event(Event::InitiateFailed { peer, reason });
        }
    }

    /// Whether a peer may ask for one more SA now; counts it if so.
    pub fn may_ask_for_sa(&mut self, now: Instant, peer: PeerIndex) -> bool {
        let paid_at = self.debts.entry(peer).or_default();
        let granted = paid_at.since(now) < NEW_SA_INTERVAL * NEW_SA_BURST;
        if granted {
            *paid_at = (*paid_at).max(now) + NEW_SA_INTERVAL;
        }
        granted
    }

    /// The peer did not accept our AUTH. It does not know our new key yet, or forgot the old one: the next attempt has the other.
    pub fn key_refused(&mut self, peer: PeerIndex, proof: &ProvedBy) {
        if let Some(config) = self.peers.get_mut(&peer) {
            Arc::make_mut(config).local_auth.refused(proof);
        }
    }

    /// Counts a message that is thrown away.
    pub fn drop(&self, reason: DropReason) {
        self.drops.count(reason);
    }

    pub fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub fn transmit(&mut self, path: Path, transport: Transport, message: Bytes) {
        self.transmits.push_back(Transmit { path, transport, message });
    }

    /// Sends the datagrams of one message.
    pub fn transmit_all(&mut self, path: Path, transport: Transport, datagrams: &[Bytes]) {
        for datagram in datagrams {
            self.transmit(path, transport, datagram.clone());
        }
    }

    /// A line for the log about something that was refused.
    pub fn refused(&mut self, peer: Option<PeerIndex>, path: Path, sentence: String) {
        self.event(Event::Refused { peer, path, reason: CloseReason::WeRefused(sentence) });
    }

    /// A fresh nonce.
    pub fn nonce(&mut self) -> Bytes {
        let mut nonce = vec![0; NONCE_LEN];
        self.rng.fill(&mut nonce);
        nonce.into()
    }

    /// Takes an inbound SPI for an IKE SA.
    pub fn allocate_spi(&mut self, owner: WorkerIndex, ike: IkeSpi) -> Spi {
        loop {
            let spi = Spi::random(&mut *self.rng, owner);
            if let std::collections::btree_map::Entry::Vacant(entry) = self.spi_owners.entry(spi) {
                entry.insert(ike);
                return spi;
            }
        }
    }

    /// Takes an inbound SPI and tells the data plane to park what arrives on it.
    pub fn reserve_spi(&mut self, config: &PeerConfig, owner: WorkerIndex, ike: IkeSpi) -> Spi {
        let spi = self.allocate_spi(owner, ike);
        self.event(Event::Reserve { spi, peer: config.index });
        spi
    }

    /// Gives back an SPI that never got a key.
    pub fn release_spi(&mut self, spi: Spi) {
        if self.spi_owners.remove(&spi).is_some() {
            self.event(Event::Release { spi });
        }
    }

    /// Gives back the SPI of an installed SA.
    pub fn retire_spi(&mut self, spi: Spi, at_once: bool) {
        if self.spi_owners.remove(&spi).is_some() {
            self.event(Event::Retire { spi, at_once });
        }
    }

    /// Asks the data plane to install; the ticket comes back with [`super::Command::Installed`].
    pub fn install(&mut self, child: ChildSaParams) -> Ticket {
        self.install_for(child, false)
    }

    /// The same, for the worker that owns it only or for all.
    pub fn install_for(&mut self, child: ChildSaParams, per_worker: bool) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.tickets.insert(ticket, child.inbound_spi);
        self.event(Event::Install { child: Box::new(child), per_worker, ticket });
        ticket
    }

    /// The inbound SPI that a ticket was about; each is good once.
    pub fn redeem(&mut self, ticket: Ticket) -> Option<Spi> {
        self.tickets.remove(&ticket)
    }

    /// The limits of a new CHILD_SA. The soft ones are jittered, each for itself.
    pub fn lifetime(&mut self) -> Lifetime {
        let rekey = self.config.child_rekey;
        let jitter = self.rng.jitter(rekey / LIFETIME_JITTER);
        let mut shortened = |limit: u64| limit - self.rng.u64() % (limit / u64::from(LIFETIME_JITTER));
        Lifetime {
            soft: rekey.saturating_sub(jitter),
            hard: hard(rekey),
            soft_packets: shortened(SOFT_PACKETS),
            soft_octets: shortened(SOFT_OCTETS),
        }
    }

    /// When a new IKE SA is to be rekeyed, and when it ends if that fails.
    pub fn ike_lifetime(&mut self, now: Instant) -> (Instant, Instant) {
        let rekey = self.config.ike_rekey;
        let jitter = self.rng.jitter(rekey / LIFETIME_JITTER);
        (now + rekey.saturating_sub(jitter), now + hard(rekey))
    }
}

/// When what is to be rekeyed after this time ends, replaced or not.
fn hard(rekey: std::time::Duration) -> std::time::Duration {
    rekey + HARD_MARGIN.max(rekey / LIFETIME_JITTER)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ike::simulator::endpoint_config;
    use crate::model::SeededRng;

    #[test]
    fn limits_are_jittered_and_leave_time_for_retries() {
        for (rekey, margin) in [(20, 60), (3600, 360)] {
            let config = EndpointConfig { child_rekey: Duration::from_secs(rekey), ..endpoint_config() };
            let mut shared = Shared::new(config, Box::new(SeededRng::new(1)));
            let all: Vec<Lifetime> = (0..200).map(|_| shared.lifetime()).collect();
            let spread = |read: fn(&Lifetime) -> f64, limit: f64| {
                let (least, most) = all.iter().map(read).fold((limit, 0.0f64), |(a, b), value| (a.min(value), b.max(value)));
                assert!(
                    least < limit * 0.92 && least >= limit * 0.9 && most > limit * 0.98 && most <= limit,
                    "{least} {most}"
                );
            };
            spread(|lifetime| lifetime.soft.as_secs_f64(), rekey as f64);
            spread(|lifetime| lifetime.soft_packets as f64, SOFT_PACKETS as f64);
            spread(|lifetime| lifetime.soft_octets as f64, SOFT_OCTETS as f64);
            assert!(all.iter().all(|lifetime| lifetime.hard == Duration::from_secs(rekey + margin)));
        }
    }
}
