//! Links, addresses and routes of the network namespace that the caller is in, by rtnetlink.
//!
//! A [`Netlink`] is one blocking socket to the kernel. It belongs to the namespace in which it was opened and keeps
//! speaking of that one, whichever thread uses it later. Every call is one request and its whole answer; the kernel
//! answers at once. An error says what was tried, in words that fit into a log line:
//! `add address 10.42.1.1/32 to underpass0: Operation not permitted (os error 1)`.
//!
//! - `socket` carries requests and answers; `nft` uses it too.
//! - `link` makes, changes and lists interfaces, `port` those of bridges and containers, `address` and `route` what hangs on them; `monitor` hears of changes.

mod address;
mod error;
mod link;
mod monitor;
mod port;
mod route;
pub(crate) mod socket;
#[cfg(test)]
mod tests;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

pub use address::Address;
pub use error::{NetlinkError, absent_is_fine};
pub use link::{Link, VethEnd, without_link_local_address};
pub use monitor::Monitor;
pub use port::HardwareAddress;
pub use route::{Route, RouteSpec};

use error::Context;
use socket::{Answer, Socket};

/// A socket to the kernel's tables of links, addresses and routes, in the namespace where it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens the socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`], with the system's reason.
    pub fn open() -> Result<Self, NetlinkError> {
        Socket::open(NETLINK_ROUTE).map(|socket| Self { socket }).map_err(NetlinkError::Open)
    }

    /// Sends a request that changes something and waits for the kernel's word on it.
    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        self.socket.request(message, flags | NLM_F_ACK).map(drop).context(action)
    }

    /// Sends a request for information and returns all that came back.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<Answer<RouteNetlinkMessage>, NetlinkError> {
        self.socket.request(message, flags).context(action)
    }
}
