//! An IKE SA that a rekey made and that has nothing yet: its predecessor decides whether it inherits or whether another one does.
//!
//! It has keys, so it answers: a Delete ends it (its maker lost the collision), a sign of life is returned. What concerns CHILD_SAs
//! stays unanswered until it has them; the peer repeats it.

use super::established::{Birth, Established};
use super::estate::Estate;
use super::{Closed, IkeSa, stay};
use crate::ike::exchange::informational::ends_ike;
use crate::ike::limits::{REKEYED_LINGER, SUCCESSOR_SILENCE};
use crate::ike::session::{Packet, Received, Session};
use crate::ike::shared::Shared;
use crate::model::{DropReason, Instant, PeerIndex};
use crate::wire::ike::ExchangeType;

/// See the module.
#[derive(Debug)]
pub struct Candidate {
    session: Session,
    birth: Birth,
    /// Whether the peer spoke on it, so that it has it.
    heard: bool,
    pub expires: Instant,
}

impl Candidate {
    pub fn new(now: Instant, session: Session, birth: Birth) -> Self {
        Self { session, birth, heard: false, expires: now + REKEYED_LINGER }
    }

    pub fn peer(&self) -> PeerIndex {
        self.birth.config.index
    }

    pub fn handle(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        if self.session.peek(packet).is_some_and(|contents| !contents.spares_children()) {
            // The peer gave it the CHILD_SAs already, so it won. Its Delete of the old one is on its way, and this comes again.
            shared.drop(DropReason::IkeUnexpected);
            self.heard = true;
            return stay(self, IkeSa::Candidate);
        }
        if packet.message.protected.is_some_and(|view| view.fragment.is_some()) {
            // What it says cannot be seen before it is taken, so it must come again.
            shared.drop(DropReason::IkeUnexpected);
            return stay(self, IkeSa::Candidate);
        }
        match self.session.receive(shared, packet, &[ExchangeType::Informational]) {
            Received::Nothing | Received::Response(..) => stay(self, IkeSa::Candidate),
            Received::Broken(_) => self.end(shared, now),
            Received::Request(_, contents) => {
                self.heard = true;
                self.session.respond(shared, &[]);
                if ends_ike(&contents).is_some() { self.end(shared, now) } else { stay(self, IkeSa::Candidate) }
            }
        }
    }

    fn end(self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        shared.candidates.remove(&self.session.local_spi);
        stay(Closed::after(&self.session, now), IkeSa::Closed)
    }

    pub fn handle_timeout(self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        if now < self.expires { stay(self, IkeSa::Candidate) } else { self.end(shared, now) }
    }

    /// Takes its predecessor's place.
    pub fn inherit(self, shared: &mut Shared, now: Instant, estate: Estate) -> Established {
        let initiator = self.session.initiator;
        let mut state = Established::new(shared, now, self.session, self.birth);
        if !initiator && !self.heard {
            state.silent_until = Some(now + SUCCESSOR_SILENCE);
        }
        state.inherit(shared, now, estate);
        state
    }
}
