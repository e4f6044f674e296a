//! IKE_FOLLOWUP_KE: the additional key exchange of a CREATE_CHILD_SA (RFC 9370 §2.2.4), for the IKE SA and for CHILD_SAs alike.
//!
//! ```text
//! initiator                                responder
//! HDR, SK {SA, Ni, KEi, ...}            ->
//!                                       <- HDR, SK {SA, Nr, KEr, ..., N(ADDITIONAL_KEY_EXCHANGE)(link)}
//! HDR, SK {KEi(1), N(...)(link)}        ->                                   IKE_FOLLOWUP_KE
//!                                       <- HDR, SK {KEr(1)}                  the new SA has its keys
//! ```
//!
//! A responder keeps one such agreement for one peer: a further CREATE_CHILD_SA takes its place. Meanwhile it asks for nothing but signs
//! of life. Where both ends replace the same SA nothing is judged by nonces: who has asked answers the other's request with
//! TEMPORARY_FAILURE, and both try again after a pause of chance.

use bytes::Bytes;

use super::create_child::{ChildTask, Replaced};
use super::negotiate::{Refusal, Unkeyed, key_exchange_payload};
use super::rekey_ike::Agreed;
use crate::crypto::{self, KeyExchange};
use crate::ike::contents::Contents;
use crate::ike::limits::GIVE_UP;
use crate::ike::shared::Shared;
use crate::ike::state::{Established, IkeSa, Task, stay};
use crate::model::{DropReason, Instant, KeGroup, Secret};
use crate::wire::ike::{ExchangeType, KeyExchangePayload, Notify, NotifyType, Payload};

/// Octets of a link between the two exchanges.
const LINK_LEN: usize = 16;

/// Our request.
pub struct FollowUp {
    pub what: Asked,
    half: Box<dyn KeyExchange>,
}

/// What our CREATE_CHILD_SA agreed on.
pub enum Asked {
    /// A successor of the IKE SA.
    Ike(Box<Agreed>),
    /// A CHILD_SA.
    Child(Box<ChildTask>, Box<Unkeyed>),
}

impl std::fmt::Debug for FollowUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FollowUp({:?})", self.half.group())
    }
}

/// The peer's CREATE_CHILD_SA, of which only the additional key exchange is missing.
pub struct Pending {
    pub what: Awaited,
    method: KeGroup,
    link: Bytes,
    pub until: Instant,
}

/// What the peer's CREATE_CHILD_SA agreed on.
pub enum Awaited {
    /// A successor of the IKE SA.
    Ike(Agreed),
    /// A CHILD_SA, and what it is for.
    Child(Box<Unkeyed>, Replaced),
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({:?})", self.method)
    }
}

impl Established {
    // --- initiator ---

    /// Asks for the additional key exchange, or gives back what was agreed on if the response names no link.
    pub fn follow_up(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        what: Asked,
        method: KeGroup,
        response: &Contents,
    ) -> Result<(), Asked> {
        let Some(link) = response.notify(NotifyType::AdditionalKeyExchange).cloned() else { return Err(what) };
        let half = crypto::key_exchange(method, &mut *shared.rng);
        let payloads = [key_exchange_payload(half.as_ref()), Payload::Notify(link)];
        self.ask(shared, now, ExchangeType::IkeFollowupKe, &payloads);
        self.task = Some(Task::FollowUp(Box::new(FollowUp { what, half })));
        Ok(())
    }

    /// The answer to that.
    pub fn conclude_follow_up(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        follow_up: FollowUp,
        response: &Contents,
    ) -> Option<IkeSa> {
        let FollowUp { what, half } = follow_up;
        let secret = agree(half.as_ref(), response);
        if secret.is_err() {
            shared.drop(DropReason::IkeUnexpected);
        }
        match what {
            Asked::Ike(agreed) => self.conclude_ike(shared, now, *agreed, secret.ok()),
            Asked::Child(task, unkeyed) => {
                self.conclude_followed_child(shared, now, &task, *unkeyed, secret);
                stay(self, IkeSa::Established)
            }
        }
    }

    /// The request for a CHILD_SA that waits for its response, be it the first or the second.
    pub fn child_task(&self) -> Option<&ChildTask> {
        match &self.task {
            Some(Task::Child(task)) => Some(task),
            Some(Task::FollowUp(follow_up)) => match &follow_up.what {
                Asked::Child(task, _) => Some(task),
                Asked::Ike(_) => None,
            },
            _ => None,
        }
    }

    /// The same, to be noted on.
    pub fn child_task_mut(&mut self) -> Option<&mut ChildTask> {
        match &mut self.task {
            Some(Task::Child(task)) => Some(task),
            Some(Task::FollowUp(follow_up)) => match &mut follow_up.what {
                Asked::Child(task, _) => Some(task),
                Asked::Ike(_) => None,
            },
            _ => None,
        }
    }

    /// Whether a request of ours to replace the IKE SA waits for its response.
    pub fn is_rekeying(&self) -> bool {
        match &self.task {
            Some(Task::RekeyIke(_)) => true,
            Some(Task::FollowUp(follow_up)) => matches!(follow_up.what, Asked::Ike(_)),
            _ => false,
        }
    }

    // --- responder ---

    /// Answers CREATE_CHILD_SA, and waits for the peer's IKE_FOLLOWUP_KE.
    pub fn await_follow_up(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        what: Awaited,
        method: KeGroup,
        mut payloads: Vec<Payload>,
    ) {
        let mut link = vec![0; LINK_LEN];
        shared.rng.fill(&mut link);
        let link = Bytes::from(link);
        payloads.push(Payload::Notify(Notify::new(NotifyType::AdditionalKeyExchange, link.clone())));
        self.session.respond(shared, &payloads);
        self.pending = Some(Pending { what, method, link, until: now + GIVE_UP });
    }

    /// The peer does something else, or nothing at all.
    pub fn drop_pending(&mut self, shared: &mut Shared) {
        if let Some(Pending { what: Awaited::Child(unkeyed, _), .. }) = self.pending.take() {
            // Nobody was told of it yet.
            shared.spi_owners.remove(&unkeyed.inbound_spi);
        }
    }

    /// IKE_FOLLOWUP_KE: the additional key exchange of what the link names.
    pub fn answer_follow_up(mut self: Box<Self>, shared: &mut Shared, now: Instant, request: &Contents) -> Option<IkeSa> {
        let link = request.notify(NotifyType::AdditionalKeyExchange).map(|notify| &notify.data);
        let Some(method) = self.pending.as_ref().filter(|pending| link == Some(&pending.link)).map(|pending| pending.method)
        else {
            shared.drop(DropReason::IkeUnexpected);
            self.session.respond(shared, &[Refusal::new(NotifyType::StateNotFound, "").payload()]);
            return stay(self, IkeSa::Established);
        };
        let value = request.key_exchange.as_ref().filter(|value| value.group == method.id());
        let answer = value.and_then(|value| crypto::answer_key_exchange(method, &value.value, &mut *shared.rng).ok());
        let Some((value, secret)) = answer else {
            self.drop_pending(shared);
            shared.drop(DropReason::IkeMalformed);
            let sentence = format!("IKE_FOLLOWUP_KE has no usable KE payload for {}", method.name());
            shared.refused(Some(self.peer()), self.session.path, sentence);
            self.session.respond(shared, &[Refusal::new(NotifyType::InvalidSyntax, "").payload()]);
            return stay(self, IkeSa::Established);
        };
        let answer = [Payload::KeyExchange(KeyExchangePayload { group: method.id(), value: value.into() })];
        match self.pending.take().map(|pending| pending.what) {
            Some(Awaited::Ike(agreed)) => {
                self.session.respond(shared, &answer);
                self.hand_to_candidate(shared, now, agreed, secret)
            }
            Some(Awaited::Child(unkeyed, replaced)) => {
                self.answer_child(shared, now, *unkeyed, &replaced, Some(&secret), &answer);
                stay(self, IkeSa::Established)
            }
            None => stay(self, IkeSa::Established),
        }
    }
}

/// The secret of the additional key exchange, if the response has what it takes.
fn agree(half: &dyn KeyExchange, response: &Contents) -> Result<Secret, String> {
    if let Some(error) = response.error() {
        return Err(format!("the peer refused IKE_FOLLOWUP_KE: {}", error.kind.name()));
    }
    let value = response.key_exchange.as_ref().filter(|value| value.group == half.group().id());
    let value = value.ok_or("the answer to IKE_FOLLOWUP_KE has no KE payload of its method")?;
    half.agree(&value.value).map_err(|error| error.to_string())
}
