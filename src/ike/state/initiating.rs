//! Initiator, from IKE_SA_INIT to AUTH (RFC 7296 §2.4, last paragraph).
//!
//! Whoever sees our IKE_SA_INIT can forge an answer to it that comes first. Only AUTH tells which answer is the peer's, so the first
//! few that make sense are all followed, each with its own keys, and the first whose AUTH holds makes the IKE SA; the others are
//! forgotten. One that fails ends the initiation only if no other is left, and not before those that it may have overtaken are there.
//!
//! ```text
//! InitSent -+-> [IntermediateSent ->] AuthSent -> Established
//!           +-> [IntermediateSent ->] AuthSent -> refused, Leaving
//!           +-> ...
//! ```

use super::auth_sent::AuthStart;
use super::{AuthSent, Established, IkeSa, InitSent, IntermediateSent, Leaving, stay};
use crate::crypto;
use crate::ike::limits::{ANSWERS_OPEN, MAX_ANSWERS};
use crate::ike::session::Packet;
use crate::ike::shared::Shared;
use crate::ike::{CloseReason, Event};
use crate::model::{DropReason, Instant, PeerIndex, Secret};
use crate::wire::ike::ExchangeType;

/// What one answer has led to so far.
#[derive(Debug)]
pub enum Course {
    /// We sent IKE_INTERMEDIATE.
    Intermediate(Box<IntermediateSent>),
    /// We sent IKE_AUTH.
    Auth(Box<AuthSent>),
}

/// What a message or a clock makes of a course.
pub enum Progress {
    /// It goes on.
    GoesOn(Course),
    /// AUTH holds.
    Up(Box<Established>),
    /// It came to nothing.
    Failed(CloseReason),
    /// The same, and the responder is told so.
    Refused(CloseReason, Box<Leaving>),
}

impl Course {
    fn begin(shared: &mut Shared, now: Instant, start: AuthStart) -> Self {
        match start.suite.additional {
            Some(method) => Self::Intermediate(Box::new(IntermediateSent::start(shared, now, start, method))),
            None => Self::Auth(Box::new(AuthSent::start(shared, now, start))),
        }
    }

    const fn start(&self) -> &AuthStart {
        match self {
            Self::Intermediate(state) => state.start_data(),
            Self::Auth(state) => state.start_data(),
        }
    }

    fn handle(self, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Progress {
        match self {
            Self::Intermediate(state) => state.handle(shared, now, packet),
            Self::Auth(state) => state.handle(shared, now, packet),
        }
    }

    fn handle_timeout(self, shared: &mut Shared, now: Instant) -> Progress {
        match self {
            Self::Intermediate(state) => state.handle_timeout(shared, now),
            Self::Auth(state) => state.handle_timeout(shared, now),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Intermediate(state) => state.poll_timeout(),
            Self::Auth(state) => state.poll_timeout(),
        }
    }

    fn abandon(self, shared: &mut Shared) {
        if let Self::Auth(state) = self {
            shared.release_spi(state.child_spi());
        }
    }

    /// Ends it, and tells a responder that may believe in an IKE SA.
    fn leave(self, shared: &mut Shared, now: Instant) -> Option<Box<Leaving>> {
        match self {
            Self::Intermediate(_) => None,
            Self::Auth(state) => Some(Box::new(state.leave(shared, now))),
        }
    }
}

/// Why an answer that was followed came to nothing.
#[derive(Debug)]
struct Refusal {
    reason: CloseReason,
    /// Tells the responder, if it is to be told.
    leaving: Option<IkeSa>,
}

/// See the module.
#[derive(Debug)]
pub struct Initiating {
    init: InitSent,
    courses: Vec<Course>,
    /// SK_d of each answer that was followed. None is followed twice: an altered copy leads to the same keys, and the same nonces
    /// would be used under them.
    followed: Vec<Secret>,
    /// Until when more may come.
    open_until: Instant,
    /// The last that came to nothing.
    refusal: Option<Refusal>,
}

impl Initiating {
    pub const fn new(init: InitSent) -> Self {
        Self { open_until: init.started, init, courses: Vec::new(), followed: Vec::new(), refusal: None }
    }

    pub fn peer(&self) -> PeerIndex {
        self.init.peer()
    }

    /// Somebody asks for this initiation again.
    pub const fn want(&mut self, now: Instant) {
        self.init.wanted = now;
    }

    /// Whether no IKE_AUTH that left can still be answered.
    pub const fn is_unanswered(&self) -> bool {
        self.courses.is_empty()
    }

    pub fn handle(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        if packet.message.header.exchange == ExchangeType::IkeSaInit {
            return self.handle_answer(shared, now, packet);
        }
        let Some(place) = self.place_of(packet) else {
            return self.handle_rest(shared, now, packet);
        };
        let progress = self.courses.remove(place).handle(shared, now, packet);
        self.advance(shared, now, place, progress)
    }

    /// An answer to IKE_SA_INIT: as good as any other that came before it.
    fn handle_answer(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        let known = self.courses.iter().any(|course| course.start().record.response == packet.datagram);
        if known || self.followed.len() == MAX_ANSWERS {
            shared.drop(DropReason::IkeUnexpected);
        } else if let Some(mut start) = self.init.handle(shared, now, packet, self.followed.is_empty()) {
            if self.followed.iter().any(|sk_d| crypto::equal(sk_d.expose(), start.keys.sk_d.expose())) {
                shared.drop(DropReason::IkeUnexpected);
                return stay(self, IkeSa::Initiating);
            }
            if self.followed.is_empty() {
                self.open_until = now + ANSWERS_OPEN;
            }
            start.session.take_ivs(self.followed.len() as u64);
            self.followed.push(start.keys.sk_d.clone());
            self.courses.push(Course::begin(shared, now, start));
        }
        stay(self, IkeSa::Initiating)
    }

    /// The course that a protected message belongs to: of several with one SPI, the one whose keys open it.
    fn place_of(&self, packet: Packet<'_>) -> Option<usize> {
        let spi = packet.message.header.responder_spi;
        let mut places = (0..self.courses.len()).filter(|&place| self.session_spi(place) == spi);
        let first = places.next()?;
        let opens = |place: &usize| self.courses[*place].start().session.opens(packet);
        Some(places.find(opens).unwrap_or(first))
    }

    fn session_spi(&self, place: usize) -> u64 {
        self.courses[place].start().session.remote_spi.value()
    }

    /// A message for what is left of a refused answer, if for anything.
    fn handle_rest(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        match self.refusal.as_mut().and_then(|refusal| refusal.leaving.take()) {
            Some(leaving) => {
                let rest = leaving.handle(shared, now, packet);
                self.keep_rest(rest);
            }
            None => shared.drop(DropReason::IkeUnexpected),
        }
        stay(self, IkeSa::Initiating)
    }

    fn keep_rest(&mut self, rest: Option<IkeSa>) {
        if let Some(refusal) = &mut self.refusal {
            refusal.leaving = rest;
        }
    }

    /// Does what a course has come to.
    fn advance(mut self: Box<Self>, shared: &mut Shared, now: Instant, place: usize, progress: Progress) -> Option<IkeSa> {
        match progress {
            Progress::GoesOn(course) => self.courses.insert(place, course),
            Progress::Up(state) => {
                self.courses.into_iter().for_each(|course| course.abandon(shared));
                return stay(state, IkeSa::Established);
            }
            Progress::Failed(reason) => self.refusal = Some(Refusal { reason, leaving: None }),
            Progress::Refused(reason, leaving) => {
                self.refusal = Some(Refusal { reason, leaving: Some(IkeSa::Leaving(leaving)) });
            }
        }
        self.end_or_wait(shared, now)
    }

    /// Ends if there is nothing to wait for.
    fn end_or_wait(mut self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        if !self.courses.is_empty() {
            return stay(self, IkeSa::Initiating);
        }
        match self.refusal.take() {
            Some(refusal) if now >= self.open_until => {
                shared.initiate_failed(self.init.peer(), self.init.wanted, refusal.reason);
                refusal.leaving
            }
            refusal => {
                if let Some(refusal) = &refusal {
                    self.init.note(shared, refusal.reason.clone());
                }
                self.refusal = refusal;
                stay(self, IkeSa::Initiating)
            }
        }
    }

    pub fn handle_timeout(mut self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        if self.followed.is_empty() {
            return if self.init.handle_timeout(shared, now) { stay(self, IkeSa::Initiating) } else { None };
        }
        let is_due = |course: &Course| course.poll_timeout().is_some_and(|at| at <= now);
        if let Some(place) = self.courses.iter().position(is_due) {
            let progress = self.courses.remove(place).handle_timeout(shared, now);
            return self.advance(shared, now, place, progress);
        }
        if let Some(leaving) = self.refusal.as_mut().and_then(|refusal| refusal.leaving.take()) {
            let due = leaving.poll_timeout().is_some_and(|at| at <= now);
            let rest = if due { leaving.handle_timeout(shared, now) } else { Some(leaving) };
            self.keep_rest(rest);
        }
        self.end_or_wait(shared, now)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.followed.is_empty() {
            return Some(self.init.poll_timeout());
        }
        let open = self.refusal.as_ref().filter(|_| self.courses.is_empty()).map(|_| self.open_until);
        let rest = self.refusal.as_ref().and_then(|refusal| refusal.leaving.as_ref()?.poll_timeout());
        self.courses.iter().filter_map(Course::poll_timeout).chain(open).chain(rest).min()
    }

    /// Nobody wants it any more. Of several answers each is told, and the last one again if need be.
    pub fn close(self, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        shared.event(Event::InitiateFailed { peer: self.init.peer(), reason: CloseReason::Closed });
        self.courses.into_iter().filter_map(|course| course.leave(shared, now)).last().map(IkeSa::Leaving)
    }
}
