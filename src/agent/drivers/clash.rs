//! What keeps a network off this host: another network or interface with its addresses, or with its bridge.

use ipnet::IpNet;

use super::list::List;
use crate::network::Spec;
use crate::sys::netlink::{Netlink, NetlinkError};

/// Why a network cannot be beside the others, or on this host.
pub(super) fn clash(list: &List, spec: &Spec) -> Option<String> {
    for other in list.wanted() {
        if let Some((ours, theirs)) = spec.overlap(&other.spec) {
            return Some(format!(
                "{ours} of network {} overlaps {theirs} of network {}: on one host they cannot be told apart",
                spec.name, other.spec.name
            ));
        }
    }
    if let Some(shared) = shared_bridge(list, spec) {
        return Some(shared);
    }
    let tun = list.host.as_ref().map(|host| host.tun.as_str());
    // What the kernel does not tell is no obstacle.
    match on_another_interface(spec, tun) {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!("addresses of this host: {error}");
            None
        }
    }
}

/// A bridge that is something else, or a subnet that is the network of an interface which is none of the network's bridges.
fn on_another_interface(spec: &Spec, tun: Option<&str>) -> Result<Option<String>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let is_none = |name: &str| links.iter().any(|link| link.name == name && !link.is_bridge);
    if let Some(name) = spec.our_bridges().find(|name| is_none(name)) {
        return Ok(Some(format!("network {}: its bridge would be {name}, which is no bridge", spec.name)));
    }
    for address in netlink.addresses()? {
        let network = address.address.trunc();
        let Some(link) = links.iter().find(|link| link.index == address.link_index) else { continue };
        if Some(link.name.as_str()) == tun || spec.interfaces().any(|name| name == link.name) || network.prefix_len() == 32 {
            continue;
        }
        let shared = |subnet: &IpNet| subnet.contains(&network) || network.contains(subnet);
        if let Some(subnet) = spec.prefixes().into_iter().map(IpNet::V4).find(shared) {
            let name = &spec.name;
            return Ok(Some(format!("{subnet} of network {name} overlaps {network}, the network of {} here", link.name)));
        }
    }
    Ok(None)
}

/// A bridge of another network. On one bridge no packet between two networks would come by the fence that keeps them apart.
fn shared_bridge(list: &List, spec: &Spec) -> Option<String> {
    list.wanted().find_map(|other| {
        let is_ours = |name: &&str| spec.our_bridges().chain(other.spec.our_bridges()).any(|it| it == *name);
        let shared = spec.bridges().filter(is_ours).find(|name| other.spec.bridges().any(|it| it == *name))?;
        let (name, other) = (&spec.name, &other.spec.name);
        Some(format!(
            "network {name}: its bridge {shared} is that of network {other}: on one bridge they cannot be kept apart"
        ))
    })
}
