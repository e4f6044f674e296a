//! Single addresses of containers here that are in none of our blocks: the kernel must be told that they are behind the containers' bridge,
//! as the route to the block that they are out of leads into the tunnel.
//!
//! The routes hang on bridges, which outlive the agent; what a killed one left is taken away at the first look.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::sys::netlink::{Address, Link, Netlink, NetlinkError, RouteSpec};
use crate::sys::nft::CONTAINERS_GROUP;

/// The routes that were made.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// By which bridge.
    routes: BTreeMap<IpAddr, String>,
    looked: bool,
}

impl Delivery {
    /// Makes the routes to these addresses, as far as there are bridges for them. `beyond` is where such addresses are of.
    pub(super) fn look(&mut self, singles: &[IpAddr], beyond: &[IpNet]) {
        let is_first = !std::mem::replace(&mut self.looked, true);
        if singles.is_empty() && self.routes.is_empty() && !(is_first && !beyond.is_empty()) {
            return;
        }
        if let Err(error) = self.try_look(singles, if is_first { beyond } else { &[] }) {
            tracing::warn!("single addresses of containers: {error}");
        }
    }

    fn try_look(&mut self, singles: &[IpAddr], stale: &[IpNet]) -> Result<(), NetlinkError> {
        let mut netlink = Netlink::open()?;
        let (links, addresses) = (netlink.links()?, netlink.addresses()?);
        for link in links.iter().filter(|link| link.group == CONTAINERS_GROUP && !stale.is_empty()) {
            for route in netlink.routes_by(link.index)?.into_iter().map(|route| route.destination) {
                let is_single = route.prefix_len() == route.max_prefix_len();
                if is_single && stale.iter().any(|subnet| subnet.contains(&route)) && !singles.contains(&route.addr()) {
                    absent_is_fine(netlink.delete_route(route, &link.name))?;
                }
            }
        }
        let gone: Vec<IpAddr> = self.routes.keys().filter(|address| !singles.contains(address)).copied().collect();
        for address in gone {
            if let Some(bridge) = self.routes.remove(&address) {
                absent_is_fine(netlink.delete_route(address.into(), &bridge))?;
            }
        }
        for &address in singles {
            let Some(bridge) = bridge_of(address, &links, &addresses) else { continue };
            if self.routes.get(&address) != Some(&bridge.name) {
                netlink.replace_route(RouteSpec::new(address.into(), &bridge.name))?;
                self.routes.insert(address, bridge.name.clone());
            }
        }
        // A bridge that went took its routes with it.
        self.routes.retain(|_, name| links.iter().any(|link| link.name == *name));
        Ok(())
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        for (address, bridge) in &self.routes {
            let _ = Netlink::open().and_then(|mut netlink| netlink.delete_route((*address).into(), bridge));
        }
    }
}

/// The bridge of containers on whose link the address is.
fn bridge_of<'l>(address: IpAddr, links: &'l [Link], addresses: &[Address]) -> Option<&'l Link> {
    let on_link = addresses.iter().filter(|on_link| on_link.address.contains(&address));
    let mut nets: Vec<(u8, u32)> = on_link.map(|on_link| (on_link.address.prefix_len(), on_link.link_index)).collect();
    nets.sort_unstable();
    let bridges = |index: u32| links.iter().find(|link| link.index == index && link.group == CONTAINERS_GROUP);
    nets.into_iter().rev().find_map(|(_, index)| bridges(index))
}

fn absent_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    result.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
}
