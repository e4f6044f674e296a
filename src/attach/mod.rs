//! A container onto a network: a wire into its namespace, a port of this host's bridge, its addresses and routes, and a fence.
//!
//! [`prepare`] makes what a network needs on this host (`host.rs`): a bridge with the gateway's address, forwarding, answers to ARP
//! for containers on other hosts, a route that makes the network unreachable where nothing better leads there, and the fence
//! (`fence.rs`): nftables rules by which overlay addresses come and go only by the tunnel and our bridges, and each port speaks
//! for its own container alone. [`attach()`] does that and then connects one container (`wire.rs`); if a step fails, those before
//! it are taken back. [`detach`] takes a container off, whatever is left of it; [`check`] says whether one is as it was left.
//! [`follow_mtu`] gives containers that run another MTU (`mtu.rs`); a [`Keeper`] puts the fence back that somebody took away (`keeper.rs`).
//!
//! ```text
//!   container                     host
//!   eth0 10.42.1.2 ------------- vethr… -+- bridge 10.42.0.1 --- forwarding --- underpass0 (10.42.2.0/24, …)
//!                    fence: own address   \                   fence: hostNat --- eth0, the way outside
//!                                          other containers here, without the engine
//! ```
//!
//! Everything lives in the kernel: interfaces carry whose they are as their alias ([`attachments`]), the fence's sets hold what is
//! allowed. So a plugin that is killed, an agent that is away and two calls at once leave nothing that a file would say otherwise.
//! All of it concerns the calling thread's network namespace.

mod announce;
mod fence;
mod host;
mod keeper;
mod mtu;
mod name;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;

pub use fence::{Counters, admitted, counters, on_bridge};
pub use host::{Bridge, Prepared, bridges, forget, forget_bridge, prepare};
pub use keeper::Keeper;
pub use mtu::{follow_mtu, set_mtu};
pub use name::{mac_of, port_of};
pub use wire::{
    Port, announce_gone, attach, attach_beside, attachments, check, collect, detach, detach_beside, has_interface, sweep,
};

use crate::ipam::Owner;
use crate::sys::faults;
pub use crate::sys::netlink::HardwareAddress;
use crate::sys::netlink::NetlinkError;
use crate::sys::netns::NamespaceError;
use crate::sys::nft::GuardError;

/// The agent's device, unless it is configured otherwise.
pub const TUN: &str = "underpass0";

/// The bridge's address as the gateway of IPv6, on every host: link-local, so it is in nobody's block and there is nothing to reserve.
pub const IPV6_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A network, as this host has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostNetwork {
    /// The bridge. One that is there is used as it is, and keeps its own addresses.
    pub bridge: String,
    /// Addresses that the bridge is to have, with the prefix that is on the link: the containers' gateways.
    pub gateways: Vec<IpNet>,
    /// What belongs to the network, on whichever host.
    pub subnets: Vec<IpNet>,
    /// Parts of it that this host finds on the bridge although no address of the bridge says so: IPv6, where [`IPV6_GATEWAY`] is the
    /// gateway.
    pub on_link: Vec<IpNet>,
    /// The device by which containers on other hosts are reached.
    pub tun: String,
    /// Containers reach the outside by this host's address.
    pub host_nat: bool,
    /// The bridge takes frames for whomever.
    pub promiscuous: bool,
}

/// A route of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// By whom; without a gateway the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// What one container gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// Whose it is.
    pub owner: Owner,
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// Its addresses, with the prefix that it sees.
    pub addresses: Vec<IpNet>,
    /// Its routes, in the order in which they are made.
    pub routes: Vec<Route>,
    /// Its link-layer address; [`mac_of`] its first address without one.
    pub mac: Option<HardwareAddress>,
    /// The largest packet that its network lets it send. The tunnel's device says it without one, and it is never more than that.
    pub mtu: Option<u32>,
    /// What the container's own configuration takes off its network's MTU, if that says anything: for who changes the network's.
    pub own_overhead: Option<u32>,
    /// Frames may go back to where they came from: the container reaches itself by a published port.
    pub hairpin: bool,
    /// Which of its ports others may reach at this host's addresses. The fence lets them in; whoever changes the destination of their
    /// packets is somebody else.
    pub published: Vec<Publication>,
}

/// A port of a container that is published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publication {
    /// The protocol above IP: 6 for TCP, 17 for UDP, 132 for SCTP.
    pub protocol: u8,
    /// The container's own port.
    pub port: u16,
}

/// What was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// The bridge's link-layer address.
    pub bridge_mac: HardwareAddress,
    /// The port on this host.
    pub port: String,
    /// Its link-layer address.
    pub port_mac: HardwareAddress,
    /// The container's.
    pub mac: HardwareAddress,
    /// The MTU of its interface.
    pub mtu: u32,
}

/// Why a container is not on the network.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The container's namespace cannot be used.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// There is no fence, so nobody gets in.
    #[error(transparent)]
    Fence(#[from] GuardError),
    /// A setting of the kernel cannot be made.
    #[error("set {path} to {value}: {reason}")]
    Setting {
        /// Its file.
        path: String,
        /// What it should be.
        value: String,
        /// The system's reason.
        reason: io::Error,
    },
    /// The container has an interface of this name.
    #[error("the container has an interface {0} already")]
    Present(String),
    /// The container has no interface of this name.
    #[error("the container has no interface {0}")]
    Absent(String),
    /// The name of the bridge is that of something else.
    #[error("{0} is no bridge")]
    NoBridge(String),
    /// The bridge has another address where the gateway's should be.
    #[error("the bridge {bridge} has {found}, so it cannot be the gateway {wanted}")]
    Gateway {
        /// The bridge.
        bridge: String,
        /// What it has.
        found: IpNet,
        /// What it should have.
        wanted: IpNet,
    },
    /// Another network has these addresses.
    #[error("{subnet} overlaps with a network on {other}: one host cannot tell the two apart")]
    Overlap {
        /// What was asked for.
        subnet: IpNet,
        /// The other's bridge.
        other: String,
    },
    /// Nothing to attach.
    #[error("no address was given for the container")]
    NoAddress,
    /// The interface is not a port of the network's bridge.
    #[error("{interface} of the container is not on the bridge {bridge}")]
    Elsewhere {
        /// The container's interface.
        interface: String,
        /// The network's bridge.
        bridge: String,
    },
    /// Something is not as it was left.
    #[error("{0}")]
    Changed(String),
    /// A step that was made to fail.
    #[error("the step {0} was made to fail")]
    Made(&'static str),
}

impl AttachError {
    /// Whether the container's namespace is the reason.
    #[must_use]
    pub const fn is_namespace(&self) -> bool {
        matches!(self, Self::Namespace(NamespaceError::Open { .. } | NamespaceError::Enter(_)))
    }
}

/// A place where a test can make it fail, or die as by `kill -9`.
fn step(name: &'static str) -> Result<(), AttachError> {
    if !faults::is_on(name) {
        return Ok(());
    }
    if faults::is_on("die") {
        std::process::abort();
    }
    Err(AttachError::Made(name))
}
