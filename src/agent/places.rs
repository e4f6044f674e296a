//! Where this host can be reached, and which of its addresses peers see: looked at when the agent starts, and whenever an address, a
//! route or an interface changes.
//!
//! An address that is still there, on an interface that works, stays in use, whatever the routes say: a peer may have called us at
//! it. Only one that is gone is left, for the one that the kernel would send from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::AgentError;
use crate::config::Config;
use crate::engine::Caller;
use crate::model::PeerIndex;
use crate::node::Node;
use crate::sys::netlink::{Address, Link, Netlink};
use crate::sys::nft::CONTAINERS_GROUP;
use crate::sys::udp;

/// Looks, and tells the node.
///
/// # Errors
/// If the kernel or the control thread does not answer.
pub(super) fn look(config: &Config, caller: &Caller<Node>) -> Result<(), AgentError> {
    let mut netlink = Netlink::open()?;
    let (links, addresses) = (netlink.links()?, netlink.addresses()?);
    let here = in_use(&links, &addresses);
    let listen = config.host.listen.address;
    // A socket that is bound to one address sends from no other one.
    let moves = if listen.is_unspecified() { moves(config, caller, &here)? } else { Vec::new() };
    // A bridge of containers has the same address on every host.
    let is_inner = |link: &&Link| link.name == config.tun.name || link.group == CONTAINERS_GROUP;
    let inner: Vec<u32> = links.iter().filter(is_inner).map(|link| link.index).collect();
    let told = addresses.iter().filter(|address| !inner.contains(&address.link_index)).map(|address| address.address.addr());
    let told: Vec<IpAddr> = told.filter(|address| here.contains(address) && is_outer(config, *address)).collect();
    let fits = |address: &IpAddr| listen == *address || listen.is_unspecified();
    let told: Vec<IpAddr> = told.into_iter().filter(fits).collect();
    caller.call(move |node, now| node.handle_places(now, told, moves))?;
    Ok(())
}

/// The addresses of interfaces that work.
fn in_use(links: &[Link], addresses: &[Address]) -> BTreeSet<IpAddr> {
    let works = |index| links.iter().any(|link| link.index == index && link.up && link.running);
    addresses.iter().filter(|address| works(address.link_index)).map(|address| address.address.addr()).collect()
}

/// Whether peers can send to it.
fn is_outer(config: &Config, address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !link_local && !config.overlay.blocks.iter().any(|block| block.contains(&address))
}

/// Peers that we speak to from an address that is gone, with the one to take instead.
fn moves(
    config: &Config,
    caller: &Caller<Node>,
    here: &BTreeSet<IpAddr>,
) -> Result<Vec<(PeerIndex, IpAddr, IpAddr)>, AgentError> {
    let mut moves = Vec::new();
    for (peer, path) in caller.ask(|node, _| node.ways())? {
        let local = path.local.ip().to_canonical();
        if local.is_unspecified() || here.contains(&local) {
            continue;
        }
        // Without a route there is nothing to be done; the next change may bring one.
        if let Ok(source) = udp::source(path.remote)
            && here.contains(&source)
            && is_outer(config, source)
        {
            moves.push((peer, local, source));
        }
    }
    Ok(moves)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys::testing::{in_new_netns, ip};

    #[test]
    fn addresses_count_while_their_interface_works() {
        in_new_netns(|| {
            ip("link add left type veth peer name right");
            ip("address add 192.0.2.1/24 dev left");
            ip("link set left up");
            let here = || {
                let mut netlink = Netlink::open().unwrap();
                in_use(&netlink.links().unwrap(), &netlink.addresses().unwrap())
            };
            let address: IpAddr = "192.0.2.1".parse().unwrap();
            assert!(!here().contains(&address), "nobody is at the other end");
            ip("link set right up");
            // The kernel says so when its link watch comes around, up to a second later.
            let late = Instant::now() + Duration::from_secs(10);
            while !here().contains(&address) {
                assert!(Instant::now() < late, "the interface works");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(udp::source("192.0.2.7:4500".parse().unwrap()).unwrap(), address);
            ip("address del 192.0.2.1/24 dev left");
            assert!(!here().contains(&address));
            assert!(udp::source("192.0.2.7:4500".parse().unwrap()).is_err());
        });
    }
}
