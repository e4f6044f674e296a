//! One configured peer as the reconciler sees it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipnet::IpNet;

use super::Wanted;
use super::liveness::Liveness;
use super::path_mtu::PathMtu;
use crate::ike::{IkeSummary, PeerConfig};
use crate::model::{DropReason, IkeSpi, Instant, PeerIndex};

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause between attempts: a peer that comes back is found within it, and ten thousand dead peers cost a thousand
/// small datagrams a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long after its last packet an on-demand peer that cannot be reached is still called.
const DEMAND: Duration = Duration::from_secs(60);

/// How many changes of state are kept for `underpass peers NAME`.
const HISTORY: usize = 10;

/// What the reconciler is doing for a peer. Whether the peer is linked is not part of it: a fresh attempt may run beside an
/// IKE SA that seems dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// Nothing: linked, or waiting for the peer or for a packet.
    None,
    /// An initiation of ours is open.
    Open,
    /// The next one starts then.
    At(Instant),
    /// The agent is going: never again.
    Held,
}

/// A peer: what is wanted, what there is, and what happened.
pub struct Peer {
    config: PeerConfig,
    /// What is routed to it.
    blocks: Vec<IpNet>,
    on_demand: bool,
    /// When a packet last wanted a tunnel that was not there.
    wanted: Option<Instant>,
    pub(super) attempt: Attempt,
    /// Attempts that failed since the last success.
    failures: u32,
    /// IKE SAs that are up, by our SPI; more than one only for moments.
    pub(super) ike: BTreeMap<IkeSpi, IkeSummary>,
    pub(super) liveness: Liveness,
    pub(super) path_mtu: PathMtu,
    pub(super) last_error: Option<String>,
    /// Why we refused what the peer sent, or somebody at its address.
    pub(super) refusal: Option<String>,
    pub(super) has_child: bool,
    /// Whether a CHILD_SA was asked for in vain since there was one.
    pub(super) child_refused: bool,
    /// Something that the peer has by a key that is not pinned any more ends then.
    pub(super) unpinned_until: Option<Instant>,
    /// The state that was last written into the history.
    pub(super) shown: Option<super::PeerState>,
    /// What the SAs that are forgotten dropped.
    dropped: BTreeMap<DropReason, u64>,
    history: VecDeque<(Instant, String)>,
}

impl Peer {
    /// A peer whose first attempt starts at `start`, if we know where it is and it is not to wait for a packet.
    pub fn new(wanted: Wanted, start: Instant) -> Self {
        let Wanted { ike: config, blocks, on_demand } = wanted;
        let attempt = if config.remote.is_some() && !on_demand { Attempt::At(start) } else { Attempt::None };
        Self {
            config,
            blocks,
            on_demand,
            wanted: None,
            attempt,
            failures: 0,
            ike: BTreeMap::new(),
            liveness: Liveness::default(),
            path_mtu: PathMtu::default(),
            last_error: None,
            refusal: None,
            has_child: false,
            child_refused: false,
            unpinned_until: None,
            shown: None,
            dropped: BTreeMap::new(),
            history: VecDeque::new(),
        }
    }

    pub fn index(&self) -> PeerIndex {
        self.config.index
    }

    pub fn config(&self) -> &PeerConfig {
        &self.config
    }

    /// Whether the peer was configured just so; what the node assigned does not count, nor do blocks and demand.
    pub fn is_configured_as(&self, wanted: &PeerConfig) -> bool {
        let mut wanted = wanted.clone();
        wanted.index = self.config.index;
        wanted.owner = self.config.owner;
        wanted == self.config
    }

    /// Takes another configuration for the same peer.
    pub fn reconfigure(&mut self, config: PeerConfig) {
        self.config = config;
    }

    /// What is routed to it.
    pub fn blocks(&self) -> &[IpNet] {
        &self.blocks
    }

    /// Says what is routed to it from now on.
    pub fn set_blocks(&mut self, blocks: Vec<IpNet>) {
        self.blocks = blocks;
    }

    /// Whether its tunnel waits for a packet.
    pub const fn is_on_demand(&self) -> bool {
        self.on_demand
    }

    /// Lets its tunnel wait for a packet, or not.
    pub fn set_on_demand(&mut self, on_demand: bool) {
        self.on_demand = on_demand;
    }

    /// A packet wants a tunnel that is not there.
    pub fn want(&mut self, now: Instant) {
        self.wanted = Some(now);
    }

    /// Whether it is to be called when it has no tunnel.
    pub fn is_to_be_called(&self, now: Instant) -> bool {
        let in_demand = !self.on_demand || self.wanted.is_some_and(|wanted| now.since(wanted) < DEMAND);
        self.config.remote.is_some() && in_demand
    }

    /// Whether an IKE SA is up.
    pub fn is_linked(&self) -> bool {
        !self.ike.is_empty()
    }

    /// The newest IKE SA.
    pub fn newest(&self) -> Option<&IkeSummary> {
        self.ike.values().max_by_key(|summary| summary.established)
    }

    /// No attempt any more.
    pub fn hold(&mut self) {
        self.attempt = Attempt::Held;
    }

    /// Whether the last attempts failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// What keeps the peer from being up, as far as it is known.
    pub fn explanation(&self) -> Option<String> {
        match (&self.last_error, &self.refusal) {
            (Some(error), Some(refusal)) => Some(format!("{error}; and what comes from it is refused here: {refusal}")),
            (Some(error), None) => Some(error.clone()),
            (None, Some(refusal)) => Some(format!("what comes from it is refused here: {refusal}")),
            (None, None) => None,
        }
    }

    /// Forgets the failures.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The pause before the next attempt: doubled each time up to the longest, then shortened by up to a third of itself, so
    /// that hosts that lost each other at once do not return at once.
    pub fn failed(&mut self, rng: &mut dyn crate::model::Rng) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        pause - rng.jitter(pause / 3)
    }

    /// Takes over the counters of an SA that is forgotten.
    pub fn add_drops(&mut self, drops: impl Iterator<Item = (DropReason, u64)>) {
        for (reason, count) in drops {
            *self.dropped.entry(reason).or_default() += count;
        }
    }

    /// What the SAs that are forgotten dropped.
    pub const fn dropped(&self) -> &BTreeMap<DropReason, u64> {
        &self.dropped
    }

    /// Remembers a change of state.
    pub fn remember(&mut self, now: Instant, text: String) {
        if self.history.back().is_some_and(|(_, last)| *last == text) {
            return;
        }
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((now, text));
    }

    /// The last changes of state, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &(Instant, String)> {
        self.history.iter()
    }
}
