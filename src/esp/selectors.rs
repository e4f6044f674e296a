//! Traffic selectors against packets (RFC 4301 §4.4.1.1, RFC 7296 §3.13.1): the coarse one of the two layers that decide
//! what may flow. The route table is the other.

use std::net::IpAddr;

use crate::model::TrafficSelector;
use crate::wire::ip::Packet;

/// The selectors of one CHILD_SA. Any local one goes with any remote one (RFC 7296 §2.9).
#[derive(Debug)]
pub struct Selectors {
    local: Box<[TrafficSelector]>,
    remote: Box<[TrafficSelector]>,
    /// All of them allow every protocol and port, so that nobody needs to look for those.
    address_only: bool,
}

impl Selectors {
    /// Takes over what was negotiated.
    pub fn new(local: Vec<TrafficSelector>, remote: Vec<TrafficSelector>) -> Self {
        let address_only = local.iter().chain(&remote).all(TrafficSelector::is_address_only);
        Self { local: local.into(), remote: remote.into(), address_only }
    }

    /// Whether a packet from us may go to the peer.
    pub fn allow_outbound(&self, packet: &Packet<'_>) -> bool {
        self.allow(packet, &self.local, &self.remote)
    }

    /// Whether a packet from the peer may come to us.
    pub fn allow_inbound(&self, packet: &Packet<'_>) -> bool {
        self.allow(packet, &self.remote, &self.local)
    }

    fn allow(&self, packet: &Packet<'_>, sources: &[TrafficSelector], destinations: &[TrafficSelector]) -> bool {
        if self.address_only {
            return sources.iter().any(|selector| selector.contains_address(packet.source()))
                && destinations.iter().any(|selector| selector.contains_address(packet.destination()));
        }
        let (protocol, ports) = (packet.protocol(), packet.ports().unzip());
        sources.iter().any(|selector| matches(selector, packet.source(), protocol, ports.0))
            && destinations.iter().any(|selector| matches(selector, packet.destination(), protocol, ports.1))
    }
}

/// Whether one end of a flow lies in a selector. ICMP has type and code where others have ports.
fn matches(selector: &TrafficSelector, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
    let is_protocol = selector.protocol == 0 || selector.protocol == protocol;
    let is_port = match (selector.start_port, selector.end_port) {
        (0, u16::MAX) => true,
        // OPAQUE: packets whose ports cannot be seen, fragments for example.
        (u16::MAX, 0) => port.is_none(),
        (start, end) => port.is_some_and(|port| start <= port && port <= end),
    };
    is_protocol && is_port && selector.contains_address(address)
}
