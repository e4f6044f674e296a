//! What is shown of a peer. Every word here must be true.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Node;
use super::installs::{Installed, Stage};
use super::liveness::PROOF_AGE;
use super::peer::{Attempt, Peer};
use crate::ike::ProvedBy;
use crate::model::{ChildSuite, DropReason, IkeSpi, IkeSuite, Instant, Spi, TrafficSelector};

/// In which state a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PeerState {
    /// Packets can flow, and an authenticated proof of both directions is younger than 15 s.
    Up,
    /// We hear the peer, but it does not answer us: the outbound direction is dead.
    OneWay,
    /// Nobody tries: an on-demand peer, or one that must come to us and has not yet.
    Idle,
    /// The first attempt is under way.
    Connecting,
    /// Attempts failed; another one is under way or will be.
    Retrying,
    /// There was a tunnel and it is dead, or there is an IKE SA that carries no traffic. A peer that we can call and that has no
    /// IKE SA any more is `Retrying` instead.
    Down,
}

impl PeerState {
    pub(super) fn of(peer: &Peer, now: Instant) -> Self {
        if peer.is_linked() {
            let proved = peer.liveness.is_proved(now);
            let is_new = peer.newest().is_some_and(|summary| now.since(summary.established) < PROOF_AGE);
            return match (peer.has_child, proved) {
                (true, true) => Self::Up,
                (true, false) if is_new && peer.liveness.is_awaited() => Self::Connecting,
                (true, false) if peer.liveness.is_heard(now) => Self::OneWay,
                (false, _) if is_new && !peer.child_refused => Self::Connecting,
                _ => Self::Down,
            };
        }
        match peer.attempt {
            _ if peer.is_failing() => Self::Retrying,
            Attempt::None if peer.is_on_demand() => Self::Idle,
            // It must call us, and did once: somebody should look why it does not.
            Attempt::None if peer.liveness.last_proof().is_some() => Self::Down,
            Attempt::None | Attempt::Held => Self::Idle,
            Attempt::Open | Attempt::At(_) if !peer.is_on_demand() && peer.liveness.last_proof().is_some() => Self::Retrying,
            Attempt::Open | Attempt::At(_) => Self::Connecting,
        }
    }

    /// The word in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::OneWay => "one-way",
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Retrying => "retrying",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A peer at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerView {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: PeerState,
    /// For `one-way`: which direction is dead.
    pub dead_direction: Option<&'static str>,
    /// Where its IKE messages were seen to come from.
    pub remote: Option<SocketAddr>,
    /// The largest inner packet that the path carries whole, in octets; none before the path was looked at.
    pub mtu: Option<u16>,
    /// Whether a NAT hides us from it.
    pub local_behind_nat: Option<bool>,
    /// Whether a NAT hides it.
    pub remote_behind_nat: Option<bool>,
    /// Its newest IKE SA.
    pub ike: Option<IkeView>,
    /// How many IKE SAs there are: more than one only for moments.
    pub ike_count: usize,
    /// Its CHILD_SAs that are not retired, newest last.
    pub children: Vec<ChildView>,
    /// Age of the last two-way proof.
    pub last_proof: Option<Duration>,
    /// What went wrong last, until the peer is up again.
    pub last_error: Option<String>,
    /// Until the next attempt.
    pub next_attempt: Option<Duration>,
    /// Its packets that were dropped, by reason.
    pub drops: BTreeMap<DropReason, u64>,
    /// The last changes: how long ago, and what; oldest first.
    pub history: Vec<(Duration, String)>,
}

/// An IKE SA at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeView {
    /// Its suite.
    pub suite: IkeSuite,
    /// Whether its keys also come from a post-quantum key exchange.
    pub post_quantum: bool,
    /// What we proved ourselves with.
    pub local_proof: ProvedBy,
    /// What the peer proved itself with.
    pub remote_proof: ProvedBy,
    /// Our SPI.
    pub local_spi: IkeSpi,
    /// The peer's.
    pub remote_spi: IkeSpi,
    /// Whether we were its original initiator.
    pub initiator: bool,
    /// Since it came up.
    pub age: Duration,
    /// Until we rekey it.
    pub rekey_in: Duration,
}

/// A CHILD_SA at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildView {
    /// Ours.
    pub inbound_spi: Spi,
    /// The peer's.
    pub outbound_spi: Spi,
    /// Its suite.
    pub suite: ChildSuite,
    /// Whether we send with it.
    pub active: bool,
    /// Whether it is for the worker that owns it only; else every worker may fall back to it.
    pub per_worker: bool,
    /// Since it came up.
    pub age: Duration,
    /// Packets and octets of inner packets opened.
    pub inbound: (u64, u64),
    /// Packets and octets of inner packets sealed.
    pub outbound: (u64, u64),
    /// What may flow, on our side.
    pub local_selectors: Vec<TrafficSelector>,
    /// What may flow, on the peer's side.
    pub remote_selectors: Vec<TrafficSelector>,
}

impl Node {
    /// Every peer as it is now, in the order of configuration.
    #[must_use]
    pub fn peers(&self, now: Instant) -> Vec<PeerView> {
        self.peers.values().map(|peer| self.view(now, peer)).collect()
    }

    fn view(&self, now: Instant, peer: &Peer) -> PeerView {
        let newest = peer.newest();
        let state = PeerState::of(peer, now);
        PeerView {
            name: peer.config().name.clone(),
            state,
            dead_direction: (state == PeerState::OneWay).then_some("outbound"),
            remote: newest.map(|summary| summary.path.remote),
            mtu: peer.path_mtu.inner(self.config.tun_mtu).map(|inner| inner.v4),
            local_behind_nat: newest.and_then(|summary| summary.local_behind_nat),
            remote_behind_nat: newest.and_then(|summary| summary.remote_behind_nat),
            ike: newest.map(|summary| IkeView {
                suite: summary.suite,
                post_quantum: summary.post_quantum,
                local_proof: summary.local_proof.clone(),
                remote_proof: summary.remote_proof.clone(),
                local_spi: summary.local_spi,
                remote_spi: summary.remote_spi,
                initiator: summary.initiator,
                age: now.since(summary.established),
                rekey_in: summary.rekey_at.since(now),
            }),
            ike_count: peer.ike.len(),
            children: self.child_views(now, peer),
            last_proof: peer.liveness.last_proof().map(|proof| now.since(proof)),
            last_error: peer.explanation(),
            next_attempt: match peer.attempt {
                Attempt::At(at) => Some(at.since(now)),
                _ => None,
            },
            drops: self.dropped(peer),
            history: peer.history().map(|(at, text)| (now.since(*at), text.clone())).collect(),
        }
    }

    fn dropped(&self, peer: &Peer) -> BTreeMap<DropReason, u64> {
        let mut drops = peer.dropped().clone();
        for (reason, count) in self.installs.dropped(peer.index()) {
            *drops.entry(reason).or_default() += count;
        }
        drops
    }

    fn child_views(&self, now: Instant, peer: &Peer) -> Vec<ChildView> {
        let mut installed: Vec<(Spi, &Installed)> = self.installs.of(peer.index()).collect();
        installed.sort_by_key(|(_, sa)| sa.since);
        installed.into_iter().map(|(spi, sa)| child_view(now, spi, sa)).collect()
    }
}

fn child_view(now: Instant, spi: Spi, sa: &Installed) -> ChildView {
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    ChildView {
        inbound_spi: spi,
        outbound_spi: sa.outbound_spi,
        suite: sa.suite,
        active: sa.stage == Stage::Active,
        per_worker: sa.per_worker,
        age: now.since(sa.since),
        inbound: (read(&sa.counters.inbound_packets), read(&sa.counters.inbound_octets)),
        outbound: (read(&sa.counters.outbound_packets), read(&sa.counters.outbound_octets)),
        local_selectors: sa.local_selectors.clone(),
        remote_selectors: sa.remote_selectors.clone(),
    }
}
