//! One host: joins the control plane and the data plane, and wants every peer up, for ever.
//!
//! [`Node`] owns the IKE endpoint and speaks with every worker's data plane by [`Update`]s and [`Event`]s; it is the only place
//! that knows both. Six stories, one file each:
//!
//! - [`installs`](self): what IKE negotiated goes to the worker that owns the SA, make before break; what the worker did goes
//!   back as a ticket, and only then does IKE let its message go (`installs.rs`);
//! - the reconciler: each configured peer is connected, and connected again with capped and jittered backoff, whatever
//!   happened to it (`reconcile.rs`);
//! - an SA for each worker that has packets for one of our own hosts, while it has them (`own_sas.rs`);
//! - liveness: probes on a fixed maximum interval, and sooner when traffic goes out and nothing comes back; a peer is up only
//!   while a two-way proof is young (`liveness.rs`);
//! - path MTUs: which paths are to be looked at, and what the workers are told of them (`path_mtu.rs`);
//! - what is said of a peer that does not come up (`trouble.rs`), and what is shown of all that (`view.rs`).
//!
//! Like the machines that it joins it is pure: after each `handle_*` drain the `poll_*`, then sleep until
//! [`Node::poll_timeout`].

mod host_keys;
mod installs;
mod liveness;
mod own_sas;
mod path_mtu;
mod peer;
mod reconcile;
#[doc(hidden)]
pub mod simulation;
#[cfg(test)]
mod tests;
mod trouble;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::esp::{Event, Route, RouteTable, Update};
use crate::ike;
use crate::model::{Instant, Path, PeerIndex, Rng, Spi, Transport, WorkerIndex};

use installs::Installs;
use peer::Peer;

pub use own_sas::WorkerTraffic;
pub use path_mtu::payload_limit;
pub use view::{ChildView, IkeView, PeerState, PeerView};

/// How often every peer is looked at: liveness, backoff, keepalives. Coarse on purpose; nothing here is urgent.
const TICK: Duration = Duration::from_millis(500);

/// What this host is.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Settings of IKE; its number of workers is taken from here.
    pub ike: ike::EndpointConfig,
    /// How many workers there are: 1 to 255.
    pub workers: u8,
    /// MTU of the TUN device, in octets: no inner packet is larger, whatever the path takes.
    pub tun_mtu: u16,
    /// Inner addresses of this host.
    pub local_prefixes: Vec<IpNet>,
    /// The longest time without a two-way proof before one is asked for.
    pub probe_interval: Duration,
    /// The peers. `index` and `owner` are assigned by the node.
    pub peers: Vec<ike::PeerConfig>,
}

/// A peer as it is wanted.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    /// What IKE is to know.
    pub ike: ike::PeerConfig,
    /// What is routed to it; traffic selectors may allow more.
    pub blocks: Vec<IpNet>,
    /// Whether its tunnel waits for the first packet.
    pub on_demand: bool,
}

impl From<ike::PeerConfig> for Wanted {
    /// All that selectors allow is routed to it.
    fn from(ike: ike::PeerConfig) -> Self {
        let blocks = ike.remote_selectors.iter().flat_map(|selector| selector.prefixes()).collect();
        Self { ike, blocks, on_demand: false }
    }
}

/// Which workers an update is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recipient {
    /// Each of them.
    All,
    /// One.
    Worker(WorkerIndex),
}

/// A host's control plane.
pub struct Node {
    config: NodeConfig,
    endpoint: ike::Endpoint,
    rng: Box<dyn Rng + Send>,
    peers: BTreeMap<PeerIndex, Peer>,
    installs: Installs,
    updates: VecDeque<(Recipient, Update)>,
    keepalives: VecDeque<Path>,
    notices: VecDeque<Notice>,
    /// Peers whose state may have changed by what is being drained.
    changed: BTreeSet<PeerIndex>,
    refusals: trouble::Refusals,
    next_index: u32,
    next_tick: Instant,
}

/// A sentence for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// Whether an operator should look at it.
    pub warning: bool,
    /// The peer's name, if it is about one.
    pub peer: Option<String>,
    /// The sentence.
    pub text: String,
}

/// Notices that wait to be fetched; beyond that the oldest go (a peer must not fill our memory with refusals).
const MAX_NOTICES: usize = 256;

impl Node {
    /// A node with these peers, which it begins to connect at `now`. The two generators must be independent.
    #[must_use]
    pub fn new(now: Instant, mut config: NodeConfig, endpoint_rng: Box<dyn Rng + Send>, rng: Box<dyn Rng + Send>) -> Self {
        let peers = std::mem::take(&mut config.peers);
        config.ike.workers = config.workers;
        let endpoint = ike::Endpoint::new(config.ike.clone(), endpoint_rng);
        let mut node = Self {
            config,
            endpoint,
            rng,
            peers: BTreeMap::new(),
            installs: Installs::default(),
            updates: VecDeque::new(),
            keepalives: VecDeque::new(),
            notices: VecDeque::new(),
            changed: BTreeSet::new(),
            refusals: trouble::Refusals::default(),
            next_index: 0,
            next_tick: now,
        };
        let local_prefixes = node.config.local_prefixes.clone();
        node.reconfigure(now, local_prefixes, peers);
        node
    }

    /// Makes these the configured peers: new ones are connected, missing ones closed, changed ones closed and connected anew. Where
    /// only host keys, places, blocks or the demand changed, traffic goes on.
    pub fn reconfigure<W: Into<Wanted>>(&mut self, now: Instant, local_prefixes: Vec<IpNet>, wanted: Vec<W>) {
        self.config.local_prefixes = local_prefixes;
        let wanted: Vec<Wanted> = wanted.into_iter().map(W::into).collect();
        // By name, as there may be ten thousand.
        let by_name: BTreeMap<&str, &Wanted> = wanted.iter().map(|wanted| (&*wanted.ike.name, wanted)).collect();
        let (mut staying, mut gone) = (Vec::new(), Vec::new());
        for peer in self.peers.values() {
            match by_name.get(&*peer.config().name) {
                Some(wanted) if peer.is_configured_as(&wanted.ike) || peer.config().differs_mildly(&wanted.ike) => {
                    staying.push((peer.index(), (*wanted).clone()));
                }
                _ => gone.push(peer.index()),
            }
        }
        let stays: BTreeSet<String> = staying.iter().map(|(_, wanted)| wanted.ike.name.clone()).collect();
        for (index, wanted) in staying {
            self.change(now, index, wanted);
        }
        for index in gone {
            self.remove_peer(now, index);
        }
        for wanted in wanted {
            if !stays.contains(&wanted.ike.name) {
                self.add_peer(now, wanted);
            }
        }
        let routes = Arc::new(self.routes());
        self.updates.push_back((Recipient::All, Update::Routes(routes)));
        self.drain_ike(now);
    }

    fn add_peer(&mut self, now: Instant, mut wanted: Wanted) {
        let config = &mut wanted.ike;
        let index = PeerIndex(self.next_index);
        self.next_index += 1;
        config.index = index;
        config.owner = WorkerIndex((index.0 % u32::from(self.config.workers)) as u8);
        self.endpoint.upsert_peer(config.clone());
        let start = now + reconcile::start_delay(config, self.rng.as_mut());
        self.peers.insert(index, Peer::new(wanted, start));
        self.next_tick = now;
    }

    fn remove_peer(&mut self, now: Instant, index: PeerIndex) {
        if let Some(peer) = self.peers.get_mut(&index) {
            peer.hold();
        }
        self.endpoint.handle_command(now, ike::Command::Close(index));
        self.drain_ike(now);
        self.endpoint.remove_peer(index);
        self.peers.remove(&index);
        self.updates.push_back((Recipient::All, Update::RemovePeer(index)));
        self.drain_ike(now);
    }

    /// Who owns which inner address.
    fn routes(&self) -> RouteTable {
        let local = self.config.local_prefixes.iter().map(|&prefix| (prefix, Route::Local));
        let remote = self.peers.values().flat_map(|peer| {
            let route = Route::Peer { peer: peer.index(), owner: peer.config().owner };
            peer.blocks().iter().map(move |&prefix| (prefix, route))
        });
        // A local prefix wins over a peer's equal one: what is ours is never sent away.
        RouteTable::new(remote.chain(local))
    }

    /// Takes an IKE message, without non-ESP marker.
    pub fn handle_ike(&mut self, now: Instant, path: Path, transport: Transport, message: &[u8]) {
        self.endpoint.handle_datagram(now, path, transport, message);
        self.drain_ike(now);
    }

    /// Takes a worker's news.
    pub fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Installed(ticket) => self.endpoint.handle_command(now, ike::Command::Installed(ticket)),
            Event::InboundUsed(spi) => {
                self.endpoint.handle_command(now, ike::Command::InboundUsed(spi));
                self.drain_ike(now);
                self.spread(now, spi);
            }
            Event::SoftExpired(spi) => self.endpoint.handle_command(now, ike::Command::RekeyChild(spi)),
            Event::HardExpired(spi) => {
                self.expire(now, spi);
                self.endpoint.handle_command(now, ike::Command::ChildExpired(spi));
            }
            Event::AddressSeen(spi, path) => self.endpoint.handle_command(now, ike::Command::AddressSeen(spi, path)),
            Event::WantSa(peer) => self.want(now, peer),
            Event::WantOwnSa(peer, worker) => self.want_own_sa(now, peer, worker),
            Event::UnknownSpi(path) => self.unknown_sender(now, path),
            // Whoever has a kernel to ask answers with `handle_path_mtu`.
            Event::PathNarrow(_) => {}
        }
        self.drain_ike(now);
    }

    /// The ways that IKE messages go: of each IKE SA.
    #[must_use]
    pub fn ways(&self) -> Vec<(PeerIndex, Path)> {
        let of = |peer: &Peer| peer.ike.values().map(|summary| (peer.index(), summary.path)).collect::<Vec<_>>();
        self.peers.values().flat_map(of).collect()
    }

    /// Learns where this host can be reached; and of peers, that the first address, which we speak to them from, is to be left
    /// for the second.
    pub fn handle_places(&mut self, now: Instant, addresses: Vec<IpAddr>, moves: Vec<(PeerIndex, IpAddr, IpAddr)>) {
        self.endpoint.handle_command(now, ike::Command::Places { addresses, moves });
        self.drain_ike(now);
    }

    /// Replaces an SA of the peer now; false if there is none.
    pub fn rekey(&mut self, now: Instant, name: &str, what: Rekey) -> bool {
        let Some(index) = self.peers.values().find(|peer| peer.config().name == name).map(Peer::index) else {
            return false;
        };
        let found = match what {
            Rekey::Ike => {
                let linked = self.peers[&index].is_linked();
                self.endpoint.handle_command(now, ike::Command::RekeyIke(index));
                linked
            }
            Rekey::Child => {
                let active: Vec<Spi> = self.installs.active_of(index).collect();
                for &spi in &active {
                    self.endpoint.handle_command(now, ike::Command::RekeyChild(spi));
                }
                !active.is_empty()
            }
        };
        self.drain_ike(now);
        found
    }

    /// Tells every peer that we go. What `poll_transmit` has afterwards should still be sent.
    pub fn close_all(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.hold();
            self.endpoint.handle_command(now, ike::Command::Close(peer.index()));
        }
        self.drain_ike(now);
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.endpoint.handle_timeout(now);
        self.drain_ike(now);
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tend_own_sas(now);
            for forgotten in self.installs.forget_retired(now) {
                if let Some(peer) = self.peers.get_mut(&forgotten.peer) {
                    peer.add_drops(forgotten.counters.drops.nonzero());
                }
            }
            self.tick(now);
            self.drain_ike(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.endpoint.poll_timeout().map_or(self.next_tick, |ike| ike.min(self.next_tick)))
    }

    /// The next IKE message to be sent. Ask after every `handle_*`.
    pub fn poll_transmit(&mut self) -> Option<ike::Transmit> {
        self.endpoint.poll_transmit()
    }

    /// The next update for workers. Ask after every `handle_*`, and before sending what `poll_transmit` has: a message may
    /// announce what the update installs.
    pub fn poll_update(&mut self) -> Option<(Recipient, Update)> {
        self.updates.pop_front()
    }

    /// The next path that wants a NAT keepalive (one octet 0xFF, RFC 3948 §2.3).
    pub fn poll_keepalive(&mut self) -> Option<Path> {
        self.keepalives.pop_front()
    }

    /// The next sentence for the log.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Drop counters of the IKE endpoint.
    #[must_use]
    pub fn drops(&self) -> &crate::model::Drops {
        self.endpoint.drops()
    }

    fn notice(&mut self, warning: bool, peer: Option<PeerIndex>, text: String) {
        if self.notices.len() == MAX_NOTICES {
            self.notices.pop_front();
        }
        let peer = peer.and_then(|index| self.peers.get(&index)).map(|peer| peer.config().name.clone());
        self.notices.push_back(Notice { warning, peer, text });
    }
}

/// Which kind of SA [`Node::rekey`] replaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rekey {
    /// The IKE SA.
    Ike,
    /// Every CHILD_SA that is sent with.
    Child,
}
