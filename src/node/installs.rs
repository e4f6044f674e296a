//! What IKE negotiated goes to the worker that owns it, and is remembered here for what is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::own_sas::WorkerTraffic;
use super::{Node, Recipient};
use crate::esp::{SaCounters, Update};
use crate::ike;
use crate::model::{ChildSaParams, ChildSuite, DropReason, Instant, PeerIndex, Spi, TrafficSelector, WorkerIndex};

/// How long a retired SA's counters are still looked at; longer than the inbound grace time of the workers.
const RETIRED_LINGER: Duration = Duration::from_secs(10);

/// Where an SA stands in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Inbound works, outbound waits.
    Standby,
    /// Both work.
    Active,
    /// Replaced or deleted at that time.
    Retired(Instant),
}

/// One installed CHILD_SA, without its keys.
#[derive(Debug)]
pub struct Installed {
    pub peer: PeerIndex,
    pub outbound_spi: Spi,
    pub suite: ChildSuite,
    pub local_selectors: Vec<TrafficSelector>,
    pub remote_selectors: Vec<TrafficSelector>,
    pub counters: Arc<SaCounters>,
    /// Whether it is for the worker that owns it only.
    pub per_worker: bool,
    pub since: Instant,
    pub stage: Stage,
}

/// Every CHILD_SA of the host, by our inbound SPI.
#[derive(Debug, Default)]
pub struct Installs {
    sas: BTreeMap<Spi, Installed>,
    by_peer: BTreeMap<PeerIndex, BTreeSet<Spi>>,
    /// How many are for single workers and not retired.
    per_worker: usize,
    /// What the SAs carried that are forgotten, by worker.
    forgotten: BTreeMap<WorkerIndex, WorkerTraffic>,
}

impl Installed {
    /// When the last authenticated packet came in and the last one left.
    pub fn last_traffic(&self) -> (Option<Instant>, Option<Instant>) {
        let at = |nanoseconds: u64| (nanoseconds > 0).then(|| Instant::from_origin(Duration::from_nanos(nanoseconds)));
        let read = |counter: &AtomicU64| at(counter.load(Ordering::Relaxed));
        (read(&self.counters.last_inbound), read(&self.counters.last_outbound))
    }
}

impl Installs {
    fn insert(&mut self, now: Instant, child: &ChildSaParams, per_worker: bool, counters: Arc<SaCounters>) {
        let installed = Installed {
            peer: child.peer,
            outbound_spi: child.outbound_spi,
            suite: child.suite,
            local_selectors: child.local_selectors.clone(),
            remote_selectors: child.remote_selectors.clone(),
            counters,
            per_worker,
            since: now,
            stage: Stage::Standby,
        };
        self.per_worker += usize::from(per_worker);
        self.by_peer.entry(child.peer).or_default().insert(child.inbound_spi);
        self.sas.insert(child.inbound_spi, installed);
    }

    /// Carries out a change of stage; whose SA it is, and whether for a single worker.
    fn set_stage(&mut self, spi: Spi, stage: Stage) -> Option<(PeerIndex, bool)> {
        let sa = self.sas.get_mut(&spi)?;
        let counted = |stage| sa.per_worker && !matches!(stage, Stage::Retired(_));
        self.per_worker -= usize::from(counted(sa.stage));
        self.per_worker += usize::from(counted(stage));
        sa.stage = stage;
        Some((sa.peer, sa.per_worker))
    }

    /// All SAs of a peer.
    fn all_of(&self, peer: PeerIndex) -> impl Iterator<Item = (Spi, &Installed)> {
        let spis = self.by_peer.get(&peer).into_iter().flatten();
        spis.filter_map(|&spi| Some((spi, self.sas.get(&spi)?)))
    }

    /// The SAs of a peer that are not retired.
    pub fn of(&self, peer: PeerIndex) -> impl Iterator<Item = (Spi, &Installed)> {
        self.all_of(peer).filter(|(_, sa)| !matches!(sa.stage, Stage::Retired(_)))
    }

    /// The SAs that the peer's packets leave with.
    pub fn active_of(&self, peer: PeerIndex) -> impl Iterator<Item = Spi> {
        self.of(peer).filter(|(_, sa)| sa.stage == Stage::Active).map(|(spi, _)| spi)
    }

    /// How many SAs for single workers there are with all peers.
    pub const fn per_worker(&self) -> usize {
        self.per_worker
    }

    /// Whose SA this is.
    pub fn peer_of(&self, spi: Spi) -> Option<PeerIndex> {
        self.sas.get(&spi).map(|sa| sa.peer)
    }

    /// What the SAs of each worker carried so far.
    pub fn traffic(&self) -> BTreeMap<WorkerIndex, WorkerTraffic> {
        let mut traffic = self.forgotten.clone();
        for (spi, sa) in &self.sas {
            traffic.entry(spi.owner()).or_default().add(&sa.counters);
        }
        traffic
    }

    /// When the last authenticated packet of the peer came in and the last one for it left, retired SAs included.
    pub fn last_traffic(&self, peer: PeerIndex) -> (Option<Instant>, Option<Instant>) {
        let mut last = (None, None);
        for (_, sa) in self.all_of(peer) {
            let (inbound, outbound) = sa.last_traffic();
            last = (last.0.max(inbound), last.1.max(outbound));
        }
        last
    }

    /// The SA of the peer that the newest authenticated packet came in on, and when.
    pub fn last_inbound(&self, peer: PeerIndex) -> Option<(Spi, Instant)> {
        self.of(peer).filter_map(|(spi, sa)| Some((spi, sa.last_traffic().0?))).max_by_key(|&(_, at)| at)
    }

    /// Drops what was retired long enough ago, and returns it.
    pub fn forget_retired(&mut self, now: Instant) -> impl Iterator<Item = Installed> + use<> {
        let is_old = |_: &Spi, sa: &mut Installed| matches!(sa.stage, Stage::Retired(at) if now.since(at) > RETIRED_LINGER);
        let forgotten: Vec<(Spi, Installed)> = self.sas.extract_if(.., is_old).collect();
        for (spi, sa) in &forgotten {
            self.forgotten.entry(spi.owner()).or_default().add(&sa.counters);
            if let Some(spis) = self.by_peer.get_mut(&sa.peer) {
                spis.remove(spi);
            }
        }
        self.by_peer.retain(|_, spis| !spis.is_empty());
        forgotten.into_iter().map(|(_, sa)| sa)
    }

    /// What was dropped of the peer's packets by the SAs that are still known.
    pub fn dropped(&self, peer: PeerIndex) -> impl Iterator<Item = (DropReason, u64)> {
        self.all_of(peer).flat_map(|(_, sa)| sa.counters.drops.nonzero())
    }
}

impl Node {
    /// Carries out what IKE says about CHILD_SAs; everything else goes to the reconciler.
    pub(super) fn drain_ike(&mut self, now: Instant) {
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                ike::Event::Reserve { spi, .. } => self.update(spi, Update::Reserve(spi)),
                ike::Event::Release { spi } => self.update(spi, Update::Release(spi)),
                ike::Event::Install { child, per_worker, ticket } => {
                    let counters = Arc::new(SaCounters::default());
                    self.installs.insert(now, &child, per_worker, Arc::clone(&counters));
                    self.tell_path_limit(child.peer, child.inbound_spi.owner());
                    self.update(child.inbound_spi, Update::Install { child, counters, ticket });
                }
                ike::Event::Activate { spi } => self.activate(now, spi),
                ike::Event::Retire { spi, at_once } => self.retire(now, spi, at_once),
                ike::Event::PathChanged { spi, path } => self.update(spi, Update::PathChanged(spi, path)),
                other => self.handle_ike_event(now, other),
            }
        }
        // What lies between two news of one message is no state that anybody was in.
        while let Some(index) = self.changed.pop_first() {
            self.note_state(now, index);
        }
    }

    /// An update for the worker that owns the SA.
    fn update(&mut self, spi: Spi, update: Update) {
        self.updates.push_back((Recipient::Worker(spi.owner()), update));
    }

    fn activate(&mut self, now: Instant, spi: Spi) {
        let Some((peer, per_worker)) = self.installs.set_stage(spi, Stage::Active) else { return };
        self.update(spi, Update::Activate(spi));
        if per_worker {
            // The worker that has the other half need not wait for packets of ours.
            self.update(spi, Update::Announce(spi));
        }
        self.child_changed(now, peer);
    }

    /// The worker ended it by its own clock; IKE follows when the peer has answered.
    pub(super) fn expire(&mut self, now: Instant, spi: Spi) {
        if let Some((peer, _)) = self.installs.set_stage(spi, Stage::Retired(now)) {
            self.child_changed(now, peer);
        }
    }

    fn retire(&mut self, now: Instant, spi: Spi, at_once: bool) {
        let Some((peer, _)) = self.installs.set_stage(spi, Stage::Retired(now)) else { return };
        self.update(spi, Update::Retire { spi, at_once });
        self.child_changed(now, peer);
    }
}
