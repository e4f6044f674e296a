//! What a network needs on this host, whoever asks first: plugin, agent or watcher, and as often as they like.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::{AttachError, HardwareAddress, HostNetwork, IPV6_GATEWAY, fence, mac_of, step};
use crate::sys::netlink::{Link, Netlink, RouteSpec, absent_is_fine};
use crate::sys::nft::CONTAINERS_GROUP;

/// The metric of the route that makes a network unreachable: worse than anybody would choose (one below what the kernel itself gives
/// to IPv6 routes that shall never win).
const LAST_RESORT: u32 = 0xffff_fffe;

/// What was prepared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// The bridge was made by this call.
    pub is_new: bool,
    /// The bridge's link-layer address.
    pub bridge_mac: HardwareAddress,
    /// The bridge's addresses, in the kernel's order.
    pub addresses: Vec<IpNet>,
    /// What the tunnel's device takes, if it is there.
    pub tun_mtu: Option<u32>,
}

/// Makes whatever the network lacks on this host.
///
/// # Errors
/// [`AttachError`]. What was made before the failure stays: it lets nobody in or out.
pub fn prepare(network: &HostNetwork) -> Result<Prepared, AttachError> {
    let mut netlink = Netlink::open()?;
    let strangers = fence::strangers(network, &mut netlink)?;
    let (link, is_new) = bridge(&mut netlink, network)?;
    step("attach-bridge")?;
    // Before there is an address that somebody could reach.
    if !network.subnets.is_empty() {
        fence::raise(network, &strangers)?;
        step("attach-fence")?;
    }
    for &subnet in &network.subnets {
        netlink.set_unreachable(subnet, LAST_RESORT)?;
    }
    if has_ipv6(network) {
        set(&format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", link.name), "0")?;
    }
    let addresses = gateways(&mut netlink, network, &link)?;
    if !link.up {
        netlink.set_up(&link.name)?;
    }
    for &part in &network.on_link {
        netlink.replace_route(RouteSpec::new(part, &link.name))?;
    }
    if network.promiscuous {
        netlink.set_promiscuous(&link.name)?;
    }
    forwarding(network)?;
    step("attach-forwarding")?;
    let bridge_mac = link.hardware_address.as_slice().try_into().unwrap_or_default();
    let tun_mtu = netlink.link(&network.tun).ok().map(|tun| tun.mtu);
    Ok(Prepared { is_new, bridge_mac, addresses, tun_mtu })
}

/// Takes a network off this host. The bridge goes if we made it and no container hangs on it.
///
/// # Errors
/// What the kernel refused; the rest is tried nevertheless.
pub fn forget(network: &HostNetwork) -> Result<(), AttachError> {
    let mut netlink = Netlink::open()?;
    let lowered = fence::lower(network);
    for &subnet in &network.subnets {
        absent_is_fine(netlink.delete_unreachable(subnet, LAST_RESORT))?;
    }
    for &gateway in &network.gateways {
        absent_is_fine(netlink.delete_address(&network.bridge, gateway))?;
    }
    for &part in &network.on_link {
        absent_is_fine(netlink.delete_route(part, &network.bridge))?;
    }
    let links = netlink.links()?;
    let has_ports = |bridge: &Link| links.iter().any(|link| link.controller == Some(bridge.index));
    if let Some(bridge) = links.iter().find(|link| link.name == network.bridge) {
        let is_ours = bridge.alias == alias();
        if is_ours && !has_ports(bridge) {
            absent_is_fine(netlink.delete_link(&bridge.name))?;
        } else if !is_ours && bridge.group == CONTAINERS_GROUP && fence::on_bridge(&bridge.name)?.is_empty() {
            give_back(&mut netlink, bridge)?;
        }
    }
    lowered
}

/// A bridge of somebody else's is as if we had not used it: what [`prepare`] set on it is what new interfaces have.
fn give_back(netlink: &mut Netlink, bridge: &Link) -> Result<(), AttachError> {
    /// In hundredths of a second, as the kernel has it (`arp_tbl`).
    const USUAL_PROXY_DELAY: &str = "80";
    let name = &bridge.name;
    absent_is_fine(netlink.set_group(name, 0))?;
    let usual_proxy_arp = fs::read_to_string("/proc/sys/net/ipv4/conf/default/proxy_arp").unwrap_or_default();
    for (path, value) in [
        (format!("/proc/sys/net/ipv4/conf/{name}/proxy_arp"), usual_proxy_arp.trim()),
        (format!("/proc/sys/net/ipv4/neigh/{name}/proxy_delay"), USUAL_PROXY_DELAY),
    ] {
        // A bridge that is gone meanwhile has nothing to be set.
        if Path::new(&path).exists() {
            set(&path, value)?;
        }
    }
    Ok(())
}

/// Takes whatever networks live on a bridge off this host, as [`forget`] does. A bridge of ours on which a container hangs stays
/// as it is.
///
/// # Errors
/// What the kernel refused.
pub fn forget_bridge(bridge: &str) -> Result<(), AttachError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let found = links.iter().find(|link| link.name == bridge);
    let is_in_use = |link: &Link| link.alias == alias() && links.iter().any(|port| port.controller == Some(link.index));
    if found.is_some_and(is_in_use) {
        return Ok(());
    }
    let subnets = fence::on_bridge(bridge)?;
    let (mut gateways, mut on_link) = (Vec::new(), Vec::new());
    if let Some(link) = found {
        let listed = netlink.addresses()?.into_iter().filter(|address| address.link_index == link.index);
        let here: Vec<IpNet> = listed.map(|address| address.address).collect();
        gateways.extend(here.iter().copied().filter(|net| lives_in(&subnets, net)));
        // Docker, too, gives a bridge this address, but only beside another one of IPv6.
        let is_strangers =
            |net: &IpNet| matches!(net.addr(), IpAddr::V6(it) if !it.is_unicast_link_local()) && !lives_in(&subnets, net);
        if subnets.iter().any(|net| net.addr().is_ipv6()) && !here.iter().any(is_strangers) {
            gateways.extend(here.iter().copied().filter(|net| net.addr() == IPV6_GATEWAY));
        }
        let routes = netlink.routes_by(link.index)?.into_iter().filter(|route| route.gateway.is_none());
        on_link.extend(routes.map(|route| route.destination).filter(|net| lives_in(&subnets, net)));
    }
    forget(&HostNetwork {
        bridge: bridge.to_owned(),
        gateways,
        subnets,
        tun: String::new(),
        host_nat: false,
        promiscuous: false,
        on_link,
    })
}

fn lives_in(subnets: &[IpNet], net: &IpNet) -> bool {
    subnets.iter().any(|subnet| subnet.contains(&net.addr()))
}

/// A bridge that containers of ours hang on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// We made it; else it is somebody else's, such as Docker's.
    pub is_ours: bool,
}

/// The bridges of this host that containers of ours hang on.
///
/// # Errors
/// What the kernel refused.
pub fn bridges() -> Result<Vec<Bridge>, AttachError> {
    let links = Netlink::open()?.links()?.into_iter().filter(|link| link.is_bridge && link.group == CONTAINERS_GROUP);
    Ok(links.map(|link| Bridge { is_ours: link.alias == alias(), name: link.name }).collect())
}

/// What stands on a bridge that we made.
fn alias() -> String {
    "underpass bridge".to_owned()
}

fn bridge(netlink: &mut Netlink, network: &HostNetwork) -> Result<(Link, bool), AttachError> {
    let name = network.bridge.as_str();
    let mut is_new = false;
    let link = match netlink.link(name) {
        Ok(link) => link,
        Err(error) if error.is_absent() => {
            match netlink.create_bridge(name) {
                Ok(()) => is_new = true,
                // Somebody else was faster.
                Err(error) if error.is_present() => {}
                Err(error) => return Err(error.into()),
            }
            if is_new {
                // Otherwise it would change with each port that comes or goes, and containers know it as their gateway's.
                if let Some(gateway) = network.gateways.first() {
                    netlink.set_hardware_address(name, mac_of(gateway.addr()))?;
                }
                // No MTU: as long as nobody sets one, it is the least of the ports', and follows them.
                netlink.set_alias(name, &alias())?;
            }
            netlink.link(name)?
        }
        Err(error) => return Err(error.into()),
    };
    if !link.is_bridge {
        return Err(AttachError::NoBridge(name.to_owned()));
    }
    // The guard knows it by this; so does whoever tells peers which addresses this host has.
    if link.group != CONTAINERS_GROUP {
        netlink.set_group(name, CONTAINERS_GROUP)?;
    }
    Ok((link, is_new))
}

/// Gives the bridge its addresses beside those that it has. Returns all of them, in the kernel's order.
fn gateways(netlink: &mut Netlink, network: &HostNetwork, link: &Link) -> Result<Vec<IpNet>, AttachError> {
    let listed = |netlink: &mut Netlink| -> Result<Vec<IpNet>, AttachError> {
        let own = netlink.addresses()?.into_iter().filter(|address| address.link_index == link.index);
        Ok(own.map(|address| address.address).collect())
    };
    let (here, mut is_new) = (listed(netlink)?, false);
    for &wanted in &network.gateways {
        if here.contains(&wanted) {
            continue;
        }
        // Every interface is on a link-local network of its own.
        let is_link_local = matches!(wanted.addr(), IpAddr::V6(address) if address.is_unicast_link_local());
        let overlaps = |found: &&IpNet| found.contains(&wanted.addr()) || wanted.contains(&found.addr());
        let clashes = |found: &&IpNet| !is_link_local && overlaps(found);
        if let Some(&found) = here.iter().find(clashes) {
            return Err(AttachError::Gateway { bridge: network.bridge.clone(), found, wanted });
        }
        match netlink.add_address(&link.name, wanted) {
            Err(error) if error.is_present() => {}
            other => other?,
        }
        is_new = true;
        step("attach-gateway")?;
    }
    if is_new { listed(netlink) } else { Ok(here) }
}

/// Forwards, and answers ARP at once for whoever is behind the tunnel. A setting that is right already is not touched: it may be read
/// only here.
fn forwarding(network: &HostNetwork) -> Result<(), AttachError> {
    let bridge = &network.bridge;
    if network.gateways.iter().any(|gateway| gateway.addr().is_ipv4()) {
        set("/proc/sys/net/ipv4/ip_forward", "1")?;
        set(&format!("/proc/sys/net/ipv4/conf/{bridge}/proxy_arp"), "1")?;
        // Answers on behalf of others are delayed by up to 0.8 s otherwise.
        set(&format!("/proc/sys/net/ipv4/neigh/{bridge}/proxy_delay"), "0")?;
    }
    if has_ipv6(network) && !is("/proc/sys/net/ipv6/conf/all/forwarding", "1") {
        still_hear_routers();
        set("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn has_ipv6(network: &HostNetwork) -> bool {
    network.gateways.iter().any(|gateway| gateway.addr().is_ipv6())
}

/// A host that forwards IPv6 does not listen to the routers that tell it its own way out, unless it is told to.
fn still_hear_routers() {
    const WHILE_FORWARDING: &str = "2";
    for interface in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let path = interface.path().join("accept_ra").display().to_string();
        if is(&path, "1") {
            // As before for those that cannot be told.
            let _ = fs::write(path, WHILE_FORWARDING);
        }
    }
}

fn is(path: &str, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|now| now.trim() == value)
}

fn set(path: &str, value: &str) -> Result<(), AttachError> {
    if is(path, value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|reason| AttachError::Setting { path: path.to_owned(), value: value.to_owned(), reason })
}
