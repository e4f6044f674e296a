//! The control socket: how a person's command reaches a running agent.
//!
//! `control.sock` in the run directory is a Unix stream socket. A connection carries one request, one line of JSON, and one
//! response, one line of JSON; then it ends. [`Request`] and [`Fault`] are the whole protocol. Only root and the agent's own
//! user are heard: the socket's mode says so, and the peer's credentials are checked besides. [`Client`] is the near side,
//! [`Server`] the far one; neither ever waits for the other without a deadline.

mod client;
mod protocol;
mod server;

pub use client::{Client, ClientError};
pub use protocol::{Claimed, Fault, FaultKind, HostRemoved, MAX_REQUEST, RekeyWhat, Rekeyed, Request, SOCKET_NAME, Version};
pub use server::{Counters, Handler, Server, ServerError, prepare_run_dir};
