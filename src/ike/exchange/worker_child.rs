//! CHILD_SAs for single workers between our own hosts (RFC 9611): the same traffic selectors, one SA per core and peer, so that no
//! sequence counter and no replay window is shared.
//!
//! ```text
//! initiator                                             responder
//! HDR, SK {N(SA_RESOURCE_INFO n), SA, Ni, KEi, TSi, TSr} ->
//!                                                       <- HDR, SK {N(SA_RESOURCE_INFO m), SA, Nr, KEr, TSi, TSr}
//!                                                    or <- HDR, SK {N(TS_MAX_QUEUE)}
//! ```
//!
//! The CHILD_SA of IKE_AUTH is the one that every worker falls back to, and the own one of the worker that owns it. The others are
//! made when a worker asks, and go when they are idle. The identifier in the notification is the worker's number at its sender;
//! each side takes the other's for a hint, since an SPI names its worker by itself. An SA that the peer asked for is as good as one
//! that we asked for: its worker here has its own then.
//!
//! A foreign peer is never asked. What it asks for is answered without SA_RESOURCE_INFO, by which it knows (RFC 9611 §3).

use std::collections::BTreeSet;

use super::create_child::ChildTask;
use super::negotiate::Refusal;
use crate::ike::child::{Child, Phase};
use crate::ike::contents::Contents;
use crate::ike::limits::{MAX_CHILDREN, MAX_WORKER_CHILDREN, RETRY_WORKER_CHILD, WORKER_CHILD_STANDBY};
use crate::ike::shared::Shared;
use crate::ike::state::{Established, Job, Task};
use crate::ike::{CloseReason, Event};
use crate::model::{Instant, Spi, WorkerIndex};
use crate::wire::ike::{Notify, NotifyType, Payload};

/// SA_RESOURCE_INFO (RFC 9611 §5.1) with the worker's number as resource identifier.
pub fn resource_info(worker: WorkerIndex) -> Payload {
    Payload::Notify(Notify::new(NotifyType::SaResourceInfo, vec![worker.0]))
}

impl Established {
    // --- initiator ---

    /// A worker of ours has packets for the peer and no CHILD_SA of its own.
    pub fn want_worker_child(&mut self, shared: &mut Shared, now: Instant, worker: WorkerIndex) {
        let own = self.children.values_mut().find(|child| child.is_live() && child.owner() == worker);
        match own {
            Some(child) if child.phase == Phase::Standby && now.since(child.since) >= WORKER_CHILD_STANDBY => {
                child.activate(shared);
            }
            Some(_) => {}
            None => {
                if self.may_ask_for_worker(now) {
                    self.enqueue(Job::CreateWorkerChild(worker));
                    self.pump(shared, now);
                }
            }
        }
    }

    /// Not towards foreign peers, not while the first CHILD_SA is missing, and not soon after a refusal.
    fn may_ask_for_worker(&self, now: Instant) -> bool {
        let refused = self.worker_retry.is_some_and(|at| now < at);
        self.birth.kin && self.replacement.is_none() && self.has_live(None) && !refused
    }

    pub fn start_worker_child(&mut self, shared: &mut Shared, now: Instant, worker: WorkerIndex) -> Option<Task> {
        // What stood before it in the queue, or the peer, may have brought one.
        let has_own = self.children.values().any(|child| child.is_live() && child.owner() == worker);
        if has_own || !self.may_ask_for_worker(now) {
            return None;
        }
        self.start_child(shared, now, None, Some(worker))
    }

    /// The peer made one for everything, which there is already: it does not know SA_RESOURCE_INFO.
    pub fn worker_child_unbound(&mut self, shared: &mut Shared, now: Instant, task: &ChildTask, outbound: Spi) {
        let (spi, nonce) = (task.offer.spi, task.offer.nonce.clone());
        self.adopt_child(Child::unwanted(spi, Some(outbound), nonce, now));
        self.enqueue(Job::DeleteChild(spi));
        let sentence = "the peer makes no CHILD_SAs for single workers".to_owned();
        self.no_more_worker_children(shared, now, CloseReason::WeRefused(sentence));
    }

    /// The peer refused, or what it answered is of no use: asked again later.
    pub fn no_more_worker_children(&mut self, shared: &mut Shared, now: Instant, reason: CloseReason) {
        self.worker_retry = Some(now + RETRY_WORKER_CHILD);
        self.queue.retain(|job| !matches!(job, Job::CreateWorkerChild(_)));
        shared.event(Event::WorkerChildRefused { peer: self.peer(), reason });
    }

    /// An idle one goes; who asked for it deletes it.
    pub fn retire_worker_child(&mut self, shared: &mut Shared, now: Instant, spi: Spi) {
        if self.children.get(&spi).is_some_and(|child| child.per_worker && child.ours && child.is_live()) {
            self.enqueue(Job::DeleteChild(spi));
            self.pump(shared, now);
        }
    }

    /// Another IKE SA took over: its first CHILD_SA carries everything, at once. The peer may be the one that forgot this IKE SA,
    /// so nothing is sent on what only this one has.
    pub fn give_up_worker_children(&mut self, shared: &mut Shared) {
        // One that is being installed cannot go: the answer that waits for it must leave. Its worker would fall back to it, so what
        // that one sends with stays until then.
        let installing = |child: &&Child| matches!(child.phase, Phase::Installing(..));
        let awaited: BTreeSet<WorkerIndex> = self.children.values().filter(installing).map(Child::owner).collect();
        let goes = |child: &&mut Child| child.per_worker && child.suite.is_some() && !awaited.contains(&child.owner());
        let mut given_up = Vec::new();
        for child in self.children.values_mut().filter(goes) {
            // Also what is being deleted already: nobody falls back to it.
            child.retire(shared, false);
            if child.phase != Phase::Deleting {
                child.phase = Phase::Deleting;
                given_up.push(child.inbound_spi);
            }
        }
        given_up.into_iter().for_each(|spi| self.enqueue(Job::DeleteChild(spi)));
    }

    // --- responder ---

    /// The worker of ours that gets what one of our own hosts asks for with SA_RESOURCE_INFO: the peer's number, modulo ours, unless
    /// another one has fewer CHILD_SAs with this peer.
    pub fn worker_asked_for(&self, shared: &Shared, request: &Contents) -> Option<WorkerIndex> {
        let notify = request.notify(NotifyType::SaResourceInfo).filter(|_| self.birth.kin)?;
        let workers = u16::from(shared.config.workers.max(1));
        let wanted = notify.data.last().copied().map_or(0, u16::from);
        let load = |worker: &WorkerIndex| {
            self.children.values().filter(|child| child.is_live() && child.owner() == *worker).count()
        };
        (0..workers).map(|step| WorkerIndex(((wanted + step) % workers) as u8)).min_by_key(load)
    }

    /// Whether there may be one more CHILD_SA of its kind. A rekey needs a place besides the SA that it replaces.
    pub fn check_room(&self, per_worker: bool, rekey: bool) -> Result<(), Refusal> {
        let count = self.children.values().filter(|child| child.per_worker == per_worker).count();
        let (limit, notify) = match (per_worker, rekey) {
            (false, _) => (MAX_CHILDREN, NotifyType::NoAdditionalSas),
            (true, false) => (MAX_WORKER_CHILDREN, NotifyType::TsMaxQueue),
            (true, true) => (2 * MAX_WORKER_CHILDREN, NotifyType::NoAdditionalSas),
        };
        if count < limit {
            return Ok(());
        }
        let kind = if per_worker { "CHILD_SAs for single workers" } else { "CHILD_SAs" };
        Err(Refusal::new(notify, format!("there are {limit} {kind} already")))
    }

    // --- both ---

    /// Whether there is a CHILD_SA for this purpose (none: for everything) that carries traffic or is about to.
    pub fn has_live(&self, purpose: Option<WorkerIndex>) -> bool {
        self.children.values().any(|child| child.is_live() && child.purpose() == purpose)
    }
}
