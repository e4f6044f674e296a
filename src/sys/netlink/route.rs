//! Routes of the main table: which prefix leaves by which interface.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};

use super::address::family;
use super::{Netlink, NetlinkError};

/// RTM_F_FIB_MATCH (linux/rtnetlink.h, 4.13): the table's entry is asked for, not what the kernel made of it since.
const FIB_MATCH: u32 = 0x2000;

/// A route to be made: this prefix leaves by this interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteSpec<'a> {
    /// Where it leads.
    pub destination: IpNet,
    /// The interface that packets leave by.
    pub link: &'a str,
    /// The router that packets are given to; without one the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address of our own packets that take it; without one the kernel chooses.
    pub source: Option<IpAddr>,
    /// The largest packet on this route, where it is smaller than the interface's, in octets.
    pub mtu: Option<u32>,
}

/// What the kernel says of a route in the main table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The number of the interface that packets leave by; none for `unreachable` and its like.
    pub link_index: Option<u32>,
    /// The router that packets are given to.
    pub gateway: Option<IpAddr>,
    /// The source address of our own packets.
    pub source: Option<IpAddr>,
    /// The largest packet on this route, in octets.
    pub mtu: Option<u32>,
}

impl<'a> RouteSpec<'a> {
    /// A route with nothing but its prefix and its interface.
    #[must_use]
    pub const fn new(destination: IpNet, link: &'a str) -> Self {
        Self { destination, link, gateway: None, source: None, mtu: None }
    }
}

impl Netlink {
    /// Adds a route to the main table.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_present` if the table has a route to this very prefix.
    pub fn add_route(&mut self, route: RouteSpec<'_>) -> Result<(), NetlinkError> {
        let action = || format!("add a route to {} via {}", route.destination, route.link);
        let message = self.route_message(route, action)?;
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, action)
    }

    /// Adds a route, in the place of one that leads to the same prefix.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn replace_route(&mut self, route: RouteSpec<'_>) -> Result<(), NetlinkError> {
        let action = || format!("set the route to {} via {}", route.destination, route.link);
        let message = self.route_message(route, action)?;
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Removes the route to this very prefix by this interface.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_absent` if there is none.
    pub fn delete_route(&mut self, destination: IpNet, link: &str) -> Result<(), NetlinkError> {
        let action = || format!("delete the route to {destination} via {link}");
        let mut message = self.route_message(RouteSpec::new(destination, link), action)?;
        // What the route was made with does not matter: the prefix and the interface name it.
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        self.change(RouteNetlinkMessage::DelRoute(message), 0, action)
    }

    /// Makes a prefix unreachable for as long as no route of a better metric leads there. It hangs on no interface.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_unreachable(&mut self, destination: IpNet, metric: u32) -> Result<(), NetlinkError> {
        let message = unreachable_message(destination, metric);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewRoute(message), flags, || format!("make {destination} unreachable"))
    }

    /// Ends what [`Self::set_unreachable`] began.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_absent` if there is no such route.
    pub fn delete_unreachable(&mut self, destination: IpNet, metric: u32) -> Result<(), NetlinkError> {
        let message = unreachable_message(destination, metric);
        self.change(RouteNetlinkMessage::DelRoute(message), 0, || format!("delete the unreachable route to {destination}"))
    }

    /// The routes to this very prefix; more than one if their metrics differ.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn routes_to(&mut self, destination: IpNet) -> Result<Vec<Route>, NetlinkError> {
        let destination = destination.trunc();
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        let action = || format!("list the routes to {destination}");
        let answer = self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP, action)?;
        Ok(answer.into_iter().filter_map(Route::from_message).filter(|route| route.destination == destination).collect())
    }

    /// The routes of both families that leave by this interface.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn routes_by(&mut self, link_index: u32) -> Result<Vec<Route>, NetlinkError> {
        let mut found = Vec::new();
        for family in [family(IpAddr::from([0; 4])), family(IpAddr::from([0; 16]))] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let action = || format!("list the routes by interface {link_index}");
            let answer = self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP, action)?;
            let routes = answer.into_iter().filter_map(Route::from_message);
            found.extend(routes.filter(|route| route.link_index == Some(link_index)));
        }
        Ok(found)
    }

    /// The largest packet that leaves for this address as far as the host's own tables say, in octets: the route's MTU, or its
    /// interface's. What the kernel heard of the path does not count.
    ///
    /// # Errors
    /// [`NetlinkError`]; above all where no route leads there.
    pub fn own_mtu(&mut self, destination: IpAddr) -> Result<u32, NetlinkError> {
        let action = || format!("look up the route to {destination}");
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.header.flags = RouteFlags::from_bits_retain(FIB_MATCH);
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(destination))];
        let answer = self.ask(RouteNetlinkMessage::GetRoute(message), 0, action)?;
        let (mut link_mtu, mut route_mtu) = (None, None);
        for message in answer {
            let RouteNetlinkMessage::NewRoute(message) = message else { continue };
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => link_mtu = self.link_mtu(index)?,
                    RouteAttribute::Metrics(metrics) => route_mtu = metrics.iter().find_map(mtu_metric),
                    _ => {}
                }
            }
        }
        let malformed = || NetlinkError::Malformed { action: action(), what: "a route without an interface".to_owned() };
        [link_mtu, route_mtu].into_iter().flatten().min().ok_or_else(malformed)
    }

    fn link_mtu(&mut self, index: u32) -> Result<Option<u32>, NetlinkError> {
        Ok(self.links()?.iter().find(|link| link.index == index).map(|link| link.mtu))
    }

    fn route_message(&mut self, route: RouteSpec<'_>, action: impl Fn() -> String) -> Result<RouteMessage, NetlinkError> {
        let index = self.link_for(route.link, action)?.index;
        let destination = route.destination.trunc();
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        // IPv4 calls a destination without a gateway on-link; IPv6 has no such notion.
        let is_on_link = destination.addr().is_ipv4() && route.gateway.is_none();
        message.header.scope = if is_on_link { RouteScope::Link } else { RouteScope::Universe };
        message.attributes =
            vec![RouteAttribute::Destination(RouteAddress::from(destination.addr())), RouteAttribute::Oif(index)];
        message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
        message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        Ok(message)
    }
}

impl Route {
    /// A route of the main table; routes of other tables (the local one above all) are left out.
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let unspecified = match message.header.address_family {
            netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
            netlink_packet_route::AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        let mut table = u32::from(message.header.table);
        // The default route carries no destination at all.
        let (mut destination, mut link_index, mut gateway, mut source, mut mtu) = (unspecified, None, None, None, None);
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = number,
                RouteAttribute::Destination(address) => destination = ip(&address)?,
                RouteAttribute::Oif(index) => link_index = Some(index),
                RouteAttribute::Gateway(address) => gateway = ip(&address),
                RouteAttribute::PrefSource(address) => source = ip(&address),
                RouteAttribute::Metrics(metrics) => mtu = metrics.iter().find_map(mtu_metric),
                _ => {}
            }
        }
        let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
        let main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
        main.then_some(Self { destination, link_index, gateway, source, mtu })
    }
}

fn unreachable_message(destination: IpNet, metric: u32) -> RouteMessage {
    let destination = destination.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unreachable;
    message.header.scope = RouteScope::Universe;
    let address = RouteAddress::from(destination.addr());
    message.attributes = vec![RouteAttribute::Destination(address), RouteAttribute::Priority(metric)];
    message
}

fn mtu_metric(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
