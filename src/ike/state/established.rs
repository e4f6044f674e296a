//! An IKE SA that is up: the peer has proved itself. The only state that has CHILD_SAs.
//!
//! Requests of ours are [`Job`]s; one at a time becomes the [`Task`] that waits for its response (the window is one). What each
//! exchange does stands in `exchange`; here stand the queue, the clocks and the end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Closed, IkeSa, Leaving, stay};
use crate::crypto::Prf;
use crate::ike::auth::Authenticated;
use crate::ike::child::{Child, Phase, Then};
use crate::ike::exchange::create_child::ChildTask;
use crate::ike::exchange::follow_up::{FollowUp, Pending};
use crate::ike::exchange::negotiate::Source;
use crate::ike::exchange::rekey_ike::IkeOffer;
use crate::ike::limits::{
    CLOSED_LINGER, MAX_JOBS, PROBE_PATIENCE, RETRY_CHILD_CAP, RETRY_CHILD_FIRST, RETRY_CHILD_PATIENCE, SURPLUS_OVERLAP,
};
use crate::ike::mobike::Mobility;
use crate::ike::session::{Packet, Received, Session};
use crate::ike::shared::Shared;
use crate::ike::{CloseReason, Event, IkeSummary, PeerConfig, ProvedBy};
use crate::model::{IkeSpi, IkeSuite, Instant, Path, PeerId, PeerIndex, Secret, Spi, Ticket, WorkerIndex};
use crate::wire::ike::{ExchangeType, Payload};

/// Where an IKE SA comes from; its successors by rekey inherit it.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Whether we sent the IKE_SA_INIT that it began with.
    pub initiator: bool,
    /// When that was sent or received.
    pub began: Instant,
    /// When the peer proved itself.
    pub proved: Instant,
    /// The lower of its two nonces.
    pub low_nonce: Bytes,
    /// Whether a post-quantum secret went into its SK_d, and so into that of its successors.
    pub post_quantum: bool,
}

/// Something of ours and the same of the peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair<T> {
    pub ours: T,
    pub theirs: T,
}

/// What an IKE SA needs besides its session. Nobody can make one without the proof.
#[derive(Clone, Debug)]
pub struct Birth {
    pub proof: Authenticated<PeerId>,
    pub proved_by: Pair<ProvedBy>,
    pub config: Arc<PeerConfig>,
    pub suite: IkeSuite,
    pub sk_d: Secret,
    /// Whether the peer is one of our own hosts: it showed our Vendor ID in IKE_AUTH.
    pub kin: bool,
    pub lineage: Lineage,
}

/// What we want to ask the peer for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// A CHILD_SA where there is none.
    CreateChild,
    /// A CHILD_SA for this worker of ours, which has none.
    CreateWorkerChild(WorkerIndex),
    /// A successor of the CHILD_SA with this inbound SPI.
    RekeyChild(Spi),
    /// The end of the CHILD_SA with this inbound SPI.
    DeleteChild(Spi),
    /// A successor of this IKE SA.
    RekeyIke,
    /// A sign of life.
    Probe,
    /// Whether the peer is where it seems to be.
    Check,
    /// Where we are (UPDATE_SA_ADDRESSES).
    Update,
    /// Which addresses we have.
    Tell,
}

/// The request that waits for its response.
#[derive(Debug)]
pub enum Task {
    /// CREATE_CHILD_SA for a CHILD_SA.
    Child(Box<ChildTask>),
    /// CREATE_CHILD_SA for this IKE SA.
    RekeyIke(Box<IkeOffer>),
    /// IKE_FOLLOWUP_KE for either.
    FollowUp(Box<FollowUp>),
    /// INFORMATIONAL with Delete.
    DeleteChild(Spi),
    /// INFORMATIONAL without payloads, or with NAT detection.
    Probe,
    /// INFORMATIONAL that went by another way than the path, with this COOKIE2.
    Check { way: Path, cookie: Option<Bytes> },
    /// INFORMATIONAL with UPDATE_SA_ADDRESSES.
    Update { generation: u32, cookie: Option<Bytes> },
    /// INFORMATIONAL with our addresses.
    Tell,
}

/// A better IKE SA with the same peer, and when this one gives way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replacement {
    pub by: IkeSpi,
    pub at: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Established {
    pub session: Session,
    pub birth: Birth,
    pub since: Instant,
    pub rekey_at: Instant,
    pub expires: Instant,
    pub rekey_failures: u32,
    pub task: Option<Task>,
    pub queue: VecDeque<Job>,
    pub children: BTreeMap<Spi, Child>,
    pub replacement: Option<Replacement>,
    /// The peer's CREATE_CHILD_SA that IKE_FOLLOWUP_KE is to complete. Meanwhile we ask for nothing but signs of life.
    pub pending: Option<Pending>,
    /// After a rekey by the peer: until then we make no request.
    pub silent_until: Option<Instant>,
    /// The peer wants no more CHILD_SAs for single workers until then.
    pub worker_retry: Option<Instant>,
    pub mobility: Mobility,
    probe_deadline: Option<Instant>,
    pub child_retry: Option<Instant>,
    pub child_failures: u32,
    surplus_at: Option<Instant>,
}

impl Established {
    pub fn new(shared: &mut Shared, now: Instant, mut session: Session, birth: Birth) -> Self {
        let (rekey_at, expires) = shared.ike_lifetime(now);
        session.settled = true;
        Self {
            session,
            birth,
            since: now,
            rekey_at,
            expires,
            rekey_failures: 0,
            task: None,
            queue: VecDeque::new(),
            children: BTreeMap::new(),
            replacement: None,
            pending: None,
            silent_until: None,
            worker_retry: None,
            mobility: Mobility::default(),
            probe_deadline: None,
            child_retry: None,
            child_failures: 0,
            surplus_at: None,
        }
    }

    pub fn peer(&self) -> PeerIndex {
        self.birth.config.index
    }

    /// What CHILD_SA keys come from.
    pub const fn source(&self) -> Source<'_> {
        Source { prf: Prf(self.birth.suite.prf), sk_d: &self.birth.sk_d }
    }

    /// Tells that it is up.
    pub fn announce(&self, shared: &mut Shared) {
        shared.event(Event::IkeUp { peer: self.peer(), summary: Box::new(self.summary()) });
    }

    /// For `status`.
    pub fn summary(&self) -> IkeSummary {
        IkeSummary {
            local_spi: self.session.local_spi,
            remote_spi: self.session.remote_spi,
            initiator: self.session.initiator,
            kin: self.birth.kin,
            suite: self.birth.suite,
            post_quantum: self.birth.lineage.post_quantum,
            local_proof: self.birth.proved_by.ours.clone(),
            remote_proof: self.birth.proved_by.theirs.clone(),
            established: self.since,
            rekey_at: self.rekey_at,
            path: self.session.path,
            transport: self.session.transport,
            local_behind_nat: self.session.nat.local,
            remote_behind_nat: self.session.nat.remote,
        }
    }

    // --- what comes in ---

    pub fn handle(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        let exchanges = [ExchangeType::CreateChildSa, ExchangeType::Informational, ExchangeType::IkeFollowupKe];
        let received = self.session.receive(shared, packet, &exchanges);
        let elsewhere = self.session.elsewhere.take();
        if let Some(way) = elsewhere {
            self.came_by(shared, now, way, &received);
        }
        match received {
            Received::Nothing => stay(self, IkeSa::Established),
            Received::Broken(sentence) => {
                let reason = CloseReason::WeRefused(format!("malformed message: {sentence}"));
                self.die(shared, now, reason)
            }
            Received::Request(exchange, contents) => {
                self.silent_until = None;
                self.session.heard(now);
                shared.event(Event::Heard { peer: self.peer() });
                let state = match exchange {
                    ExchangeType::CreateChildSa if contents.is_about_ike() => self.answer_rekey_ike(shared, now, &contents),
                    ExchangeType::CreateChildSa => self.answer_create_child(shared, now, &contents),
                    ExchangeType::IkeFollowupKe => self.answer_follow_up(shared, now, &contents),
                    _ => self.answer_informational(shared, now, &contents),
                };
                pumped(state, shared, now)
            }
            Received::Response(contents, asked) => {
                self.probe_deadline = None;
                shared.event(Event::Proof { peer: self.peer(), asked });
                let state = match self.task.take() {
                    Some(Task::Child(task)) => self.conclude_child(shared, now, *task, &contents),
                    Some(Task::RekeyIke(offer)) => self.conclude_rekey_ike(shared, now, *offer, &contents),
                    Some(Task::FollowUp(follow_up)) => self.conclude_follow_up(shared, now, *follow_up, &contents),
                    Some(Task::DeleteChild(spi)) => self.conclude_delete(shared, now, spi),
                    Some(Task::Check { way, cookie }) => {
                        let came_by = elsewhere.unwrap_or(self.session.path);
                        self.conclude_check(shared, now, (way, cookie), &contents, came_by)
                    }
                    Some(Task::Update { generation, cookie }) => {
                        self.conclude_update(shared, now, (generation, cookie), &contents)
                    }
                    Some(Task::Probe) => {
                        self.conclude_probe(shared, &contents);
                        stay(self, IkeSa::Established)
                    }
                    Some(Task::Tell) | None => stay(self, IkeSa::Established),
                };
                pumped(state, shared, now)
            }
        }
    }

    /// The data plane installed a CHILD_SA.
    pub fn installed(&mut self, shared: &mut Shared, now: Instant, spi: Spi, ticket: Ticket) {
        self.session.release(shared, ticket);
        let Some(child) = self.children.get_mut(&spi) else { return };
        let Phase::Installing(awaited, then) = child.phase else { return };
        if awaited != ticket {
            return;
        }
        child.phase = Phase::Standby;
        match then {
            Then::UseAndDelete(old) => {
                // A better IKE SA has the traffic by now, and the workers fall back to that one's.
                if !child.per_worker || self.replacement.is_none() {
                    child.activate(shared);
                }
                if let Some(old) = old {
                    self.enqueue(Job::DeleteChild(old));
                }
            }
            Then::Answer => {
                // One for a single worker is sent with when the peer has sent on it, so that nothing overtakes our answer.
                let purpose = child.purpose();
                let alone = purpose.is_none()
                    && !self
                        .children
                        .values()
                        .any(|child| child.purpose().is_none() && matches!(child.phase, Phase::Active | Phase::Superseded));
                if alone && let Some(child) = self.children.get_mut(&spi) {
                    child.activate(shared);
                }
            }
        }
        self.child_failures = 0;
        self.pump(shared, now);
    }

    /// The peer sends on it, so it has our answer: send on it too.
    pub fn inbound_used(&mut self, shared: &mut Shared, spi: Spi) {
        let newest = self.children.get_mut(&spi).filter(|child| child.phase == Phase::Standby && child.successor.is_none());
        if let Some(child) = newest {
            child.activate(shared);
            for other in self.children.values_mut() {
                if other.successor == Some(spi) && other.phase == Phase::Active {
                    other.phase = Phase::Superseded;
                }
            }
        }
    }

    // --- what we ask for ---

    /// Puts a job at the end of the queue, once.
    pub fn enqueue(&mut self, job: Job) {
        if !self.queue.contains(&job) && self.queue.len() < MAX_JOBS {
            self.queue.push_back(job);
        }
    }

    /// Starts the next job if the window is free.
    pub fn pump(&mut self, shared: &mut Shared, now: Instant) {
        if self.surplus_at.is_none() && !self.surplus().is_empty() {
            self.surplus_at = Some(now + SURPLUS_OVERLAP);
        }
        while self.task.is_none() && !self.session.is_busy() && self.silent_until.is_none() {
            let next = if self.pending.is_none() { Some(0) } else { self.queue.iter().position(|job| *job == Job::Probe) };
            let Some(job) = next.and_then(|place| self.queue.remove(place)) else { return };
            self.task = match job {
                Job::CreateChild => self.start_create_child(shared, now),
                Job::CreateWorkerChild(worker) => self.start_worker_child(shared, now, worker),
                Job::RekeyChild(spi) => self.start_rekey_child(shared, now, spi),
                Job::DeleteChild(spi) => self.start_delete(shared, now, spi),
                Job::RekeyIke => Some(self.start_rekey_ike(shared, now)),
                // Answered already by what stood before it in the queue.
                Job::Probe if self.probe_deadline.is_none() => None,
                Job::Probe => self.start_probe(shared, now),
                Job::Check => self.start_check(shared, now),
                Job::Update => self.start_update(shared, now),
                Job::Tell => self.start_tell(shared, now),
            };
        }
    }

    /// Sends a request.
    pub fn ask(&mut self, shared: &mut Shared, now: Instant, exchange: ExchangeType, payloads: &[Payload]) {
        self.session.request(shared, now, exchange, payloads);
    }

    /// Asks for a sign of life. Any response is one, so a request that is under way serves as well.
    pub fn probe(&mut self, shared: &mut Shared, now: Instant) {
        let from = self.silent_until.map_or(now, |until| until.max(now));
        self.probe_deadline.get_or_insert(from + PROBE_PATIENCE);
        if self.task.is_none() {
            self.enqueue(Job::Probe);
            self.pump(shared, now);
        }
    }

    /// Whether a sign of life was asked for and did not come yet.
    pub const fn is_probing(&self) -> bool {
        self.probe_deadline.is_some()
    }

    // --- CHILD_SAs ---

    pub fn adopt_child(&mut self, child: Child) {
        if child.is_live() && !child.per_worker {
            self.child_retry = None;
        }
        self.children.insert(child.inbound_spi, child);
    }

    /// The child that the peer receives on with this SPI.
    pub fn child_by_outbound(&mut self, outbound: Spi) -> Option<&mut Child> {
        self.children.values_mut().find(|child| child.outbound_spi == Some(outbound))
    }

    /// A CHILD_SA that we asked for did not come to be.
    pub fn child_failed(&mut self, shared: &mut Shared, now: Instant, spi: Spi, reason: CloseReason) {
        if !self.children.contains_key(&spi) {
            shared.release_spi(spi);
        }
        shared.event(Event::ChildFailed { peer: self.peer(), reason });
        self.want_child(shared, now, true);
    }

    /// If there is nothing that every worker can fall back to, asks for a CHILD_SA after a pause that grows with each failure. `ours`: whether we are the side
    /// that asked so far; the other one gives it time.
    pub fn want_child(&mut self, shared: &mut Shared, now: Instant, ours: bool) {
        let creating = self.child_task().is_some_and(|task| task.replaces.is_none() && task.purpose.is_none());
        if creating || self.child_retry.is_some() || self.has_live(None) {
            return;
        }
        let pause = (RETRY_CHILD_FIRST * (1 << self.child_failures.min(5))).min(RETRY_CHILD_CAP);
        self.child_failures += 1;
        let patience = if ours { Duration::ZERO } else { RETRY_CHILD_PATIENCE };
        self.child_retry = Some(now + patience + pause + shared.rng.jitter(pause / 2));
    }

    /// The last CHILD_SA is gone and no request brings another: ask for one now.
    pub fn want_child_now(&mut self, now: Instant) {
        if !self.has_live(None) {
            self.child_retry = Some(now);
        }
    }

    /// Of two CHILD_SAs for the same traffic (and for the same two workers, if they are for single ones) the one with the lowest nonce goes, deleted by who asked for it. Both ends see the
    /// same nonces, so they agree; a peer that wants several gets to keep its own.
    fn surplus(&self) -> Vec<Spi> {
        let works = |child: &&Child| matches!(child.phase, Phase::Standby | Phase::Active) && child.is_live();
        let live: Vec<&Child> = self.children.values().filter(works).collect();
        let workers = |child: &Child| child.purpose().map(|own| (own, child.outbound_spi.map(Spi::owner)));
        let same = |a: &Child, b: &Child| {
            workers(a) == workers(b) && a.local_selectors == b.local_selectors && a.remote_selectors == b.remote_selectors
        };
        let beaten = |child: &&&Child| live.iter().any(|other| same(child, other) && other.low_nonce > child.low_nonce);
        live.iter().filter(|child| child.ours).filter(beaten).map(|child| child.inbound_spi).collect()
    }

    /// Sends with this one's successor, or with the newest that waits, if it has none. A worker that is left without falls back
    /// by itself.
    pub fn hand_over(&mut self, shared: &mut Shared, from: Spi) {
        let Some((successor, purpose)) = self.children.get(&from).map(|child| (child.successor, child.purpose())) else {
            return;
        };
        let is_other = |child: &Child| child.inbound_spi != from && child.purpose() == purpose;
        let waits = |child: &&mut Child| child.phase == Phase::Standby && is_other(child);
        let others_active = self.children.values().any(|child| child.phase == Phase::Active && is_other(child));
        let heir = match successor {
            Some(successor) => self.children.get_mut(&successor).filter(waits),
            None if others_active => None,
            None => self.children.values_mut().filter(waits).max_by_key(|child| child.soft_at),
        };
        if let Some(heir) = heir {
            heir.activate(shared);
        }
    }

    // --- clocks ---

    pub fn handle_timeout(mut self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        let sent = self.session.transmissions();
        if self.session.handle_timeout(shared, now) {
            return self.give_up(shared, now);
        }
        self.try_other_ways(shared, sent);
        if let Some(replacement) = self.replacement
            && now >= replacement.at
        {
            return self.close(shared, now, CloseReason::Replaced);
        }
        if now >= self.expires {
            return self.close(shared, now, CloseReason::Expired);
        }
        if self.probe_deadline.take_if(|deadline| now >= *deadline).is_some() {
            shared.event(Event::ProbeLost { peer: self.peer() });
        }
        self.silent_until.take_if(|until| now >= *until);
        if self.pending.as_ref().is_some_and(|pending| now >= pending.until) {
            self.drop_pending(shared);
        }
        if now >= self.rekey_at && self.replacement.is_none() {
            // Each attempt sets the next date.
            self.rekey_at = self.expires;
            self.enqueue(Job::RekeyIke);
        }
        if self.mobility.check_at.take_if(|at| now >= *at).is_some() {
            self.enqueue(Job::Check);
        }
        if self.child_retry.take_if(|at| now >= *at).is_some() {
            self.enqueue(Job::CreateChild);
        }
        if self.surplus_at.take_if(|at| now >= *at).is_some() {
            self.surplus().into_iter().for_each(|spi| self.enqueue(Job::DeleteChild(spi)));
        }
        self.age_children(now);
        self.pump(shared, now);
        stay(self, IkeSa::Established)
    }

    fn age_children(&mut self, now: Instant) {
        let mut due = Vec::new();
        for child in self.children.values_mut().filter(|child| child.phase != Phase::Deleting) {
            if now >= child.hard_at {
                due.push(Job::DeleteChild(child.inbound_spi));
                // The data plane ends it by its own clock; ours must not fire again.
                child.hard_at = child.hard_at + CLOSED_LINGER;
            } else if now >= child.soft_at && child.can_be_rekeyed() {
                due.push(Job::RekeyChild(child.inbound_spi));
                child.soft_at = child.hard_at;
            }
        }
        due.into_iter().for_each(|job| self.enqueue(job));
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let children = self
            .children
            .values()
            .filter(|child| child.phase != Phase::Deleting)
            .map(|child| if child.can_be_rekeyed() { child.soft_at.min(child.hard_at) } else { child.hard_at });
        let clocks = [
            self.session.poll_timeout(),
            Some(self.expires),
            self.replacement.map(|replacement| replacement.at),
            self.replacement.is_none().then_some(self.rekey_at),
            self.probe_deadline,
            self.pending.as_ref().map(|pending| pending.until),
            self.silent_until,
            self.child_retry,
            self.surplus_at,
            self.mobility.check_at,
        ];
        clocks.into_iter().flatten().chain(children).min()
    }

    // --- the end ---

    /// Our request stayed unanswered. If the peer made a successor meanwhile, that one goes on; else the peer is gone.
    fn give_up(self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        match self.rival_candidate(shared) {
            Some(heir) => self.bequeath(shared, now, heir, false),
            None => self.die(shared, now, CloseReason::Timeout),
        }
    }

    /// Ends without telling the peer, who is gone or knows.
    pub fn die(mut self: Box<Self>, shared: &mut Shared, now: Instant, reason: CloseReason) -> Option<IkeSa> {
        self.retire_all(shared, reason == CloseReason::Timeout);
        self.report_down(shared, reason);
        // Whoever has not heard our answer to IKE_AUTH yet must not come up with what is gone.
        self.session.withhold_auth();
        let closed = Closed { last_answer: self.session.last_answer(), until: now + CLOSED_LINGER, source: None };
        stay(Box::new(closed), IkeSa::Closed)
    }

    /// Ends with a Delete (RFC 7296 §1.4.1).
    pub fn close(mut self: Box<Self>, shared: &mut Shared, now: Instant, reason: CloseReason) -> Option<IkeSa> {
        self.retire_all(shared, reason == CloseReason::Closed);
        self.report_down(shared, reason);
        let peer = self.peer();
        stay(Box::new(Leaving::deleting(shared, now, self.session, peer)), IkeSa::Leaving)
    }

    fn retire_all(&mut self, shared: &mut Shared, at_once: bool) {
        for child in std::mem::take(&mut self.children).into_values() {
            child.retire(shared, at_once);
        }
        if let Some(task) = self.child_task() {
            shared.release_spi(task.offer.spi);
        }
        self.drop_pending(shared);
    }

    pub fn report_down(&self, shared: &mut Shared, reason: CloseReason) {
        shared.event(Event::IkeDown { peer: self.peer(), spi: self.session.local_spi, reason });
    }
}

/// After a message the window may be free.
fn pumped(state: Option<IkeSa>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
    match state {
        Some(IkeSa::Established(mut state)) => {
            state.pump(shared, now);
            Some(IkeSa::Established(state))
        }
        other => other,
    }
}
