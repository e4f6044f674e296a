//! The control plane: IKEv2 (RFC 7296) as a machine without sockets, clock or randomness of its own.
//!
//! [`Endpoint`] holds every IKE SA of a host. The loop around it is always the same: call one `handle_*`, then drain
//! [`Endpoint::poll_event`] and then [`Endpoint::poll_transmit`] until both are empty, then sleep until
//! [`Endpoint::poll_timeout`]. A peer is initiator and responder at once; one struct per state, one file per exchange.
//!
//! The data plane is told by [`Event`]s what to install. Where a message must not leave before the data plane has done so,
//! the event carries a [`Ticket`](crate::model::Ticket), and the message waits for [`Command::Installed`].
//!
//! The way of a datagram: `demux` finds the IKE SA; its `state` hands the message to its `session`, which checks window and ICV; the
//! state hands the `contents` to the `exchange`; what concerns other IKE SAs comes back as an `effect`. `duplicates` keeps one IKE
//! SA per peer, `mobike` follows ends that move, `limits` has every number with its reason.

pub mod auth;
mod channel;
mod child;
mod config;
mod contents;
mod cookie;
mod demux;
mod duplicates;
mod effect;
mod endpoint;
mod event;
mod exchange;
mod fragments;
mod intermediate;
pub mod keymat;
mod known_inits;
mod limits;
mod mobike;
pub mod narrow;
mod nat;
pub mod natd;
pub mod proposals;
mod retransmit;
mod session;
mod shared;
#[doc(hidden)]
pub mod simulator;
mod state;
mod table;
#[cfg(test)]
mod tests;

#[cfg(feature = "x509")]
pub use config::Authorities;
pub use config::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, PostQuantum, ProvedBy, RemoteEndpoint};
pub use endpoint::Endpoint;
pub use event::{ChildSummary, CloseReason, Command, Event, IkeSummary, Transmit};
