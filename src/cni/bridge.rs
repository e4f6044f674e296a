//! `rancher-bridge` and `underpass-cni`: a container's interface on the host's bridge, by `attach`.
//!
//! The first has the keys and the defaults that Rancher's plugin had; the second the same keys with defaults that make a managed network
//! without any. [`BridgeConf`](crate::network::BridgeConf) reads them. Addresses come from whichever plugin `ipam.type` names (`delegate.rs`).
//!
//! ADD asks for addresses first and connects then; if that fails, the addresses go back. DEL goes the other way, and goes on where
//! something is gone. With `prevResult` ADD adds to what the plugins before it made.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::Value;

use super::conf::Conf;
use super::request::{Command, Request, one_mac};
use super::result::{self, Address, Fault, Interface, Route, Success};
use super::{Plugin, delegate, ipam};
use crate::attach::{self, AttachError, Attached, Attachment, HostNetwork, IPV6_GATEWAY, Publication};
use crate::model::PortMapping;
use crate::network::first_address;

/// The prefix length of link-local addresses (RFC 4291 §2.5.6).
const LINK_LOCAL_LEN: u8 = 64;

/// Does what is asked.
pub(super) fn answer(plugin: Plugin, request: &Request) -> Result<Option<Value>, Fault> {
    let conf = Conf::of(plugin, request)?;
    let mut request = request.clone();
    if let Some(ipam) = conf.default_ipam() {
        request.netconf.insert("ipam".to_owned(), ipam);
    }
    match request.command {
        Command::Add => add(&request, &conf).map(|success| Some(success.as_json(request.version))),
        Command::Del => del(&request).map(|()| None),
        Command::Check => check(&request, &conf).map(|()| None),
        Command::Gc => gc(&request).map(|()| None),
        Command::Status => delegate::pass_on(&request).map(|()| None),
    }
}

fn add(request: &Request, conf: &Conf) -> Result<Success, Fault> {
    let before = match request.netconf.get("prevResult") {
        None | Some(Value::Null) => Success::default(),
        Some(previous) => Success::parse(previous).ok_or_else(|| Fault::configuration("prevResult makes no sense"))?,
    };
    // A second ADD must not cost the first one its addresses.
    let netns = PathBuf::from(&request.netns);
    let present = attach::has_interface(&netns, &request.interface).map_err(|error| match error {
        AttachError::Namespace(error) => Fault::namespace(format!("CNI_NETNS {}: {error}", request.netns)),
        other => other.into(),
    });
    if present? {
        return Err(AttachError::Present(request.interface.clone()).into());
    }
    let given = delegate::add(request)?;
    let connected = connect(request, conf, netns, given, before);
    if connected.is_err() {
        // Its own failure would only hide the first.
        let _ = delegate::del(request);
    }
    connected
}

fn connect(request: &Request, conf: &Conf, netns: PathBuf, mut given: Success, before: Success) -> Result<Success, Fault> {
    if let Some(gateway) = conf.keys.said_address.filter(|_| delegate::gives_ours(request)) {
        // Our own plugin for addresses knows nothing of the bridge; others say themselves which gateway they mean.
        given.addresses.iter_mut().filter(|it| it.address.contains(&gateway)).for_each(|it| it.gateway = Some(gateway));
    }
    let network = network(conf, &given.addresses);
    if !network.on_link.is_empty() {
        alone_on_the_link(conf, &mut given.addresses)?;
    }
    let gateways = gateways(conf, &network, &given.addresses)?;
    let routes = routes(conf, &given, &gateways)?;
    let attachment = Attachment {
        owner: ipam::owner(request),
        netns,
        addresses: given.addresses.iter().map(|it| it.address).collect(),
        routes: routes.iter().map(|it| attach::Route { destination: it.dst, gateway: it.gw }).collect(),
        mac: request.mac,
        mtu: conf.mtu(request)?,
        own_overhead: conf.own_overhead(request)?,
        hairpin: conf.keys.hairpin,
        published: published(request)?,
    };
    let attached = attach::attach(&network, &attachment)?;
    let mut success = before;
    let addresses = given.addresses.iter().map(|it| Address {
        gateway: it.gateway.or_else(|| of_family(&gateways, it.address)),
        interface: Some(success.interfaces.len() + 2),
        ..*it
    });
    success.addresses.extend(addresses.collect::<Vec<_>>());
    success.interfaces.extend(interfaces(request, conf, &attached));
    success.routes.extend(routes);
    let said = [conf.dns.clone(), given.dns].into_iter().find(|dns| !dns.is_empty());
    if let Some(dns) = said.filter(|_| success.dns.is_empty()) {
        success.dns = dns;
    }
    Ok(success)
}

fn interfaces(request: &Request, conf: &Conf, attached: &Attached) -> [Interface; 3] {
    let on_host = |name: &str, mac| Interface { name: name.to_owned(), mac: mac_text(mac), mtu: None, sandbox: None };
    let inside = Interface {
        name: request.interface.clone(),
        mac: mac_text(attached.mac),
        mtu: Some(attached.mtu),
        sandbox: Some(request.netns.clone()),
    };
    [on_host(&conf.keys.bridge, attached.bridge_mac), on_host(&attached.port, attached.port_mac), inside]
}

fn mac_text(mac: attach::HardwareAddress) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// By which addresses containers leave the network: at most one of each family.
fn gateways(conf: &Conf, network: &HostNetwork, addresses: &[Address]) -> Result<Vec<IpAddr>, Fault> {
    let mut gateways: Vec<IpAddr> = conf.gateway(network, addresses)?.into_iter().collect();
    let own = IpAddr::from(IPV6_GATEWAY);
    if !gateways.iter().any(IpAddr::is_ipv6) && network.gateways.iter().any(|gateway| gateway.addr() == own) {
        gateways.push(own);
    }
    Ok(gateways)
}

fn of_family(gateways: &[IpAddr], net: IpNet) -> Option<IpAddr> {
    gateways.iter().copied().find(|gateway| gateway.is_ipv4() == net.addr().is_ipv4())
}

/// What this host needs for containers with these addresses.
fn network(conf: &Conf, addresses: &[Address]) -> HostNetwork {
    let keys = &conf.keys;
    let ipv6 = addresses.iter().map(|it| it.address.trunc()).filter(|net| net.addr().is_ipv6());
    let on_link: Vec<IpNet> = ipv6.filter(|_| keys.is_gateway && keys.subnet6.is_some()).collect();
    let mut gateways: Vec<IpNet> = keys.address.into_iter().collect();
    if keys.is_gateway && !keys.bridge_as_gateway {
        for address in addresses {
            let gateway = address.gateway.or_else(|| first_address(address.address));
            let gateway = gateway.and_then(|gateway| IpNet::new(gateway, address.address.prefix_len()).ok());
            gateways.extend(gateway.filter(|gateway| !gateways.contains(gateway)));
        }
    }
    if !on_link.is_empty() {
        gateways.extend(IpNet::new(IPV6_GATEWAY.into(), LINK_LOCAL_LEN).ok());
    }
    let seen = addresses.iter().map(|address| address.address.trunc()).filter(|net| net.prefix_len() < 31);
    let all: Vec<IpNet> = [keys.subnet, keys.subnet6].into_iter().flatten().chain(seen).collect();
    let mut subnets: Vec<IpNet> =
        all.iter().copied().filter(|net| !all.iter().any(|other| other != net && other.contains(net))).collect();
    subnets.sort();
    subnets.dedup();
    HostNetwork {
        bridge: keys.bridge.clone(),
        gateways,
        subnets,
        on_link,
        tun: keys.tun.clone().unwrap_or_else(|| attach::TUN.to_owned()),
        host_nat: keys.host_nat,
        promiscuous: keys.promiscuous,
    }
}

/// IPv6 goes to the gateway, whoever it is for: the container sees nobody else on its link.
fn alone_on_the_link(conf: &Conf, addresses: &mut [Address]) -> Result<(), Fault> {
    for it in addresses.iter_mut().filter(|it| it.address.addr().is_ipv6()) {
        let address = it.address.addr();
        if let Some(subnet) = conf.keys.subnet6.filter(|subnet| !subnet.contains(&address)) {
            return Err(Fault::configuration(format!("bridgeSubnet6: the address {address} is not in {subnet}")));
        }
        it.address = address.into();
    }
    Ok(())
}

/// The routes that were given, the default one if it is wished, and what leads to a gateway that is on no link.
fn routes(conf: &Conf, given: &Success, gateways: &[IpAddr]) -> Result<Vec<Route>, Fault> {
    let own = |dst: IpNet| of_family(gateways, dst);
    let mut routes: Vec<Route> =
        given.routes.iter().map(|it| Route { dst: it.dst, gw: it.gw.or_else(|| own(it.dst)) }).collect();
    if let (false, Some(dst)) = (conf.keys.is_default_gateway, conf.keys.subnet6) {
        // The rest of the network is behind the gateway as well; nobody answers for it on the link, as with IPv4.
        routes.extend(own(dst).map(|gw| Route { dst, gw: Some(gw) }));
    }
    for &gateway in gateways.iter().filter(|_| conf.keys.is_default_gateway) {
        let everything = IpNet::new(if gateway.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0).ok();
        let everything = everything.ok_or_else(|| Fault::configuration("no default route"))?;
        match routes.iter().find(|route| route.dst == everything) {
            Some(Route { gw, .. }) if *gw == Some(gateway) => {}
            Some(Route { gw, .. }) => {
                let other = gw.map_or_else(|| "none".to_owned(), |gw| gw.to_string());
                let message =
                    format!("isDefaultGateway: there is a default route by {other} already, and {gateway} is another");
                return Err(Fault::configuration(message));
            }
            None => routes.push(Route { dst: everything, gw: Some(gateway) }),
        }
    }
    let off_link = routes.iter().filter_map(|route| route.gw).find(|gw| {
        let on_link =
            *gw == IpAddr::from(IPV6_GATEWAY) || given.addresses.iter().any(|address| address.address.contains(gw));
        !on_link && !routes.iter().any(|route| route.gw.is_none() && route.dst.contains(gw))
    });
    if let Some(gateway) = off_link {
        routes.insert(0, Route { dst: gateway.into(), gw: None });
    }
    Ok(routes)
}

/// Which of the container's ports the fence lets others reach. Whoever publishes them on the host is another plugin.
fn published(request: &Request) -> Result<Vec<Publication>, Fault> {
    let opened = |it: PortMapping| Publication { protocol: it.protocol.number(), port: it.container };
    Ok(request.port_mappings()?.into_iter().map(opened).collect())
}

fn del(request: &Request) -> Result<(), Fault> {
    let detached = attach::detach(&ipam::owner(request));
    // The address last, so that nobody has it twice; and whatever else failed, so that it is not lost.
    delegate::del(request)?;
    detached?;
    Ok(())
}

fn check(request: &Request, conf: &Conf) -> Result<(), Fault> {
    let previous = request.netconf.get("prevResult").filter(|previous| !previous.is_null());
    let previous = previous.ok_or_else(|| Fault::configuration("CHECK needs prevResult"))?;
    let told = Success::parse(previous).ok_or_else(|| Fault::configuration("prevResult makes no sense"))?;
    delegate::pass_on(request)?;
    let is_inside = |it: &Interface| it.name == request.interface && it.sandbox.as_deref() == Some(&request.netns);
    let Some(index) = told.interfaces.iter().position(is_inside) else {
        return Err(Fault::new(
            result::CHANGED,
            format!("prevResult has no interface {} of the container", request.interface),
        ));
    };
    let addresses: Vec<Address> = told.addresses.iter().copied().filter(|it| it.interface == Some(index)).collect();
    if addresses.is_empty() {
        return Err(Fault::new(result::CHANGED, format!("prevResult has no address of {}", request.interface)));
    }
    let attachment = Attachment {
        owner: ipam::owner(request),
        netns: PathBuf::from(&request.netns),
        addresses: addresses.iter().map(|it| it.address).collect(),
        routes: told.routes.iter().map(|it| attach::Route { destination: it.dst, gateway: it.gw }).collect(),
        mac: one_mac(&told.interfaces[index].mac).ok(),
        mtu: None,
        own_overhead: None,
        hairpin: conf.keys.hairpin,
        published: Vec::new(),
    };
    Ok(attach::check(&network(conf, &addresses), &attachment)?)
}

fn gc(request: &Request) -> Result<(), Fault> {
    let living = ipam::living(request)?;
    let collected = attach::collect(&request.network, &living);
    delegate::pass_on(request)?;
    collected?;
    Ok(())
}

impl From<AttachError> for Fault {
    fn from(error: AttachError) -> Self {
        let message = error.to_string();
        match error {
            _ if error.is_namespace() => Self::namespace(message),
            AttachError::NoBridge(_) | AttachError::Gateway { .. } | AttachError::Overlap { .. } => {
                Self::configuration(message)
            }
            AttachError::Changed(_) => Self::new(result::CHANGED, message),
            _ => Self::new(result::ATTACHMENT, message),
        }
    }
}
