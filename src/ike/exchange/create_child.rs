//! CREATE_CHILD_SA for CHILD_SAs (RFC 7296 §1.3.1, §1.3.3, §2.8), and what happens when both ends ask at once.
//!
//! ```text
//! initiator                                   responder
//! Reserve spi_i
//! HDR, SK {N(REKEY_SA), SA, Ni, KEi, TSi, TSr} ->
//!                                             Install (inbound opens, outbound is standby), Installed
//!                                          <- HDR, SK {SA, Nr, KEr, TSi, TSr}
//! Install, Installed, Activate
//! HDR, SK {D(old)}                         ->
//!                                             Activate (or sooner, when the first packet arrives), Retire old
//!                                          <- HDR, SK {D(old)}
//! Retire old
//! ```
//!
//! With an additional key exchange IKE_FOLLOWUP_KE goes between, and only then is there something to install: see `follow_up`.
//! If both rekey the same CHILD_SA, both answer; of the four nonces the lowest loses, and who asked for that SA deletes it.
//! Between our own hosts there is one CHILD_SA per worker besides: see `worker_child`.

use bytes::Bytes;

use super::follow_up::{Asked, Awaited};
use super::negotiate::{self, Answer, Nonces, Offer, Refusal, Setting, Unkeyed};
use super::worker_child::resource_info;
use crate::ike::child::{Child, Phase, Then};
use crate::ike::contents::Contents;
use crate::ike::limits::{NEW_SA_INTERVAL, RETRY_REKEY};
use crate::ike::proposals::PostQuantum;
use crate::ike::shared::Shared;
use crate::ike::state::{Established, IkeSa, Job, Task, stay};
use crate::ike::{CloseReason, Event};
use crate::model::{DropReason, Instant, KeGroup, Secret, Spi, WorkerIndex};
use crate::wire::ike::{ExchangeType, Notify, NotifyType, Payload, Protocol};

/// Our request.
#[derive(Debug)]
pub struct ChildTask {
    pub offer: Offer,
    /// The inbound SPI of the CHILD_SA that it replaces.
    pub replaces: Option<Spi>,
    /// What it is for: none is everything, else this worker of ours.
    pub purpose: Option<WorkerIndex>,
    /// The lower nonce of the SA that the peer made by rekeying the same CHILD_SA meanwhile.
    pub rival_nonce: Option<Bytes>,
    /// SPIs that the peer deleted meanwhile and that we did not know: one may be that of the answer, which is late.
    pub deleted: Vec<Spi>,
}

/// What a CHILD_SA that the peer asks for is for.
#[derive(Clone, Copy, Debug)]
pub struct Replaced {
    /// The inbound SPI of the one that it replaces.
    old: Option<Spi>,
    /// None is everything, else this worker of ours.
    purpose: Option<WorkerIndex>,
}

impl ChildTask {
    /// Whether it asks for a first CHILD_SA of a worker.
    pub const fn asks_for_worker(&self) -> bool {
        self.purpose.is_some() && self.replaces.is_none()
    }
}

impl Established {
    // --- initiator ---

    pub fn start_create_child(&mut self, shared: &mut Shared, now: Instant) -> Option<Task> {
        if self.has_live(None) {
            return None;
        }
        self.start_child(shared, now, None, None)
    }

    pub fn start_rekey_child(&mut self, shared: &mut Shared, now: Instant, old: Spi) -> Option<Task> {
        let child = self.children.get(&old)?;
        if !child.can_be_rekeyed() {
            return None;
        }
        let purpose = child.purpose();
        self.start_child(shared, now, Some(old), purpose)
    }

    pub fn start_child(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        replaces: Option<Spi>,
        purpose: Option<WorkerIndex>,
    ) -> Option<Task> {
        let config = self.birth.config.clone();
        // The group of the IKE SA is one that the peer speaks.
        let group = self.birth.suite.group;
        let owner = purpose.unwrap_or(config.owner);
        let additional = self.post_quantum() != PostQuantum::No;
        let offer = Offer::in_create_child_sa(shared, &config, owner, self.session.local_spi, group, additional);
        let task = ChildTask { offer, replaces, purpose, rival_nonce: None, deleted: Vec::new() };
        self.send_child_request(shared, now, &task);
        Some(Task::Child(Box::new(task)))
    }

    fn send_child_request(&mut self, shared: &mut Shared, now: Instant, task: &ChildTask) {
        let mut payloads = Vec::new();
        if let Some(old) = task.replaces {
            payloads.push(Payload::Notify(child_notify(NotifyType::RekeySa, Some(old))));
        } else if let Some(worker) = task.purpose {
            payloads.push(resource_info(worker));
        }
        payloads.extend(task.offer.payloads(&self.birth.config));
        self.ask(shared, now, ExchangeType::CreateChildSa, &payloads);
    }

    /// The answer to our request.
    pub fn conclude_child(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        mut task: ChildTask,
        response: &Contents,
    ) -> Option<IkeSa> {
        let refused = response.error().filter(|error| error.kind != NotifyType::InvalidKePayload);
        if let Some(error) = refused {
            self.child_refused(shared, now, &task, error.kind);
            return stay(self, IkeSa::Established);
        }
        let nonce_r = response.nonce.clone().unwrap_or_default();
        let config = self.birth.config.clone();
        match task.offer.accept(&config, &nonce_r, response) {
            Ok(Answer::Child(child)) if self.child_by_outbound(child.outbound_spi).is_some() => {
                self.child_unusable(shared, now, &task, "the answer's SPI is in use by another CHILD_SA".to_owned());
            }
            Ok(Answer::Child(child)) if task.asks_for_worker() && response.notify(NotifyType::SaResourceInfo).is_none() => {
                self.worker_child_unbound(shared, now, &task, child.outbound_spi);
            }
            Ok(Answer::Child(child)) if !nonce_r.is_empty() => match child.suite.additional {
                Some(method) => self.follow_up_child(shared, now, task, child, method, response),
                None => self.child_agreed(shared, now, &task, *child, None),
            },
            Ok(Answer::OtherGroup(group)) => return self.retry_child(shared, now, task, group),
            Ok(Answer::Child(_)) => self.child_unusable(shared, now, &task, "the answer has no nonce".to_owned()),
            Err(sentence) => self.child_unusable(shared, now, &task, sentence),
        }
        stay(self, IkeSa::Established)
    }

    /// INVALID_KE_PAYLOAD: the same request for another group.
    fn retry_child(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        mut task: ChildTask,
        group: KeGroup,
    ) -> Option<IkeSa> {
        if task.offer.retry_with(shared, group) {
            self.send_child_request(shared, now, &task);
            self.task = Some(Task::Child(Box::new(task)));
        } else {
            self.child_refused(shared, now, &task, NotifyType::InvalidKePayload);
        }
        stay(self, IkeSa::Established)
    }

    /// The additional key exchange has to follow. If the peer has replaced the CHILD_SA meanwhile without one, its own stays.
    fn follow_up_child(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: ChildTask,
        child: Box<Unkeyed>,
        method: KeGroup,
        response: &Contents,
    ) {
        if task.rival_nonce.is_some() {
            return shared.release_spi(child.inbound_spi);
        }
        if let Err(Asked::Child(task, _)) =
            self.follow_up(shared, now, Asked::Child(Box::new(task), child), method, response)
        {
            shared.drop(DropReason::IkeMalformed);
            self.child_abandoned(shared, now, &task, "the answer has no ADDITIONAL_KEY_EXCHANGE".to_owned());
        }
    }

    /// The answer to IKE_FOLLOWUP_KE.
    pub fn conclude_followed_child(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: &ChildTask,
        child: Unkeyed,
        additional: Result<Secret, String>,
    ) {
        match additional {
            Ok(secret) => self.child_agreed(shared, now, task, child, Some(&secret)),
            Err(sentence) => self.child_abandoned(shared, now, task, sentence),
        }
    }

    /// Nothing was made at either end.
    fn child_abandoned(&mut self, shared: &mut Shared, now: Instant, task: &ChildTask, sentence: String) {
        shared.release_spi(task.offer.spi);
        let reason = CloseReason::WeRefused(sentence);
        if task.asks_for_worker() {
            return self.no_more_worker_children(shared, now, reason);
        }
        shared.event(Event::ChildFailed { peer: self.peer(), reason });
        self.postpone(shared, now, task.replaces);
    }

    /// Both ends agree on a new CHILD_SA.
    fn child_agreed(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: &ChildTask,
        child: Unkeyed,
        additional: Option<&Secret>,
    ) {
        let low_nonce = child.low_nonce();
        let config = self.birth.config.clone();
        let setting = Setting::new(shared, &config, self.session.esp_path(shared.config.natt_port));
        let params = child.keyed(setting, self.source(), additional);
        let lost = task.rival_nonce.as_ref().is_some_and(|rival| low_nonce < *rival);
        let old = task.replaces.filter(|old| self.children.contains_key(old));
        if task.deleted.contains(&params.outbound_spi) {
            // The Delete overtook the answer. The old one is still to be replaced.
            shared.release_spi(params.inbound_spi);
            return match old {
                Some(_) => self.postpone(shared, now, old),
                None => self.want_child_now(now),
            };
        }
        if lost {
            // The peer's SA stays (§2.8.1): ours is deleted before it was ever used. Where the old one is gone and another is there,
            // ours is made all the same: the peer, which deleted the old one, may send with it already. One of the two goes as surplus.
            self.adopt_child(Child::unwanted(params.inbound_spi, Some(params.outbound_spi), low_nonce, now));
            self.enqueue(Job::DeleteChild(task.offer.spi));
            return;
        }
        let mut child = Child::new(&params, Phase::Standby, true, low_nonce, now);
        child.per_worker = task.purpose.is_some();
        let ticket = shared.install_for(params, child.per_worker);
        child.phase = Phase::Installing(ticket, Then::UseAndDelete(old));
        if let Some(old) = old.and_then(|old| self.children.get_mut(&old)) {
            old.successor = Some(child.inbound_spi);
            if old.phase == Phase::Standby {
                old.phase = Phase::Superseded;
            }
        }
        self.adopt_child(child);
    }

    /// The answer makes no sense to us; the peer may hold an SA that we do not want.
    fn child_unusable(&mut self, shared: &mut Shared, now: Instant, task: &ChildTask, sentence: String) {
        shared.drop(DropReason::IkeMalformed);
        self.adopt_child(Child::unwanted(task.offer.spi, None, task.offer.nonce.clone(), now));
        self.enqueue(Job::DeleteChild(task.offer.spi));
        let reason = CloseReason::WeRefused(sentence);
        if task.asks_for_worker() {
            return self.no_more_worker_children(shared, now, reason);
        }
        shared.event(Event::ChildFailed { peer: self.peer(), reason });
        self.postpone(shared, now, task.replaces);
    }

    fn child_refused(&mut self, shared: &mut Shared, now: Instant, task: &ChildTask, error: NotifyType) {
        shared.release_spi(task.offer.spi);
        let old = task.replaces.filter(|old| self.children.contains_key(old));
        match (error, old) {
            // The peer has no such SA (any more): neither have we.
            (NotifyType::ChildSaNotFound, Some(old)) => {
                self.hand_over(shared, old);
                if let Some(child) = self.children.remove(&old) {
                    child.retire(shared, false);
                }
                self.want_child_now(now);
            }
            // It is gone here too: deleted by the peer while we asked.
            (_, None) if task.replaces.is_some() => self.want_child_now(now),
            // The worker asks again while it has packets. Not for each worker at once: the peer may grant no more than one a while.
            (NotifyType::TemporaryFailure, _) if task.asks_for_worker() => self.worker_retry = Some(now + NEW_SA_INTERVAL),
            (NotifyType::TemporaryFailure, _) => self.postpone(shared, now, task.replaces),
            (error, _) => {
                let notify = error.name().into_owned();
                let reason = CloseReason::PeerRefused { notify, authenticated: true };
                if task.asks_for_worker() {
                    return self.no_more_worker_children(shared, now, reason);
                }
                shared.event(Event::ChildFailed { peer: self.peer(), reason });
                self.postpone(shared, now, task.replaces);
            }
        }
    }

    /// Tries again later. Hard expiry stays armed.
    fn postpone(&mut self, shared: &mut Shared, now: Instant, replaces: Option<Spi>) {
        match replaces.and_then(|old| self.children.get_mut(&old)) {
            Some(old) => old.soft_at = now + RETRY_REKEY + shared.rng.jitter(RETRY_REKEY),
            None => self.want_child(shared, now, true),
        }
    }

    // --- responder ---

    pub fn answer_create_child(mut self: Box<Self>, shared: &mut Shared, now: Instant, request: &Contents) -> Option<IkeSa> {
        match self.make_child(shared, now, request) {
            Ok(()) => {}
            Err(refusal) => {
                let fatal = refusal.notify.kind == NotifyType::InvalidSyntax;
                shared.drop(DropReason::IkeUnexpected);
                shared.refused(Some(self.peer()), self.session.path, format!("CREATE_CHILD_SA: {}", refusal.sentence));
                self.session.respond(shared, &[refusal.payload()]);
                if fatal {
                    return self.die(shared, now, CloseReason::WeRefused(refusal.sentence));
                }
            }
        }
        stay(self, IkeSa::Established)
    }

    fn make_child(&mut self, shared: &mut Shared, now: Instant, request: &Contents) -> Result<(), Refusal> {
        self.drop_pending(shared);
        if self.is_rekeying() {
            return Err(Refusal::new(NotifyType::TemporaryFailure, "the IKE SA is being rekeyed"));
        }
        let old = request.notify(NotifyType::RekeySa).map(|notify| self.rekeyed_child(notify)).transpose()?;
        let purpose = match old.and_then(|old| self.children.get(&old)) {
            Some(old) => old.purpose(),
            None => self.worker_asked_for(shared, request),
        };
        self.check_room(purpose.is_some(), old.is_some())?;
        if !shared.may_ask_for_sa(now, self.peer()) {
            return Err(Refusal::too_many());
        }
        let nonce_i = request.nonce.as_ref();
        let nonce_i = nonce_i.ok_or_else(|| Refusal::new(NotifyType::InvalidSyntax, "the request has no nonce"))?;
        let nonce_r = shared.nonce();
        let config = self.birth.config.clone();
        let owner = purpose.unwrap_or(config.owner);
        let nonces = Nonces { initiator: nonce_i, responder: &nonce_r, in_auth: false };
        let (unkeyed, mut payloads) = negotiate::answer(shared, self.session.local_spi, &config, owner, nonces, request)?;
        let replaces_too = old.is_some() && self.child_task().is_some_and(|task| task.replaces == old);
        let refusal = if self.child_by_outbound(unkeyed.outbound_spi).is_some() {
            Some((NotifyType::NoProposalChosen, "the proposal's SPI is in use by another CHILD_SA"))
        } else if replaces_too && (unkeyed.suite.additional.is_some() || matches!(self.task, Some(Task::FollowUp(_)))) {
            Some((NotifyType::TemporaryFailure, "both ends rekey the CHILD_SA"))
        } else {
            None
        };
        if let Some((notify, sentence)) = refusal {
            shared.spi_owners.remove(&unkeyed.inbound_spi);
            return Err(Refusal::new(notify, sentence));
        }
        if let Some(worker) = purpose.filter(|_| old.is_none()) {
            payloads.push(resource_info(worker));
        }
        let replaced = Replaced { old, purpose };
        match unkeyed.suite.additional {
            Some(method) => {
                self.await_follow_up(shared, now, Awaited::Child(Box::new(unkeyed), replaced), method, payloads);
            }
            None => self.answer_child(shared, now, unkeyed, &replaced, None, &payloads),
        }
        Ok(())
    }

    /// Installs the CHILD_SA that the peer asked for; the answer leaves behind that.
    pub fn answer_child(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        unkeyed: Unkeyed,
        replaced: &Replaced,
        additional: Option<&Secret>,
        payloads: &[Payload],
    ) {
        let config = self.birth.config.clone();
        let setting = Setting::new(shared, &config, self.session.esp_path(shared.config.natt_port));
        let low_nonce = unkeyed.low_nonce();
        let params = unkeyed.keyed(setting, self.source(), additional);
        let mut child = Child::new(&params, Phase::Standby, false, low_nonce.clone(), now);
        child.per_worker = replaced.purpose.is_some();
        let ticket = shared.install_for(params, child.per_worker);
        child.phase = Phase::Installing(ticket, Then::Answer);
        self.session.respond_after(ticket, payloads);
        if let Some(old) = replaced.old {
            self.note_rekey(old, child.inbound_spi, low_nonce);
        }
        self.adopt_child(child);
    }

    /// The CHILD_SA that REKEY_SA names, by the SPI that the peer receives on (§1.3.3).
    fn rekeyed_child(&mut self, notify: &Notify) -> Result<Spi, Refusal> {
        let spi = <[u8; 4]>::try_from(&notify.spi[..]).ok().and_then(|octets| Spi::new(u32::from_be_bytes(octets)));
        let named = spi.filter(|_| notify.protocol == Protocol::Esp);
        if self.child_task().is_some() && named.is_some_and(|spi| self.child_by_outbound(spi).is_none()) {
            // It may be the one that we are asking for: the answer is late.
            return Err(Refusal::new(NotifyType::TemporaryFailure, "a CHILD_SA is being made"));
        }
        let Some(child) = named.and_then(|spi| self.child_by_outbound(spi)) else {
            let notify = child_notify(NotifyType::ChildSaNotFound, spi);
            return Err(Refusal { notify, sentence: "REKEY_SA names no CHILD_SA of this IKE SA".to_owned() });
        };
        let busy = match child.phase {
            Phase::Deleting => Some("the CHILD_SA is being deleted"),
            Phase::Installing(..) => Some("the CHILD_SA is being made"),
            _ if child.successor.is_some() => Some("the CHILD_SA has a successor already"),
            _ => None,
        };
        match busy {
            Some(sentence) => Err(Refusal::new(NotifyType::TemporaryFailure, sentence)),
            None => Ok(child.inbound_spi),
        }
    }

    /// The peer replaces this one. If we are asking for the same, our answer decides.
    fn note_rekey(&mut self, old: Spi, successor: Spi, low_nonce: Bytes) {
        if let Some(Task::Child(task)) = &mut self.task
            && task.replaces == Some(old)
        {
            task.rival_nonce = Some(low_nonce);
        }
        if let Some(child) = self.children.get_mut(&old) {
            child.successor = Some(successor);
        }
    }
}

/// A notification about an ESP SA.
fn child_notify(kind: NotifyType, spi: Option<Spi>) -> Notify {
    let spi = spi.map(|spi| Bytes::copy_from_slice(&spi.value().to_be_bytes())).unwrap_or_default();
    Notify { protocol: Protocol::Esp, spi, kind, data: Bytes::new() }
}
