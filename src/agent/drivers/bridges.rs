//! The bridges of networks: down when a network is removed under its containers and up when it comes back; gone, with everything else
//! that containers' coming made on this host, when nobody is on it.
//!
//! A bridge is made with a network's first container, by whichever plugin or watcher connects it, so none may be there. What other
//! plugins made is theirs.

use super::list::List;
use crate::attach;
use crate::network::Spec;
use crate::sys::netlink::Netlink;

/// The bridge of Docker's own network.
const DOCKERS_BRIDGE: &str = "docker0";

/// Takes a network's bridges down, and with them every container on it, or up again. A bridge that somebody else uses as well stays.
pub(super) fn switch(list: &List, name: &str, up: bool) -> Vec<String> {
    let Some(network) = list.find(name) else { return Vec::new() };
    let mut warnings = Vec::new();
    for bridge in network.spec.bridges() {
        if is_shared(list, &network.spec, bridge) || bridge == DOCKERS_BRIDGE {
            if !up {
                let message = format!("bridge {bridge} is not for network {name} alone: its containers keep their links");
                warnings.push(message);
            }
            continue;
        }
        let done =
            Netlink::open().and_then(|mut netlink| if up { netlink.set_up(bridge) } else { netlink.set_down(bridge) });
        warnings.extend(done.err().filter(|error| !error.is_absent()).map(|error| error.to_string()));
    }
    warnings
}

/// Takes off this host what was made for a network that nobody is on: the bridge if it is ours, addresses, routes, and the fence.
pub(super) fn take_down(list: &List, spec: &Spec) -> Vec<String> {
    let alone = spec.bridges().filter(|bridge| !is_shared(list, spec, bridge));
    let failed = alone.filter_map(|bridge| attach::forget_bridge(bridge).err());
    failed.map(|error| format!("network {}: it left something on this host: {error}", spec.name)).collect()
}

/// Takes from the fence what stands there of containers whose ports are gone. Returns how many entries that were.
///
/// # Errors
/// What is in the way, in words.
pub fn sweep_fence() -> Result<usize, String> {
    attach::sweep_patiently().map_err(|error| error.to_string())
}

/// Takes down bridges of ours on which nobody is and which no network has: what was connected by a configuration of somebody's own, before
/// there was a driver for it. Whoever comes by it again gets it again.
pub(super) fn take_down_idle(list: &List) {
    let bridges = attach::bridges().unwrap_or_default().into_iter().filter(|bridge| bridge.is_ours);
    let has = |bridge: &attach::Bridge| list.wanted().any(|network| network.spec.bridges().any(|it| it == bridge.name));
    for bridge in bridges.filter(|bridge| !has(bridge)) {
        // What stays is in the way, and is named.
        let _ = attach::forget_bridge(&bridge.name);
    }
}

/// Whether another network of this host has this bridge.
fn is_shared(list: &List, spec: &Spec, bridge: &str) -> bool {
    list.wanted().filter(|other| other.spec.name != spec.name).any(|other| other.spec.bridges().any(|it| it == bridge))
}
