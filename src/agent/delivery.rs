//! Single addresses of containers here that are in none of our blocks: the kernel must be told that they are behind the containers' bridge,
//! as the route to the block that they are out of leads into the tunnel.
//!
//! When such an address goes, to its block's host or to any other, containers here are told: they know where it was.
//!
//! The routes hang on bridges, which outlive the agent; what a killed one left is taken away at the first look.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::attach;
use crate::config::{Config, Overlay};
use crate::sys::netlink::{Address, Link, Netlink, NetlinkError, RouteSpec, absent_is_fine};
use crate::sys::nft::CONTAINERS_GROUP;

/// The routes that were made.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// By which bridge.
    routes: BTreeMap<IpAddr, String>,
    /// Single addresses that other hosts have.
    remote: BTreeSet<IpAddr>,
    looked: bool,
}

impl Delivery {
    /// Makes the routes to the single addresses of containers here, as far as there are bridges for them.
    pub(super) fn look(&mut self, config: &Config) {
        let Overlay { singles, beyond, .. } = &config.overlay;
        let is_first = !std::mem::replace(&mut self.looked, true);
        let blocks = config.peers.iter().filter(|peer| peer.from_store).flat_map(|peer| &peer.remote_blocks);
        let remote: BTreeSet<IpAddr> = blocks.filter(|block| is_single(**block)).map(IpNet::addr).collect();
        let remote = std::mem::replace(&mut self.remote, remote);
        let is_quiet = singles.is_empty() && self.routes.is_empty() && remote == self.remote;
        if is_quiet && (!is_first || beyond.is_empty()) {
            return;
        }
        let came: Vec<IpAddr> = self.remote.difference(&remote).copied().collect();
        if let Err(error) = self.try_look(singles, &came, if is_first { beyond } else { &[] }) {
            tracing::warn!("single addresses of containers: {error}");
        }
    }

    /// `came` has what is another host's from now on.
    fn try_look(&mut self, singles: &[IpAddr], came: &[IpAddr], stale: &[IpNet]) -> Result<(), NetlinkError> {
        let mut netlink = Netlink::open()?;
        let (links, addresses) = (netlink.links()?, netlink.addresses()?);
        for link in links.iter().filter(|link| link.group == CONTAINERS_GROUP && !stale.is_empty()) {
            for route in netlink.routes_by(link.index)?.into_iter().map(|route| route.destination) {
                if is_single(route) && stale.iter().any(|subnet| subnet.contains(&route)) && !singles.contains(&route.addr())
                {
                    absent_is_fine(netlink.delete_route(route, &link.name))?;
                }
            }
        }
        let gone: Vec<IpAddr> = self.routes.keys().filter(|address| !singles.contains(address)).copied().collect();
        for &address in &gone {
            if let Some(bridge) = self.routes.remove(&address) {
                absent_is_fine(netlink.delete_route(address.into(), &bridge))?;
            }
        }
        for &address in gone.iter().chain(came) {
            if let Some(bridge) = bridge_of(address, &links, &addresses) {
                attach::announce_gone(bridge, address);
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

/// Whether it is one address.
pub(super) fn is_single(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The bridge of containers on whose link the address is.
fn bridge_of<'l>(address: IpAddr, links: &'l [Link], addresses: &[Address]) -> Option<&'l Link> {
    let on_link = addresses.iter().filter(|on_link| on_link.address.contains(&address));
    let mut nets: Vec<(u8, u32)> = on_link.map(|on_link| (on_link.address.prefix_len(), on_link.link_index)).collect();
    nets.sort_unstable();
    let bridges = |index: u32| links.iter().find(|link| link.index == index && link.group == CONTAINERS_GROUP);
    nets.into_iter().rev().find_map(|(_, index)| bridges(index))
}
