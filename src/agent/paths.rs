//! Path MTUs: what the kernel knows of the ways to the peers, for the device at the start and for the workers ever after.
//!
//! The kernel knows the MTU of the interface or route that packets leave by, and what routers told other programs on this
//! host. It is asked on the agent's own thread, now and then and for a few paths at a time: never per packet.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::{Config, Mtu, PeerRemote};
use crate::engine::{Caller, Unreachable};
use crate::esp::InnerMtu;
use crate::node::{self, Node};
use crate::sys::udp;

/// How often the node is asked which paths it wants to know about: a new path is known about a second later.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    for (peer, remote) in config.peers.iter().filter_map(|peer| Some((peer, peer.remote?))) {
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
