//! The states of an IKE SA, one struct each. Only [`Established`] has CHILD_SAs, and only a verified AUTH makes one.
//!
//! ```text
//! initiator: Initiating: InitSent [-> IntermediateSent] -> AuthSent -+
//!                                                                    +-> Established -> Leaving -> Closed
//! responder:                    HalfOpen ------+        ^
//!                                      rekey: Candidate -+
//! ```

mod auth_sent;
mod candidate;
mod established;
mod estate;
mod half_open;
mod init_sent;
mod initiating;
mod intermediate_sent;
mod leaving;

pub use auth_sent::AuthSent;
pub use candidate::Candidate;
pub use established::{Birth, Established, Job, Lineage, Replacement, Task};
pub use estate::Estate;
pub use half_open::{HalfOpen, init_answer_header, respond_to_init};
pub use init_sent::InitSent;
pub use initiating::Initiating;
pub use intermediate_sent::IntermediateSent;
pub use leaving::{Closed, Leaving};

use super::session::Packet;
use super::shared::Shared;
use crate::model::{Instant, PeerIndex};

/// An IKE SA in one of its states.
#[derive(Debug)]
pub enum IkeSa {
    /// We sent IKE_SA_INIT, and what follows it up to IKE_AUTH.
    Initiating(Box<Initiating>),
    /// We answered IKE_SA_INIT.
    HalfOpen(Box<HalfOpen>),
    /// It is up.
    Established(Box<Established>),
    /// Made by a rekey, and not yet in the old one's place.
    Candidate(Box<Candidate>),
    /// Replaced, or being deleted: only Deletes are spoken.
    Leaving(Box<Leaving>),
    /// Gone: repeats its last answer to who missed it.
    Closed(Box<Closed>),
}

impl IkeSa {
    /// Takes a message that names this IKE SA; what comes back is the next state, if any is left.
    pub fn handle(self, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        match self {
            Self::Initiating(state) => state.handle(shared, now, packet),
            Self::HalfOpen(state) => state.handle(shared, now, packet),
            Self::Established(state) => state.handle(shared, now, packet),
            Self::Candidate(state) => state.handle(shared, now, packet),
            Self::Leaving(state) => state.handle(shared, now, packet),
            Self::Closed(state) => state.handle(shared, packet),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(self, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        match self {
            Self::Initiating(state) => state.handle_timeout(shared, now),
            Self::HalfOpen(state) => state.handle_timeout(now),
            Self::Established(state) => state.handle_timeout(shared, now),
            Self::Candidate(state) => state.handle_timeout(shared, now),
            Self::Leaving(state) => state.handle_timeout(shared, now),
            Self::Closed(state) => state.handle_timeout(now),
        }
    }

    /// When something is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Initiating(state) => state.poll_timeout(),
            Self::HalfOpen(state) => Some(state.expires),
            Self::Established(state) => state.poll_timeout(),
            Self::Candidate(state) => Some(state.expires),
            Self::Leaving(state) => Some(state.poll_timeout()),
            Self::Closed(state) => Some(state.until),
        }
    }

    /// Whose it is, as far as that is known (before AUTH: whom we wanted to reach).
    pub fn peer(&self) -> Option<PeerIndex> {
        match self {
            Self::Initiating(state) => Some(state.peer()),
            Self::HalfOpen(_) | Self::Closed(_) => None,
            Self::Established(state) => Some(state.peer()),
            Self::Candidate(state) => Some(state.peer()),
            Self::Leaving(state) => Some(state.peer),
        }
    }

    /// Somebody asks for an initiation that is open already.
    pub fn want(&mut self, now: Instant) {
        if let Self::Initiating(state) = self {
            state.want(now);
        }
    }

    /// Whether it is an initiation of ours that is not done.
    pub const fn is_initiating(&self) -> bool {
        matches!(self, Self::Initiating(_))
    }
}

/// What a handler that keeps its state returns.
pub fn stay<T>(state: Box<T>, wrap: impl FnOnce(Box<T>) -> IkeSa) -> Option<IkeSa> {
    Some(wrap(state))
}
