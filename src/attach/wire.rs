//! One container: its wire, its addresses and routes; and taking it off again.
//!
//! The order of [`attach`]: the fence learns what the port may say before there is a port; the wire's far end is made in the
//! container's namespace, so it goes with it; the near end becomes a port and is switched on last. Whatever fails, the near
//! end is deleted, and the far one with it, and the fence forgets the port. What the network needs on this host stays.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::announce;
use super::mtu::least;
use super::name::link_local_of;
use super::{AttachError, Attached, Attachment, HardwareAddress, HostNetwork, Route, fence, host, mac_of, port_of, step};
use crate::ipam::Owner;
use crate::sys::netlink::{Link, Netlink, NetlinkError, RouteSpec, VethEnd, absent_is_fine, without_link_local_address};
use crate::sys::netns::Namespace;

/// How a port's alias begins; the CNI network, the container and its interface follow.
const ALIAS: &str = "underpass port";

/// Behind these, with a number each where there is something to say, what the container's configuration says of its MTU.
const MTU_WORD: &str = "mtu=";
const OVERHEAD_WORD: &str = "overhead=";

/// The kernel's limit for aliases, `IFALIASZ` less the zero.
const ALIAS_LIMIT: usize = 255;

/// How long a wire may take to work: the kernel notices both ends at once unless it is busy, and then its link watch takes up to a second.
/// Nothing fails after that, but the announcement may be lost.
const CARRIER_PATIENCE: Duration = Duration::from_millis(1500);

/// Between two looks at it.
const CARRIER_LOOK: Duration = Duration::from_micros(300);

/// Between two looks whether a port is gone for everybody, while the kernel goes on to clean up behind it.
const GONE_LOOK: Duration = Duration::from_micros(300);

/// A container's port, as this host knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The CNI network that it was made for.
    pub cni_network: String,
    /// Whose it is; none if the names were too long to be written down.
    pub owner: Option<Owner>,
    /// Its MTU.
    pub mtu: u32,
    /// What [`Attachment::mtu`] said.
    pub said_mtu: Option<u32>,
    /// What [`Attachment::own_overhead`] said.
    pub own_overhead: Option<u32>,
    /// Its number, and that of the container's end in the namespace there.
    pub(super) ends: (u32, Option<u32>),
}

/// Connects a container to a network by an interface of its own.
///
/// # Errors
/// [`AttachError`]; then nothing of it is left.
pub fn attach(network: &HostNetwork, attachment: &Attachment) -> Result<Attached, AttachError> {
    let first = *attachment.addresses.first().ok_or(AttachError::NoAddress)?;
    let namespace = Namespace::open(&attachment.netns)?;
    let name = &attachment.owner.interface;
    // Before anything is touched: it may be this owner's own, and working.
    if namespace.run(|| is_there(name))?? {
        return Err(AttachError::Present(name.clone()));
    }
    let prepared = host::prepare(network)?;
    let port = port_of(&attachment.owner);
    let mac = attachment.mac.unwrap_or_else(|| mac_of(first.addr()));
    let connect = || {
        admit(&port, mac, attachment.addresses.iter().map(|address| address.addr()))?;
        fence::publish(&attachment.addresses, &attachment.published)?;
        step("attach-admit")?;
        let mut netlink = Netlink::open()?;
        let mtu = least(attachment.mtu, prepared.tun_mtu);
        let far = VethEnd { name, namespace: Some(namespace.as_fd()) };
        netlink.create_wire(&port, far, mtu, Some(mac))?;
        step("attach-wire")?;
        plug_in(&mut netlink, network, attachment, &port)?;
        step("attach-port")?;
        let link = namespace.run(|| furnish(attachment))??;
        // This end as well: until it works the bridge passes nothing on.
        let near = wait_for_carrier(&mut netlink, &port)?;
        tracing::trace!("{port} is connected to {name}");
        namespace.run(|| announce(attachment, mac, &link))??;
        step("attach-announce")?;
        let mtu = link.mtu;
        Ok(Attached { bridge_mac: prepared.bridge_mac, port_mac: hardware_address(&near), port: port.clone(), mac, mtu })
    };
    remove(&port)?;
    connect().inspect_err(|_| {
        // Its own failures would only hide the first.
        let _ = remove(&port);
    })
}

/// Whether there is an interface of this name in a namespace.
///
/// # Errors
/// [`AttachError::Namespace`] if it cannot be entered, or what the kernel refused.
pub fn has_interface(netns: &Path, name: &str) -> Result<bool, AttachError> {
    Ok(Namespace::open(netns)?.run(|| is_there(name))??)
}

fn is_there(name: &str) -> Result<bool, NetlinkError> {
    is_seen(&mut Netlink::open()?, name)
}

/// Who has an IPv6 address speaks to neighbours by its link-local one as well.
fn admit(port: &str, mac: HardwareAddress, addresses: impl Iterator<Item = IpAddr>) -> Result<(), AttachError> {
    let mut addresses: Vec<IpAddr> = addresses.collect();
    if addresses.iter().any(IpAddr::is_ipv6) {
        addresses.push(link_local_of(mac).into());
    }
    Ok(fence::admit(port, mac, &addresses)?)
}

fn hardware_address(link: &Link) -> HardwareAddress {
    link.hardware_address.as_slice().try_into().unwrap_or_default()
}

/// Makes the near end a port of the bridge, and switches it on.
fn plug_in(netlink: &mut Netlink, network: &HostNetwork, attachment: &Attachment, port: &str) -> Result<(), AttachError> {
    netlink.set_alias(port, &alias(attachment))?;
    // Nobody speaks IPv6 with a port.
    without_link_local_address(port);
    netlink.join_bridge(port, &network.bridge)?;
    if attachment.hairpin {
        netlink.set_hairpin(port, true)?;
    }
    Ok(netlink.set_up(port)?)
}

fn alias(attachment: &Attachment) -> String {
    let Attachment { owner, mtu, own_overhead, .. } = attachment;
    let mut whole = format!("{ALIAS} {} {} {}", owner.cni_network, owner.container, owner.interface);
    for (word, number) in [(MTU_WORD, mtu), (OVERHEAD_WORD, own_overhead)] {
        if let Some(number) = number {
            whole += &format!(" {word}{number}");
        }
    }
    let mut short = format!("{ALIAS} {}", owner.cni_network);
    short.truncate(ALIAS_LIMIT);
    if whole.len() <= ALIAS_LIMIT { whole } else { short }
}

/// In the container's namespace: addresses, up, routes. Its interface, which works.
fn furnish(attachment: &Attachment) -> Result<Link, AttachError> {
    let name = attachment.owner.interface.as_str();
    let mut netlink = Netlink::open()?;
    if attachment.addresses.iter().any(|address| address.addr().is_ipv6()) {
        prepare_ipv6(name);
    }
    for &address in &attachment.addresses {
        netlink.add_address(name, address)?;
    }
    step("attach-address")?;
    netlink.set_up(name)?;
    for route in &attachment.routes {
        add_route(&mut netlink, name, *route, None)?;
    }
    step("attach-route")?;
    Ok(wait_for_carrier(&mut netlink, name)?)
}

/// In the container's namespace: word to the neighbours. Not before the interface is up: the kernel would announce its addresses then as well,
/// and each time every port of the bridge gets a copy.
fn announce(attachment: &Attachment, mac: HardwareAddress, link: &Link) -> Result<(), AttachError> {
    if announce::by_kernel(&link.name, &attachment.addresses) {
        Netlink::open()?.set_hardware_address(&link.name, mac)?;
    } else {
        announce::by_socket(link.index, mac, &attachment.addresses);
    }
    Ok(())
}

/// Lets a container's interface have IPv6, which some runtimes switch off, and have it at once: nobody else has an address that follows from
/// its own link-layer address. What cannot be set shows when it gets its addresses.
fn prepare_ipv6(name: &str) {
    for (key, value) in [("disable_ipv6", "0"), ("accept_dad", "0")] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value);
    }
}

/// A route that is there already is as good.
fn add_route(netlink: &mut Netlink, link: &str, route: Route, mtu: Option<u32>) -> Result<(), NetlinkError> {
    let spec = RouteSpec { gateway: route.gateway, mtu, ..RouteSpec::new(route.destination, link) };
    netlink.add_route(spec).or_else(|error| if error.is_present() { Ok(()) } else { Err(error) })
}

fn wait_for_carrier(netlink: &mut Netlink, name: &str) -> Result<Link, NetlinkError> {
    let late = Instant::now() + CARRIER_PATIENCE;
    loop {
        let link = netlink.link(name)?;
        if link.running || Instant::now() >= late {
            return Ok(link);
        }
        std::thread::sleep(CARRIER_LOOK);
    }
}

/// Tells everybody on a bridge that an address is reached by the bridge itself from now on: it has moved to another host, and neighbours know
/// where it was.
pub fn announce_gone(bridge: &Link, address: IpAddr) {
    announce::by_socket(bridge.index, hardware_address(bridge), &[address.into()]);
}

/// Takes a container off, as far as it is there: its interface, its port, and what the fence knows of it. Works with the container,
/// its namespace and the agent gone. Returns whether there was a port.
///
/// # Errors
/// What the kernel refused.
pub fn detach(owner: &Owner) -> Result<bool, AttachError> {
    remove(&port_of(owner))
}

/// The port goes before the fence forgets it: one that it does not know could say more. For both the kernel waits until nobody can be
/// in the middle of something that is gone (grace periods of RCU, 10 ms and more each), and the two wait side by side.
fn remove(port: &str) -> Result<bool, AttachError> {
    let mut netlink = Netlink::open()?;
    if !is_seen(&mut netlink, port)? {
        return Ok(fence::expel_port(port)? > 0);
    }
    std::thread::scope(|scope| {
        let delete = || absent_is_fine(Netlink::open()?.delete_link(port));
        let deleting = std::thread::Builder::new().name("delete".to_owned()).spawn_scoped(scope, delete);
        let Ok(deleting) = deleting else {
            delete()?;
            return Ok(fence::expel_port(port).map(|_| true)?);
        };
        while !deleting.is_finished() && is_seen(&mut netlink, port)? {
            std::thread::sleep(GONE_LOOK);
        }
        // One that the kernel does not let go stays fenced.
        let expelled = if is_seen(&mut netlink, port)? { Ok(0) } else { fence::expel_port(port) };
        deleting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(expelled.map(|_| true)?)
    })
}

fn is_seen(netlink: &mut Netlink, name: &str) -> Result<bool, NetlinkError> {
    match netlink.link(name) {
        Ok(_) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The containers' ports on this host.
///
/// # Errors
/// What the kernel refused.
pub fn attachments() -> Result<Vec<Port>, AttachError> {
    Ok(Netlink::open()?.links()?.into_iter().filter_map(port_in).collect())
}

pub(super) fn port_in(link: Link) -> Option<Port> {
    let mut words = link.alias.strip_prefix(ALIAS)?.split_ascii_whitespace().map(str::to_owned);
    let cni_network = words.next()?;
    let owner = words.next().zip(words.next()).map(|(container, interface)| Owner {
        container,
        interface,
        cni_network: cni_network.clone(),
    });
    let (mut said_mtu, mut own_overhead) = (None, None);
    for word in words {
        for (kind, said) in [(MTU_WORD, &mut said_mtu), (OVERHEAD_WORD, &mut own_overhead)] {
            if let Some(number) = word.strip_prefix(kind) {
                *said = number.parse().ok();
            }
        }
    }
    let ends = (link.index, link.other_end);
    Some(Port { name: link.name, cni_network, owner, mtu: link.mtu, said_mtu, own_overhead, ends })
}

/// Takes everybody off one CNI network but these. Returns the ports that went.
///
/// # Errors
/// The first failure; the others are tried nevertheless.
pub fn collect(cni_network: &str, living: &[Owner]) -> Result<Vec<String>, AttachError> {
    let kept: Vec<String> = living.iter().map(port_of).collect();
    let (mut gone, mut failure) = (Vec::new(), None);
    for port in attachments()? {
        if port.cni_network == cni_network && !kept.contains(&port.name) {
            match remove(&port.name) {
                Ok(_) => gone.push(port.name),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
    }
    sweep()?;
    failure.map_or(Ok(gone), Err)
}

/// Makes the fence forget ports that are gone, such as those of namespaces that ended without a word. Returns how many entries went.
///
/// # Errors
/// What the kernel refused.
pub fn sweep() -> Result<usize, AttachError> {
    let names: BTreeSet<String> = Netlink::open()?.links()?.into_iter().map(|link| link.name).collect();
    Ok(fence::expel(|port| !names.contains(port))?)
}

/// Says whether a container is as [`attach`] left it. Further addresses and routes do not matter.
///
/// # Errors
/// [`AttachError::Changed`] says what is missing.
pub fn check(network: &HostNetwork, attachment: &Attachment) -> Result<(), AttachError> {
    let changed = |what: String| Err(AttachError::Changed(what));
    let port = port_of(&attachment.owner);
    let mut netlink = Netlink::open()?;
    let bridge = match netlink.link(&network.bridge) {
        Ok(link) if link.is_bridge && link.up => link,
        _ => return changed(format!("there is no bridge {}, or it is down", network.bridge)),
    };
    match netlink.link(&port) {
        Ok(link) if link.up && link.controller == Some(bridge.index) => {}
        Ok(_) => return changed(format!("the port {port} is down or not on the bridge {}", bridge.name)),
        Err(error) if error.is_absent() => return changed(format!("there is no port {port}")),
        Err(error) => return Err(error.into()),
    }
    let addresses = netlink.addresses()?;
    let has = |wanted| addresses.iter().any(|it| it.link_index == bridge.index && it.address == wanted);
    if let Some(gateway) = network.gateways.iter().find(|gateway| !has(**gateway)) {
        return changed(format!("the bridge {} does not have {gateway}", bridge.name));
    }
    let mac = Namespace::open(&attachment.netns)?.run(|| check_inside(attachment))??;
    let spoken: Vec<IpAddr> = attachment.addresses.iter().map(|address| address.addr()).collect();
    if !network.subnets.is_empty() && !fence::admits(&port, mac, &spoken)? {
        return changed(format!("the fence does not let {port} speak for its container"));
    }
    Ok(())
}

/// The container's link-layer address if all else is there.
fn check_inside(attachment: &Attachment) -> Result<HardwareAddress, AttachError> {
    let name = attachment.owner.interface.as_str();
    let changed = |what: String| Err(AttachError::Changed(what));
    let mut netlink = Netlink::open()?;
    let link = match netlink.link(name) {
        Ok(link) if link.up => link,
        Ok(_) => return changed(format!("the interface {name} is down")),
        Err(error) if error.is_absent() => return changed(format!("there is no interface {name}")),
        Err(error) => return Err(error.into()),
    };
    let mac = hardware_address(&link);
    if attachment.mac.is_some_and(|wanted| wanted != mac) {
        return changed(format!("the interface {name} has another link-layer address"));
    }
    let addresses = netlink.addresses_of(name)?;
    if let Some(lost) = attachment.addresses.iter().find(|wanted| !addresses.iter().any(|it| it.address == **wanted)) {
        return changed(format!("the interface {name} does not have {lost}"));
    }
    for route in &attachment.routes {
        if netlink.routes_to(route.destination)?.is_empty() {
            return changed(format!("there is no route to {}", route.destination));
        }
    }
    Ok(mac)
}

/// Gives a container that has an interface on the network's bridge its addresses beside those that it has, as Docker's containers get
/// theirs: `attachment.owner.interface` is that interface. What it has it may go on saying.
///
/// # Errors
/// [`AttachError`]; then nothing of it is left.
pub fn attach_beside(network: &HostNetwork, attachment: &Attachment) -> Result<Attached, AttachError> {
    let name = &attachment.owner.interface;
    if attachment.addresses.is_empty() {
        return Err(AttachError::NoAddress);
    }
    let namespace = Namespace::open(&attachment.netns)?;
    let found = namespace.run(|| {
        let mut netlink = Netlink::open()?;
        let link = netlink.link(name)?;
        let addresses = netlink.addresses_of(name)?;
        Ok::<_, NetlinkError>((link, addresses))
    })?;
    let (inside, had) = match found {
        Ok(found) => found,
        Err(error) if error.is_absent() => return Err(AttachError::Absent(name.clone())),
        Err(error) => return Err(error.into()),
    };
    let prepared = host::prepare(network)?;
    let port = port_beside(network, name, &inside)?;
    let mac = hardware_address(&inside);
    let had = had.iter().map(|address| address.address.addr());
    let connect = || {
        admit(&port.name, mac, had.chain(attachment.addresses.iter().map(|address| address.addr())))?;
        fence::publish(&attachment.addresses, &attachment.published)?;
        step("attach-admit")?;
        if attachment.hairpin {
            Netlink::open()?.set_hairpin(&port.name, true)?;
        }
        let mtu = least(attachment.mtu, prepared.tun_mtu).filter(|mtu| *mtu < inside.mtu);
        namespace.run(|| furnish_beside(attachment, mac, &inside, mtu))??;
        step("attach-announce")?;
        let port_mac = hardware_address(&port);
        let mtu = mtu.unwrap_or(inside.mtu);
        Ok(Attached { bridge_mac: prepared.bridge_mac, port: port.name.clone(), port_mac, mac, mtu })
    };
    connect().inspect_err(|_| {
        let _ = detach_beside(&attachment.netns, name, &attachment.addresses.iter().map(|it| it.addr()).collect::<Vec<_>>());
    })
}

/// The host's end of a container's interface, if it is a port of the network's bridge.
fn port_beside(network: &HostNetwork, interface: &str, inside: &Link) -> Result<Link, AttachError> {
    let mut netlink = Netlink::open()?;
    let bridge = netlink.link(&network.bridge)?;
    let other_end = inside.other_end.map(|index| netlink.link_at(index)).transpose()?.flatten();
    let port = other_end.filter(|link| link.other_end == Some(inside.index));
    let elsewhere = || AttachError::Elsewhere { interface: interface.to_owned(), bridge: network.bridge.clone() };
    port.filter(|port| port.controller == Some(bridge.index)).ok_or_else(elsewhere)
}

fn furnish_beside(attachment: &Attachment, mac: HardwareAddress, link: &Link, mtu: Option<u32>) -> Result<(), AttachError> {
    let mut netlink = Netlink::open()?;
    if attachment.addresses.iter().any(|address| address.addr().is_ipv6()) {
        prepare_ipv6(&link.name);
    }
    for &address in &attachment.addresses {
        netlink.replace_address(&link.name, address)?;
        if address.prefix_len() == address.max_prefix_len() {
            continue;
        }
        // The interface is as wide as its other network wants; this one is narrower.
        let spec = RouteSpec { source: Some(address.addr()), mtu, ..RouteSpec::new(address, &link.name) };
        netlink.replace_route(spec)?;
    }
    step("attach-address")?;
    for route in &attachment.routes {
        add_route(&mut netlink, &link.name, *route, mtu)?;
    }
    step("attach-route")?;
    announce::by_socket(link.index, mac, &attachment.addresses);
    Ok(())
}

/// Takes these addresses from a container's interface; the rest of it stays, and goes on. What is gone is no error.
///
/// # Errors
/// What the kernel refused.
pub fn detach_beside(netns: &Path, interface: &str, addresses: &[IpAddr]) -> Result<(), AttachError> {
    let inside = match Namespace::open(netns) {
        Ok(namespace) => namespace.run(|| strip(interface, addresses))??,
        Err(_) => None,
    };
    let other_end = inside.and_then(|inside| inside.other_end);
    let links = Netlink::open()?.links()?;
    let others: BTreeSet<&str> =
        links.iter().filter(|link| Some(link.index) != other_end).map(|link| link.name.as_str()).collect();
    // With it those that went without a word.
    Ok(fence::expel(|port| !others.contains(port)).map(drop)?)
}

/// In the container's namespace. Addresses take their routes with them.
fn strip(interface: &str, addresses: &[IpAddr]) -> Result<Option<Link>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let link = match netlink.link(interface) {
        Ok(link) => link,
        Err(error) if error.is_absent() => return Ok(None),
        Err(error) => return Err(error),
    };
    for address in netlink.addresses_of(interface)? {
        if addresses.contains(&address.address.addr()) {
            absent_is_fine(netlink.delete_address(interface, address.address))?;
        }
    }
    Ok(Some(link))
}
