//! The last two states: an IKE SA that is replaced or being deleted, and one that is gone.

use std::net::IpAddr;

use super::{IkeSa, stay};
use crate::ike::Event;
use crate::ike::effect::Effect;
use crate::ike::exchange::informational::{DELETE_IKE, NO_DATA, ends_ike};
use crate::ike::exchange::negotiate::Refusal;
use crate::ike::limits::{CLOSED_LINGER, GIVE_UP_DELETE, REKEYED_LINGER};
use crate::ike::session::{Answered, Packet, Received, Session};
use crate::ike::shared::Shared;
use crate::model::{DropReason, IkeSpi, Instant, PeerIndex};
use crate::wire::ike::{ExchangeType, Notify, NotifyType, Payload};

/// How it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Our Delete leaves as soon as the window is free.
    ToDelete,
    /// Our Delete is under way.
    Deleting,
    /// The peer rekeyed it and is to delete it; then its successor is known to be up.
    Rekeyed(IkeSpi),
}

/// Replaced, or being deleted. It has no CHILD_SAs any more.
#[derive(Debug)]
pub struct Leaving {
    session: Session,
    pub peer: PeerIndex,
    way: Way,
    until: Instant,
}

impl Leaving {
    /// Deletes it.
    pub fn deleting(shared: &mut Shared, now: Instant, mut session: Session, peer: PeerIndex) -> Self {
        session.withhold_auth();
        let mut state = Self { session, peer, way: Way::ToDelete, until: now + GIVE_UP_DELETE };
        state.delete(shared, now, &[DELETE_IKE]);
        state
    }

    /// Tells a responder that its AUTH did not convince us (RFC 7296 §2.21.2), and deletes what it thinks it has.
    pub fn unauthenticated(shared: &mut Shared, now: Instant, session: Session, peer: PeerIndex) -> Self {
        let failed = Payload::Notify(Notify::new(NotifyType::AuthenticationFailed, NO_DATA));
        let mut state = Self { session, peer, way: Way::ToDelete, until: now + GIVE_UP_DELETE };
        state.delete(shared, now, &[failed, DELETE_IKE]);
        state
    }

    /// Waits for the peer to delete it.
    pub fn rekeyed(now: Instant, session: Session, peer: PeerIndex, heir: IkeSpi) -> Self {
        Self { session, peer, way: Way::Rekeyed(heir), until: now + REKEYED_LINGER }
    }

    fn delete(&mut self, shared: &mut Shared, now: Instant, payloads: &[Payload]) {
        if !self.session.is_busy() {
            self.way = Way::Deleting;
            self.session.request_for(shared, now, ExchangeType::Informational, payloads, GIVE_UP_DELETE);
        }
    }

    pub fn handle(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        let exchanges = [ExchangeType::CreateChildSa, ExchangeType::Informational];
        match self.session.receive(shared, packet, &exchanges) {
            Received::Nothing => stay(self, IkeSa::Leaving),
            Received::Broken(_) => self.end(now),
            Received::Request(ExchangeType::Informational, contents) => {
                self.session.respond(shared, &[]);
                if ends_ike(&contents).is_none() {
                    return stay(self, IkeSa::Leaving);
                }
                if let Way::Rekeyed(heir) = self.way {
                    shared.effects.push_back(Effect::Confirm(heir));
                }
                self.end(now)
            }
            Received::Request(..) => {
                shared.drop(DropReason::IkeUnexpected);
                self.session.respond(shared, &[Refusal::new(NotifyType::TemporaryFailure, "").payload()]);
                stay(self, IkeSa::Leaving)
            }
            Received::Response(_, asked) => match self.way {
                Way::Deleting => self.end(now),
                Way::ToDelete => {
                    self.delete(shared, now, &[DELETE_IKE]);
                    stay(self, IkeSa::Leaving)
                }
                Way::Rekeyed(_) => {
                    shared.event(Event::Proof { peer: self.peer, asked });
                    stay(self, IkeSa::Leaving)
                }
            },
        }
    }

    fn end(self: Box<Self>, now: Instant) -> Option<IkeSa> {
        stay(Closed::after(&self.session, now), IkeSa::Closed)
    }

    pub fn handle_timeout(mut self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        if now >= self.until || self.session.handle_timeout(shared, now) {
            return self.end(now);
        }
        stay(self, IkeSa::Leaving)
    }

    pub fn poll_timeout(&self) -> Instant {
        self.session.poll_timeout().map_or(self.until, |at| at.min(self.until))
    }
}

/// Gone. A peer that missed our last answer gets it once more; everything else is dropped.
#[derive(Debug)]
pub struct Closed {
    /// The last request, and its answer.
    pub last_answer: Option<Answered>,
    pub until: Instant,
    /// Where it came from, if its sender never proved who it is: then it still counts as half-open.
    pub source: Option<IpAddr>,
}

impl Closed {
    /// What is left of a session.
    pub fn after(session: &Session, now: Instant) -> Box<Self> {
        Box::new(Self { last_answer: session.last_answer(), until: now + CLOSED_LINGER, source: None })
    }

    pub fn handle(self: Box<Self>, shared: &mut Shared, packet: Packet<'_>) -> Option<IkeSa> {
        if !self.last_answer.as_ref().is_some_and(|answered| answered.repeat(shared, packet)) {
            shared.drop(DropReason::IkeUnknownSpi);
        }
        stay(self, IkeSa::Closed)
    }

    pub fn handle_timeout(self: Box<Self>, now: Instant) -> Option<IkeSa> {
        if now < self.until { stay(self, IkeSa::Closed) } else { None }
    }
}
