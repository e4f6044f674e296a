//! Path MTUs: what the kernel knows of the ways to the peers, for the device at the start and for the workers ever after.
//!
//! The kernel knows the MTU of the interface or route that packets leave by, and what routers told other programs on this
//! host. It is asked on the agent's own thread, now and then and for a few paths at a time: never per packet.

use std::net::IpAddr;

use crate::config::{Config, Mtu, PeerRemote};
use crate::engine::{Caller, Unreachable};
use crate::esp::InnerMtu;
use crate::node::{self, Node};
use crate::sys::udp;

/// How many paths are looked at in a row: a millisecond's work, and two thousand peers in the half minute after which the
/// node wants to know again.
const LOOKS: usize = 64;

/// Looks at the paths that the node wants to know about. Those that cannot be looked at, as there is no route, stay as they
/// were.
///
/// # Errors
/// If the control thread is gone or stuck.
pub(super) fn look(caller: &Caller<Node>) -> Result<(), Unreachable> {
    let wanted = caller.ask(|node, now| node.path_checks(now, LOOKS))?;
    let mut found = Vec::with_capacity(wanted.len());
    for (peer, path) in wanted {
        match udp::path_mtu(Some(path.local.ip()), path.remote) {
            Ok(mtu) => found.push((peer, path, mtu)),
            Err(error) => tracing::debug!("the MTU of the path to {}: {error}", path.remote.ip()),
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    caller.call(move |node, now| {
        for (peer, path, mtu) in found {
            node.set_path_mtu(now, peer, path, mtu);
        }
    })
}

/// The device's MTU: as configured, or what passes whole to every peer whose place is known, at most [`Mtu::UNMEASURED`].
pub(super) fn tun_mtu(config: &Config) -> u16 {
    let Mtu::Auto = config.tun.mtu else { return config.tun.mtu.initial() };
    let mut mtu = Mtu::UNMEASURED;
    for (peer, remote) in config.peers.iter().flat_map(|peer| peer.remotes().map(move |remote| (peer, remote))) {
        let endpoint = match remote {
            PeerRemote::Standard(address) => (address, config.host.listen.natt_port).into(),
            PeerRemote::Natt(endpoint) => endpoint,
        };
        // A path that is not there yet is looked at when it is.
        let Ok(outer) = udp::path_mtu(Some(config.host.listen.address), endpoint) else { continue };
        let inner = largest_inner(config, endpoint.ip(), outer);
        if inner < mtu {
            tracing::info!("the path to {} takes {outer} octets: the MTU is {inner}", peer.name.value);
            mtu = inner;
        }
    }
    mtu
}

/// What passes whole through a path of `outer` octets. The kernel takes IPv6 off a device of less than 1280.
fn largest_inner(config: &Config, remote: IpAddr, outer: u32) -> u16 {
    let inner = InnerMtu::new(Some(node::payload_limit(remote, outer)), Mtu::UNMEASURED);
    let has_ipv6 = config.overlay.blocks.iter().any(|block| block.addr().is_ipv6());
    if has_ipv6 { inner.v6 } else { inner.v4 }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Surroundings, parse};
    use crate::sys::testing::{in_new_netns, ip};

    /// With three peers: behind the link `wide`, behind the link `narrow`, and one that no route leads to.
    fn mtu(blocks: [&str; 2], tun: &str) -> u16 {
        let peer = |number: usize, address: &str| {
            let psk = "psk: 0123456789abcdef0123456789abcdef";
            format!("  - {{name: p{number}, address: {address}, {psk}, remote_blocks: ['10.42.{number}.0/24']}}\n")
        };
        let peers = [peer(2, "192.0.2.2"), peer(3, "'198.51.100.2:4600'"), peer(4, "203.0.113.2")].concat();
        let [first, second] = blocks;
        let text =
            format!("host: {{name: alpha}}\ntun: {{mtu: {tun}}}\noverlay: {{blocks: [{first}, {second}]}}\npeers:\n{peers}");
        let (config, report) = parse(Path::new("u.yaml"), text.as_bytes(), &Surroundings::default());
        tun_mtu(&config.unwrap_or_else(|| panic!("{report}")))
    }

    #[test]
    fn the_narrowest_known_path_decides() {
        in_new_netns(|| {
            const V4: [&str; 2] = ["10.42.1.0/24", "10.43.1.0/24"];
            assert_eq!(mtu(V4, "auto"), 1400, "no path is known");
            for (link, address) in [("wide", "192.0.2.1/24"), ("narrow", "198.51.100.1/24")] {
                ip(&format!("link add {link} type veth peer name {link}-far"));
                ip(&format!("address add {address} dev {link}"));
                ip(&format!("link set {link} up"));
                ip(&format!("link set {link}-far up"));
            }
            assert_eq!(mtu(V4, "auto"), 1400);
            ip("link set narrow mtu 1300");
            assert_eq!((mtu(V4, "auto"), mtu(V4, "1420")), (1238, 1420));
            assert_eq!(mtu(["10.42.1.0/24", "'fd42::/64'"], "auto"), 1280, "less would take IPv6 off the device");
            ip("link set narrow mtu 9000");
            assert_eq!(mtu(V4, "auto"), 1400);
        });
    }
}
