//! INFORMATIONAL: Delete and signs of life (RFC 7296 §1.4, §2.4).
//!
//! A Delete of CHILD_SAs names the SPIs that its sender receives on; the answer names the other halves, except of those that we are
//! deleting ourselves at this moment. A Delete of the IKE SA takes everything with it, after the answer.

use bytes::Bytes;

use crate::ike::CloseReason;
use crate::ike::child::{Child, Phase};
use crate::ike::contents::Contents;
use crate::ike::limits::MAX_CHILDREN;
use crate::ike::shared::Shared;
use crate::ike::state::{Closed, Established, IkeSa, Task, stay};
use crate::model::{Instant, Spi};
use crate::wire::ike::{Delete, ExchangeType, NotifyType, Payload};

/// Whether the request ends the IKE SA, and how.
pub fn ends_ike(request: &Contents) -> Option<CloseReason> {
    if request.deletes.contains(&Delete::Ike) {
        return Some(CloseReason::PeerDeleted);
    }
    // How an initiator says that our AUTH did not convince it (§2.21.2).
    let error = request.notify(NotifyType::AuthenticationFailed)?;
    Some(CloseReason::PeerRefused { notify: error.kind.name().into_owned(), authenticated: true })
}

/// The payload of a Delete of an IKE SA.
pub const DELETE_IKE: Payload = Payload::Delete(Delete::Ike);

impl Established {
    // --- responder ---

    pub fn answer_informational(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        request: &Contents,
    ) -> Option<IkeSa> {
        if let Some(reason) = ends_ike(request) {
            self.session.respond(shared, &[]);
            if !self.birth.lineage.initiator && request.notify(NotifyType::AuthenticationFailed).is_some() {
                shared.key_refused(self.peer(), &self.birth.proved_by.ours);
            }
            return match self.rival_candidate(shared) {
                // The peer's rekey won against ours, and its answer to ours is still under way.
                Some(heir) => {
                    self.leave_to(shared, heir);
                    stay(Closed::after(&self.session, now), IkeSa::Closed)
                }
                None => self.die(shared, now, reason),
            };
        }
        let mut deleted = Vec::new();
        for delete in &request.deletes {
            let Delete::Esp(spis) = delete else { continue };
            for &spi in spis {
                deleted.extend(self.deleted_by_peer(shared, spi));
            }
        }
        let mut payloads = self.answer_mobike(shared, now, request);
        payloads.extend((!deleted.is_empty()).then(|| Payload::Delete(Delete::Esp(deleted))));
        self.session.respond(shared, &payloads);
        if !request.deletes.is_empty() {
            self.want_child(shared, now, false);
        }
        stay(self, IkeSa::Established)
    }

    /// The peer does not receive on this SPI any more. Returns our half's SPI for the answer.
    fn deleted_by_peer(&mut self, shared: &mut Shared, outbound: Spi) -> Option<Spi> {
        let Some((inbound, phase)) = self.child_by_outbound(outbound).map(|child| (child.inbound_spi, child.phase)) else {
            if let Some(task) = self.child_task_mut()
                && task.deleted.len() < MAX_CHILDREN
            {
                task.deleted.push(outbound);
            }
            return None;
        };
        self.forget_child(shared, inbound);
        (phase != Phase::Deleting).then_some(inbound)
    }

    /// Ends a CHILD_SA on our side; another one sends from now on.
    fn forget_child(&mut self, shared: &mut Shared, inbound: Spi) {
        self.hand_over(shared, inbound);
        let gone = self.children.remove(&inbound);
        if let Some(child) = &gone {
            child.retire(shared, false);
        }
        // It may itself have been the successor of one whose Delete is late. That one has another then: it must neither send again nor
        // be rekeyed.
        let heir = gone.and_then(|child| child.successor).filter(|heir| self.children.contains_key(heir));
        for child in self.children.values_mut().filter(|child| child.successor == Some(inbound)) {
            child.successor = heir;
            if child.phase == Phase::Superseded && heir.is_none() {
                child.activate(shared);
            }
        }
    }

    // --- initiator ---

    pub fn start_delete(&mut self, shared: &mut Shared, now: Instant, spi: Spi) -> Option<Task> {
        if !self.children.contains_key(&spi) {
            return None;
        }
        self.hand_over(shared, spi);
        let purpose = self.children.get(&spi).and_then(Child::purpose);
        let heir = |child: &Child| child.phase == Phase::Active && child.inbound_spi != spi && child.purpose() == purpose;
        let has_heir = self.children.values().any(heir);
        if let Some(child) = self.children.get_mut(&spi) {
            child.phase = Phase::Deleting;
            if purpose.is_some() && !has_heir {
                // The peer may hear of it long before we hear its answer: its worker falls back at once.
                child.retire(shared, false);
            }
        }
        self.ask(shared, now, ExchangeType::Informational, &[Payload::Delete(Delete::Esp(vec![spi]))]);
        Some(Task::DeleteChild(spi))
    }

    /// The peer confirmed. Whether it named its half does not matter: if it had none, it is gone all the same.
    pub fn conclude_delete(mut self: Box<Self>, shared: &mut Shared, now: Instant, spi: Spi) -> Option<IkeSa> {
        self.forget_child(shared, spi);
        self.want_child_now(now);
        stay(self, IkeSa::Established)
    }
}

/// The data of a notification that has none.
pub const NO_DATA: Bytes = Bytes::new();
