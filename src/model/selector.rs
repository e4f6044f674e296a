//! Traffic selectors (RFC 7296 §3.13): which inner packets a CHILD_SA may carry.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A range of addresses, ports and one protocol. Start and end are of one address family, and start is not above end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TrafficSelector {
    start: IpAddr,
    end: IpAddr,
    /// IP protocol; 0 means any.
    pub protocol: u8,
    /// First port; for ICMP, type and code as RFC 7296 §3.13.1 packs them.
    pub start_port: u16,
    /// Last port, inclusive. `start_port` 65535 with `end_port` 0 is OPAQUE (RFC 7296 §3.13.1).
    pub end_port: u16,
}

impl TrafficSelector {
    /// Every protocol and port between two addresses, both inclusive; none if they differ in family or are reversed.
    #[must_use]
    pub fn new(start: IpAddr, end: IpAddr) -> Option<Self> {
        let ordered = start.is_ipv4() == end.is_ipv4() && start <= end;
        ordered.then_some(Self { start, end, protocol: 0, start_port: 0, end_port: u16::MAX })
    }

    /// Every protocol and port of one prefix.
    #[must_use]
    pub fn from_prefix(prefix: IpNet) -> Self {
        let prefix = prefix.trunc();
        let (start, end) = match prefix {
            IpNet::V4(net) => (IpAddr::V4(net.network()), IpAddr::V4(net.broadcast())),
            IpNet::V6(net) => (IpAddr::V6(net.network()), IpAddr::V6(net.broadcast())),
        };
        Self { start, end, protocol: 0, start_port: 0, end_port: u16::MAX }
    }

    /// First address.
    #[must_use]
    pub const fn start(&self) -> IpAddr {
        self.start
    }

    /// Last address, inclusive.
    #[must_use]
    pub const fn end(&self) -> IpAddr {
        self.end
    }

    /// Whether the address lies in the range, whatever protocol and ports say.
    #[must_use]
    pub fn contains_address(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && self.start <= address && address <= self.end
    }

    /// Whether every protocol and port is meant.
    #[must_use]
    pub const fn is_address_only(&self) -> bool {
        self.protocol == 0 && self.start_port == 0 && self.end_port == u16::MAX
    }

    /// The prefixes that cover exactly this range of addresses.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        match (self.start, self.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => ipnet::Ipv4Subnets::new(start, end, 0).map(Ipv4Net::into).collect(),
            (IpAddr::V6(start), IpAddr::V6(end)) => ipnet::Ipv6Subnets::new(start, end, 0).map(Ipv6Net::into).collect(),
            _ => unreachable!("a selector's ends are of one family"),
        }
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefixes().as_slice() {
            [prefix] => write!(f, "{prefix}")?,
            _ => write!(f, "{}..{}", self.start, self.end)?,
        }
        if !self.is_address_only() {
            write!(f, "[{}/{}-{}]", self.protocol, self.start_port, self.end_port)?;
        }
        Ok(())
    }
}
