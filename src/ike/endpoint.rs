//! The endpoint: every IKE SA of this host, and the doors in and out.
//!
//! Each door takes one IKE SA out of the table, hands it the input, puts back what it became, and then carries out what it wanted
//! done to others ([`Effect`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::cookie::CookieJar;
use super::effect::Effect;
use super::known_inits::KnownInits;
use super::session::Packet;
use super::shared::Shared;
use super::state::{IkeSa, InitSent, Initiating, Job};
use super::table::Table;
use super::{ChildSummary, CloseReason, Command, EndpointConfig, Event, IkeSummary, PeerConfig, Transmit};
use crate::model::{Drops, IkeSpi, Instant, PeerIndex, Rng, Spi, Ticket};

/// See the module.
///
/// The order of what comes out matters: carry out every event before sending what `poll_transmit` has.
pub struct Endpoint {
    pub(super) shared: Shared,
    pub(super) table: Table,
    pub(super) known_inits: KnownInits,
    pub(super) cookies: CookieJar,
    pub(super) hinted: BTreeMap<PeerIndex, Instant>,
    pub(super) next_courtesy: Instant,
    now: Instant,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({} peers, {} IKE SAs)", self.shared.peers.len(), self.table.len())
    }
}

impl Endpoint {
    /// An endpoint without peers.
    #[must_use]
    pub fn new(config: EndpointConfig, rng: Box<dyn Rng + Send>) -> Self {
        Self {
            cookies: CookieJar::default(),
            shared: Shared::new(config, rng),
            table: Table::default(),
            known_inits: KnownInits::default(),
            hinted: BTreeMap::new(),
            next_courtesy: Instant::ORIGIN,
            now: Instant::ORIGIN,
        }
    }

    /// Adds a peer, or replaces its configuration. What is up keeps what it was made with: close it if that must not be.
    pub fn upsert_peer(&mut self, config: PeerConfig) {
        self.shared.peers.insert(config.index, Arc::new(config));
    }

    /// Forgets a peer. Its SAs are deleted, and the peer is told.
    pub fn remove_peer(&mut self, peer: PeerIndex) {
        let now = self.now;
        self.close(now, peer);
        self.shared.peers.remove(&peer);
        self.hinted.remove(&peer);
        self.shared.debts.remove(&peer);
        self.shared.places.remove(&peer);
    }

    /// Does what is due. Call it when [`poll_timeout`](Self::poll_timeout) says so; earlier does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some(spi) = self.table.due(now) {
            self.with(now, spi, |sa, shared| sa.handle_timeout(shared, now));
        }
    }

    /// Carries out a command.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        self.now = now;
        match command {
            Command::Initiate(peer) => self.initiate(now, peer),
            Command::Probe(peer) => self.with_newest(now, peer, |state, shared| state.probe(shared, now)),
            Command::RekeyIke(peer) => self.with_newest(now, peer, |state, shared| {
                state.enqueue(Job::RekeyIke);
                state.pump(shared, now);
            }),
            Command::CreateChild(peer) => self.with_newest(now, peer, |state, shared| {
                state.enqueue(Job::CreateChild);
                state.pump(shared, now);
            }),
            Command::CreateWorkerChild(peer, worker) => {
                self.with_newest(now, peer, |state, shared| state.want_worker_child(shared, now, worker));
            }
            Command::RetireWorkerChild(spi) => {
                self.with_owner(now, spi, |state, shared| state.retire_worker_child(shared, now, spi));
            }
            Command::RekeyChild(spi) => self.with_owner(now, spi, |state, shared| {
                state.enqueue(Job::RekeyChild(spi));
                state.pump(shared, now);
            }),
            Command::ChildExpired(spi) => self.with_owner(now, spi, |state, shared| {
                state.enqueue(Job::DeleteChild(spi));
                state.enqueue(Job::CreateChild);
                state.pump(shared, now);
            }),
            Command::InboundUsed(spi) => {
                self.with_owner(now, spi, |state, shared| state.inbound_used(shared, spi));
            }
            Command::Heard(spi, at) => self.heard(now, spi, at),
            Command::AddressSeen(spi, path) => {
                self.with_owner(now, spi, |state, shared| state.address_seen(shared, now, spi, path));
            }
            Command::Places { addresses, moves } => {
                self.shared.local_addresses = addresses;
                for (peer, gone, local) in moves {
                    self.with_all(now, Some(peer), |state, shared| state.local_moved(shared, now, gone, local));
                }
                self.with_all(now, None, |state, shared| state.addresses_changed(shared, now));
            }
            Command::Installed(ticket) => self.installed(now, ticket),
            Command::Close(peer) => self.close(now, peer),
            Command::Revoke(peer) => self.revoke(now, peer),
        }
    }

    /// The next datagram to be sent. Ask after every `handle_*`, and after [`poll_event`](Self::poll_event) is empty: a message may
    /// announce an SPI that an event reserves.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.shared.transmits.pop_front()
    }

    /// The next event. Ask after every `handle_*`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.shared.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.poll_timeout()
    }

    /// What was thrown away, by reason.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.shared.drops
    }

    /// The IKE SAs of a peer that are up.
    #[must_use]
    pub fn ike_sas(&self, peer: PeerIndex) -> Vec<IkeSummary> {
        self.table.established_of(peer).map(|state| state.summary()).collect()
    }

    /// The CHILD_SAs of a peer.
    #[must_use]
    pub fn children(&self, peer: PeerIndex) -> Vec<ChildSummary> {
        let children = self.table.established_of(peer).flat_map(|state| state.children.values());
        children.filter_map(super::child::Child::summary).collect()
    }

    /// How many IKE SAs exist in any state, half-open and closed ones included: bounded by the peers and the half-open limit.
    #[must_use]
    pub fn ike_sa_count(&self) -> usize {
        self.table.len()
    }

    /// How many half-open IKE SAs this source made (an IPv4 address, or an IPv6 /64).
    #[must_use]
    pub fn half_open(&self, source: IpAddr) -> usize {
        self.table.half_open_of(source)
    }

    /// How many inbound SPIs are reserved or in use: one for each CHILD_SA, once nothing is under way.
    #[must_use]
    pub fn inbound_spi_count(&self) -> usize {
        self.shared.spi_owners.len()
    }

    // --- one IKE SA at a time ---

    /// Takes an IKE SA, lets it become what it becomes, and carries out its wishes. False if there is none.
    pub(super) fn with(
        &mut self,
        now: Instant,
        spi: IkeSpi,
        handle: impl FnOnce(IkeSa, &mut Shared) -> Option<IkeSa>,
    ) -> bool {
        let Some(sa) = self.take(spi) else { return false };
        let (peer, was_up, probing) = match &sa {
            IkeSa::Established(state) => (Some(state.peer()), true, state.is_probing()),
            other => (other.peer(), false, false),
        };
        if let Some(sa) = handle(sa, &mut self.shared) {
            self.put(spi, sa);
        }
        self.carry_out(now);
        if let Some(peer) = peer.filter(|_| was_up && self.table.established(spi).is_none()) {
            self.survive(now, peer, spi, probing);
        }
        true
    }

    fn take(&mut self, spi: IkeSpi) -> Option<IkeSa> {
        let sa = self.table.take(spi);
        if let Some(IkeSa::Established(state)) = &sa {
            self.shared.proven.remove(&(state.peer(), spi));
        }
        sa
    }

    fn put(&mut self, spi: IkeSpi, sa: IkeSa) {
        if let IkeSa::Established(state) = &sa {
            self.shared.proven.insert((state.peer(), spi), state.birth.lineage.proved);
        }
        self.table.put(spi, sa);
    }

    /// Inserts a new IKE SA.
    pub(super) fn insert(&mut self, spi: IkeSpi, sa: IkeSa) {
        self.put(spi, sa);
    }

    /// Does something to an IKE SA that is up.
    fn with_established(
        &mut self,
        now: Instant,
        spi: IkeSpi,
        act: impl FnOnce(&mut super::state::Established, &mut Shared),
    ) {
        if self.table.established(spi).is_none() {
            return;
        }
        self.with(now, spi, |sa, shared| match sa {
            IkeSa::Established(mut state) => {
                act(&mut state, shared);
                Some(IkeSa::Established(state))
            }
            other => Some(other),
        });
    }

    /// The same, for the IKE SA of a peer that will stay.
    fn with_newest(&mut self, now: Instant, peer: PeerIndex, act: impl FnOnce(&mut super::state::Established, &mut Shared)) {
        let newest = self
            .table
            .established_of(peer)
            .max_by_key(|state| (state.replacement.is_none(), state.since))
            .map(|state| state.session.local_spi);
        if let Some(spi) = newest {
            self.with_established(now, spi, act);
        }
    }

    /// The same, for all IKE SAs of a peer, or of everybody.
    fn with_all(
        &mut self,
        now: Instant,
        peer: Option<PeerIndex>,
        act: impl Fn(&mut super::state::Established, &mut Shared),
    ) {
        let peers: Vec<PeerIndex> = match peer {
            Some(peer) => vec![peer],
            None => self.shared.peers.keys().copied().collect(),
        };
        let spis: Vec<IkeSpi> = peers.into_iter().flat_map(|peer| self.table.of_peer(peer)).collect();
        for spi in spis {
            self.with_established(now, spi, &act);
        }
    }

    /// The same, for the IKE SA that a CHILD_SA belongs to.
    fn with_owner(&mut self, now: Instant, child: Spi, act: impl FnOnce(&mut super::state::Established, &mut Shared)) {
        if let Some(&spi) = self.shared.spi_owners.get(&child) {
            self.with_established(now, spi, act);
        }
    }

    // --- commands ---

    fn initiate(&mut self, now: Instant, peer: PeerIndex) {
        let Some(config) = self.shared.peers.get(&peer).map(Arc::clone) else { return };
        let mut all = self.table.of_peer(peer).into_iter();
        if let Some(open) = all.find(|&spi| self.table.peek(spi).is_some_and(IkeSa::is_initiating)) {
            self.with(now, open, |mut sa, _| {
                sa.want(now);
                Some(sa)
            });
            return;
        }
        self.call(now, config, 0, now);
    }

    /// Sends IKE_SA_INIT to the first, or to another place of a peer's.
    fn call(&mut self, now: Instant, config: Arc<PeerConfig>, tried: usize, wanted: Instant) {
        let peer = config.index;
        match InitSent::start(&mut self.shared, now, config, tried, wanted) {
            Some(state) => self.insert(state.local_spi, IkeSa::Initiating(Box::new(Initiating::new(state)))),
            None => {
                let reason = CloseReason::WeRefused("the peer has no configured address: it must call us".to_owned());
                self.shared.event(Event::InitiateFailed { peer, reason });
            }
        }
    }

    fn installed(&mut self, now: Instant, ticket: Ticket) {
        let Some(child) = self.shared.redeem(ticket) else { return };
        let owner = self.shared.spi_owners.get(&child).copied();
        self.with_owner(now, child, |state, shared| state.installed(shared, now, child, ticket));
        let peer = owner.and_then(|spi| self.table.established(spi)).map(super::state::Established::peer);
        for spi in peer.map(|peer| self.table.of_peer(peer)).unwrap_or_default() {
            self.prefer_winner(spi);
        }
    }

    /// The peer sends ESP. Mostly nothing waits for it, and nothing is to do.
    fn heard(&mut self, now: Instant, child: Spi, at: Instant) {
        let owner = self.shared.spi_owners.get(&child).and_then(|&spi| self.table.established(spi));
        if owner.is_some_and(|state| state.session.is_busy()) {
            self.with_owner(now, child, |state, _| state.session.heard(at));
        }
    }

    /// Ends everything with a peer, telling it.
    fn close(&mut self, now: Instant, peer: PeerIndex) {
        for spi in self.table.of_peer(peer) {
            self.with(now, spi, |sa, shared| match sa {
                IkeSa::Established(state) => state.close(shared, now, CloseReason::Closed),
                IkeSa::Initiating(state) => state.close(shared, now),
                other => Some(other),
            });
        }
    }

    /// Ends what a peer could not begin today.
    fn revoke(&mut self, now: Instant, peer: PeerIndex) {
        let Some(config) = self.shared.peers.get(&peer).map(Arc::clone) else { return };
        for spi in self.table.of_peer(peer) {
            let proof = self.table.established(spi).map(|state| &state.birth.proved_by.theirs);
            let Some(revoked) = proof.filter(|proof| !config.remote_auth.accepts(proof)).cloned() else { continue };
            self.with(now, spi, |sa, shared| match sa {
                IkeSa::Established(state) => {
                    let why = format!("the peer proved itself with its {revoked}, which is not pinned any more");
                    state.close(shared, now, CloseReason::WeRefused(why))
                }
                other => Some(other),
            });
        }
    }

    // --- wishes ---

    fn carry_out(&mut self, now: Instant) {
        while let Some(effect) = self.shared.effects.pop_front() {
            match effect {
                Effect::Insert(spi, sa) => self.insert(spi, sa),
                Effect::Inherit { heir, estate } => self.inherit(now, heir, *estate),
                Effect::Confirm(spi) => self.with_established(now, spi, |state, shared| {
                    state.silent_until = None;
                    state.pump(shared, now);
                }),
                Effect::Settle { spi, initial_contact } => self.settle(now, spi, initial_contact),
                Effect::Reinitiate(peer) => self.initiate(now, peer),
                Effect::TryNext { peer, tried, wanted } => {
                    if let Some(config) = self.shared.peers.get(&peer).map(Arc::clone) {
                        self.call(now, config, tried, wanted);
                    }
                }
            }
        }
    }

    /// Lets an IKE SA take over what its predecessor had; if it is gone, so is everything.
    fn inherit(&mut self, now: Instant, heir: IkeSpi, estate: super::state::Estate) {
        let (from, peer) = (estate.from, estate.peer);
        match self.take(heir) {
            Some(IkeSa::Candidate(candidate)) => {
                let mut state = Box::new(candidate.inherit(&mut self.shared, now, estate));
                state.announce(&mut self.shared);
                self.shared.event(Event::IkeDown { peer, spi: from, reason: CloseReason::Replaced });
                state.pump(&mut self.shared, now);
                self.put(heir, IkeSa::Established(state));
                self.rename_winner(from, heir, peer);
            }
            other => {
                for child in estate.children.into_values() {
                    child.retire(&mut self.shared, false);
                }
                self.shared.event(Event::IkeDown { peer, spi: from, reason: CloseReason::PeerDeleted });
                if let Some(sa) = other {
                    self.put(heir, sa);
                }
            }
        }
    }

    /// Hands a message to the IKE SA that it names. False if there is none.
    pub(super) fn deliver(&mut self, now: Instant, spi: IkeSpi, packet: Packet<'_>) -> bool {
        self.now = now;
        self.with(now, spi, |sa, shared| sa.handle(shared, now, packet))
    }
}
