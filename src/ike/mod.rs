//! The control plane: IKEv2 (RFC 7296) as a machine without sockets, clock or randomness of its own.
//!
//! `Endpoint` holds every IKE SA of a host. The loop around it is always the same: call one `handle_*`, then drain
//! `Endpoint::poll_transmit` and `Endpoint::poll_event` until both are empty, then sleep until
//! `Endpoint::poll_timeout`. A peer is initiator and responder at once; one struct per state, one file per exchange.
//!
//! The data plane is told by [`Event`]s what to install. Where a message must not leave before the data plane has done so,
//! the event carries a [`Ticket`](crate::model::Ticket), and the message waits for [`Command::Installed`].

pub mod auth;
mod config;
mod event;
pub mod keymat;
pub mod narrow;
pub mod natd;
pub mod proposals;

pub use config::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, RemoteEndpoint};
pub use event::{ChildSummary, CloseReason, Command, Event, IkeSummary, Transmit};
pub struct Endpoint;
impl Endpoint {
    pub fn new(_: EndpointConfig, _: Box<dyn crate::model::Rng + Send>) -> Self {
        todo!()
    }
    pub fn upsert_peer(&mut self, _: PeerConfig) {
        todo!()
    }
    pub fn remove_peer(&mut self, _: crate::model::PeerIndex) {
        todo!()
    }
    pub fn handle_datagram(
        &mut self,
        _: crate::model::Instant,
        _: crate::model::Path,
        _: crate::model::Transport,
        _: &[u8],
    ) {
        todo!()
    }
    pub fn handle_timeout(&mut self, _: crate::model::Instant) {
        todo!()
    }
    pub fn handle_command(&mut self, _: crate::model::Instant, _: Command) {
        todo!()
    }
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        todo!()
    }
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }
    pub fn poll_timeout(&self) -> Option<crate::model::Instant> {
        todo!()
    }
    pub fn drops(&self) -> &crate::model::Drops {
        todo!()
    }
}
