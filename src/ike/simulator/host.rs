//! One simulated host, and what hosts know about each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::plane::Plane;
use super::reconciler::Reconciler;
use crate::ike::{Command, Endpoint, EndpointConfig, Event, LocalAuth, PeerAuth, PeerConfig, PostQuantum, RemoteEndpoint};
use crate::model::{AeadAlgorithm, Instant, PeerId, PeerIndex, Secret, TrafficSelector, WorkerIndex};

/// One host.
pub struct Host {
    /// Its control plane.
    pub endpoint: Endpoint,
    /// Its data plane.
    pub plane: Plane,
    /// Its address.
    pub address: IpAddr,
    /// Every event so far.
    pub events: Vec<Event>,
    /// Whether the small reconciler runs.
    pub reconciled: bool,
    /// If set, a NAT stands before it: its public address, and inside ports by public port.
    pub nat: Option<Nat>,
    reconciler: Reconciler,
}

/// A NAT that gives every inside port a public one.
#[derive(Clone, Debug)]
pub struct Nat {
    /// The outside address.
    pub public: IpAddr,
    /// Public port to inside port.
    pub ports: BTreeMap<u16, u16>,
    /// The next public port.
    pub next: u16,
}

impl Nat {
    /// Where the inside port is seen from outside.
    pub fn outward(&mut self, inside: u16) -> SocketAddr {
        let known = self.ports.iter().find(|&(_, &port)| port == inside).map(|(&public, _)| public);
        let port = known.unwrap_or_else(|| {
            self.next += 1;
            self.ports.insert(self.next, inside);
            self.next
        });
        SocketAddr::new(self.public, port)
    }
}

/// How two hosts prove themselves to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// One key for the pair.
    Psk,
    /// Ed25519 host keys.
    HostKeys,
}

/// Settings of an endpoint that are good for simulations.
#[must_use]
pub fn endpoint_config() -> EndpointConfig {
    EndpointConfig {
        ike_rekey: Duration::from_secs(4 * 3600),
        child_rekey: Duration::from_secs(3600),
        replay_window: 4096,
        ike_port: 500,
        natt_port: 4500,
        workers: 1,
    }
}

/// The address of a host.
#[must_use]
pub fn address(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0xc000_0201 + host as u32))
}

/// What host `of` knows about its peer `peer`.
///
/// # Panics
/// Beyond 250 hosts.
#[must_use]
pub fn peer_config(of: usize, peer: usize, proof: Proof) -> PeerConfig {
    let block = |host: usize| {
        let prefix: ipnet::IpNet = format!("10.42.{host}.0/24").parse().expect("a prefix");
        TrafficSelector::from_prefix(prefix)
    };
    let key = |host: usize| crate::crypto::SigningKey::from_seed(&[host as u8 + 1; 32]);
    let psk = || Secret::new(format!("the key of {} and {}, long enough", of.min(peer), of.max(peer)).into_bytes());
    PeerConfig {
        index: PeerIndex(peer as u32),
        name: format!("host{peer}"),
        local_id: PeerId::Fqdn(format!("host{of}")),
        remote_id: PeerId::Fqdn(format!("host{peer}")),
        local_auth: match proof {
            Proof::Psk => LocalAuth::Psk(psk()),
            Proof::HostKeys => LocalAuth::HostKeys(vec![key(of)]),
        },
        remote_auth: match proof {
            Proof::Psk => PeerAuth::Psk(psk()),
            Proof::HostKeys => PeerAuth::HostKeys(vec![key(peer).verifying_key()]),
        },
        remote: Some(RemoteEndpoint::Standard(address(peer))),
        alternatives: Vec::new(),
        suites: AeadAlgorithm::ALL.to_vec(),
        post_quantum: PostQuantum::Preferred,
        local_selectors: vec![block(of)],
        remote_selectors: vec![block(peer)],
        owner: WorkerIndex(0),
    }
}

impl Host {
    /// A host that holds nothing.
    #[must_use]
    pub fn new(endpoint: Endpoint, address: IpAddr) -> Self {
        Self {
            endpoint,
            plane: Plane::default(),
            address,
            events: Vec::new(),
            reconciled: false,
            nat: None,
            reconciler: Reconciler::default(),
        }
    }

    /// The summary of what was refused or failed, for messages of tests.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::Refused { reason, .. } => Some(format!("refused: {reason}")),
            Event::InitiateFailed { reason, .. } => Some(format!("initiation failed: {reason}")),
            Event::ChildFailed { reason, .. } => Some(format!("no child: {reason}")),
            _ => None,
        };
        self.events.iter().filter_map(text).collect()
    }

    /// Where every IKE SA and CHILD_SA of this host stands, for messages of tests.
    #[must_use]
    pub fn standing(&self) -> Vec<String> {
        let peers = self.endpoint.shared.peers.keys();
        let sas = peers.flat_map(|&peer| self.endpoint.table.established_of(peer));
        sas.flat_map(|state| {
            let head = format!("{}: task {:?}, queue {:?}", state.session.local_spi, state.task, state.queue);
            let children = state.children.values().map(|child| {
                let ours = if child.ours { "ours" } else { "theirs" };
                let (inbound, outbound) = (child.inbound_spi, child.outbound_spi);
                format!("  {inbound} {outbound:?} {ours} {:?} successor {:?}", child.phase, child.successor)
            });
            std::iter::once(head).chain(children).collect::<Vec<_>>()
        })
        .collect()
    }

    /// Does what an event says.
    pub(super) fn note(&mut self, now: Instant, install_delay: Duration, event: &Event) {
        if !self.plane.note(now, install_delay, event) {
            self.reconciler.note(now, event);
        }
    }

    pub(super) fn next_wish(&self, now: Instant) -> Option<Instant> {
        if !self.reconciled {
            return None;
        }
        let peers = self.endpoint.shared.peers.keys();
        peers.map(|peer| self.reconciler.next_wish(*peer, now)).min()
    }

    pub(super) fn wishes(&mut self, now: Instant, jitter: Duration) -> Vec<Command> {
        if !self.reconciled {
            return Vec::new();
        }
        let peers: Vec<PeerIndex> = self.endpoint.shared.peers.keys().copied().collect();
        peers.into_iter().filter_map(|peer| self.reconciler.wish(peer, now, jitter)).collect()
    }
}
