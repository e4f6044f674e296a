//! The kernel's side: the TUN device's addresses and MTU, the routes that lead into it, and the guard.
//!
//! Addresses and routes hang on the device and go with it, also when the agent is killed. The guard outlives a killed agent,
//! so that overlay packets stay out while nobody opens them, and goes when the agent is stopped in order.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::AgentError;
use super::delivery::is_single;
use super::preflight;
use crate::config::Config;
use crate::observe::Tun;
use crate::sys::netlink::{Netlink, NetlinkError, RouteSpec, absent_is_fine};
use crate::sys::nft::{self, CONTAINERS_GROUP, Guard, GuardCounters};
use crate::sys::udp::Buffers;

/// Packets that may wait for a queue of the device: a worker that was away for a scheduler's slice finds them, instead of losses.
/// TCP never fills it; what does (a flood of datagrams) waits as long as the queue is, and makes others wait. Measured in
/// `docs/performance.md`: less loses datagrams at rates that could be carried, more only adds milliseconds.
pub(super) const TX_QUEUE: u32 = 1000;

/// What was set up, so that it can be changed and taken back.
#[derive(Debug)]
pub(super) struct Plumbing {
    tun: String,
    table: String,
    /// Bridges of other plugins: what comes in by them is as if from this host.
    bridges: Vec<String>,
    tx_queue: Option<u32>,
    addresses: BTreeSet<IpAddr>,
    routes: BTreeSet<(IpNet, Option<IpAddr>)>,
}

impl Plumbing {
    /// Puts the guard up, which lets pass what comes in by these bridges, and then makes the device ready, with this MTU. What was set up goes when this is dropped. Also returns what the
    /// guard cannot keep out, in words.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn new(config: &Config, mtu: u16, bridges: Vec<String>) -> Result<(Self, Vec<String>), AgentError> {
        let tun = config.tun.name.clone();
        // Agents that share a network namespace have different devices.
        let table = if tun == "underpass0" { "underpass".to_owned() } else { format!("underpass-{tun}") };
        let mut plumbing = Self { tun, table, bridges, tx_queue: None, addresses: BTreeSet::new(), routes: BTreeSet::new() };
        let warnings = plumbing.guard(config)?;
        plumbing.configure(config, mtu)?;
        Ok((plumbing, warnings))
    }

    /// The guard's nftables table.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Packets that may wait for the device.
    pub(super) const fn tx_queue(&self) -> Option<u32> {
        self.tx_queue
    }

    /// Lets the guard pass what comes in by these bridges. What it cannot keep out, or the kernel refused, is returned in words.
    pub(super) fn trust(&mut self, config: &Config, bridges: Vec<String>) -> Vec<String> {
        if self.bridges == bridges {
            return Vec::new();
        }
        self.bridges = bridges;
        self.guard(config).unwrap_or_else(|error| vec![error.to_string()])
    }

    /// Puts the guard up again if somebody took it away. What is to be told of that is returned in words.
    pub(super) fn keep_guard(&self, config: &Config) -> Vec<String> {
        match nft::counters(&self.table) {
            Ok(Some(_)) => Vec::new(),
            Ok(None) => {
                let mut told = vec![format!("somebody removed the nftables table {}: it is back", self.table)];
                match self.guard(config) {
                    Ok(more) => told.extend(more),
                    Err(error) => told = vec![error.to_string()],
                }
                told
            }
            Err(error) => vec![error.to_string()],
        }
    }

    fn guard(&self, config: &Config) -> Result<Vec<String>, AgentError> {
        let remote: Vec<IpNet> = config.peers.iter().flat_map(|peer| peer.remote_blocks.iter().copied()).collect();
        let around = preflight::surroundings(config, &self.tun, &self.bridges)?;
        let guard = Guard {
            table: &self.table,
            tun: &self.tun,
            allowed: &around.trusted,
            local: &config.overlay.prefixes(),
            inside: &around.inside,
            remote: &remote,
            outer: &around.outer,
        };
        let unguarded = nft::install(&guard)?;
        let unguarded = unguarded.iter().map(|prefix| format!("packets in clear from {prefix} cannot be told from others"));
        let doubted = around.doubted.iter().map(|bridge| {
            format!("{bridge} leads to more than containers: what comes in by it with an address of the overlay is dropped")
        });
        Ok(unguarded.chain(doubted).collect())
    }

    /// Makes the device ready: MTU, queue, addresses, up, routes.
    fn configure(&mut self, config: &Config, mtu: u16) -> Result<(), NetlinkError> {
        let mut netlink = Netlink::open()?;
        netlink.set_mtu(&self.tun, mtu.into())?;
        netlink.set_txqueuelen(&self.tun, TX_QUEUE)?;
        self.tx_queue = Some(netlink.link(&self.tun)?.txqueuelen);
        self.without_link_local_address();
        for &address in &config.overlay.addresses {
            netlink.replace_address(&self.tun, address.into())?;
            self.addresses.insert(address);
        }
        netlink.set_up(&self.tun)?;
        for route in wanted_routes(config) {
            add_route(&mut netlink, self.route(route))?;
            self.routes.insert(route);
        }
        Ok(())
    }

    /// Keeps the kernel from giving the device a link-local address, and from asking for routers through the tunnel: no peer
    /// owns those addresses, and each packet would be a drop. Where there is no IPv6 there is nothing to do.
    fn without_link_local_address(&self) {
        const NONE: &str = "1";
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", self.tun), NONE);
    }

    fn route(&self, (destination, source): (IpNet, Option<IpAddr>)) -> RouteSpec<'_> {
        RouteSpec { source, ..RouteSpec::new(destination, &self.tun) }
    }

    /// Takes another configuration over: the guard first, then addresses and routes by difference. Goes as far as it can;
    /// what the kernel refused is returned in words.
    pub(super) fn change(&mut self, config: &Config) -> Vec<String> {
        let mut complaints = self.guard(config).unwrap_or_else(|error| vec![error.to_string()]);
        let mut netlink = match Netlink::open() {
            Ok(netlink) => netlink,
            Err(error) => {
                complaints.push(error.to_string());
                return complaints;
            }
        };
        let mut done = |result: Result<(), NetlinkError>| {
            let fine = result.is_ok();
            complaints.extend(result.err().map(|error| error.to_string()));
            fine
        };
        let addresses: BTreeSet<IpAddr> = config.overlay.addresses.iter().copied().collect();
        let routes: BTreeSet<_> = wanted_routes(config).collect();
        // New addresses first: a route's source must be there. Old routes go before their source does.
        for &address in addresses.difference(&self.addresses.clone()) {
            if done(netlink.replace_address(&self.tun, address.into())) {
                self.addresses.insert(address);
            }
        }
        for &route in self.routes.clone().difference(&routes) {
            if done(absent_is_fine(netlink.delete_route(route.0, &self.tun))) {
                self.routes.remove(&route);
            }
        }
        for &route in routes.difference(&self.routes.clone()) {
            if done(add_route(&mut netlink, self.route(route))) {
                self.routes.insert(route);
            }
        }
        for &address in self.addresses.clone().difference(&addresses) {
            if done(absent_is_fine(netlink.delete_address(&self.tun, address.into()))) {
                self.addresses.remove(&address);
            }
        }
        complaints
    }
}

impl Drop for Plumbing {
    fn drop(&mut self) {
        if let Err(error) = nft::remove(&self.table) {
            tracing::warn!("{error}");
        }
    }
}

/// How many packets found the device's queue full.
pub(super) fn device_drops(tun: &str) -> u64 {
    Netlink::open().and_then(|mut netlink| netlink.dropped_outbound(tun)).unwrap_or_default()
}

/// What an operator can do where the kernel granted shorter queues than asked for, in words.
pub(super) fn queue_hints(tun: &Tun, buffers: Buffers) -> Vec<String> {
    let mut hints = Vec::new();
    if let (Some(wanted), Some(granted)) = (tun.txqueuelen_wanted, tun.txqueuelen)
        && granted < wanted
    {
        hints.push(format!("{} holds {granted} packets, not {wanted}: raise its txqueuelen", tun.name));
    }
    let Buffers { wanted, receive, send } = buffers;
    for (kind, granted, key) in [("receive", receive, "net.core.rmem_max"), ("send", send, "net.core.wmem_max")] {
        if granted < wanted {
            hints.push(format!("UDP {kind} buffers have {granted} octets, not {wanted}: raise {key}"));
        }
    }
    hints
}

/// What the guard of this table kept out.
pub(super) fn guard_counters(table: &str) -> GuardCounters {
    // A status without these two is better than none.
    nft::counters(table).ok().flatten().unwrap_or_default()
}

/// Every peer's blocks, and the address that this host's own packets to them come from.
fn wanted_routes(config: &Config) -> impl Iterator<Item = (IpNet, Option<IpAddr>)> {
    let source =
        |block: IpNet| config.overlay.addresses.iter().copied().find(|address| address.is_ipv4() == block.addr().is_ipv4());
    config.peers.iter().flat_map(|peer| peer.remote_blocks.iter()).map(move |&block| (block, source(block)))
}

/// Adds a route. To a single address that was here before it may lead to the containers' bridge still.
fn add_route(netlink: &mut Netlink, route: RouteSpec<'_>) -> Result<(), NetlinkError> {
    match netlink.add_route(route) {
        Err(error) if error.is_present() && is_by_bridges(netlink, route.destination)? => netlink.replace_route(route),
        other => other,
    }
}

fn is_by_bridges(netlink: &mut Netlink, destination: IpNet) -> Result<bool, NetlinkError> {
    let links = netlink.links()?;
    let is_bridge = |index| links.iter().any(|link| Some(link.index) == index && link.group == CONTAINERS_GROUP);
    Ok(is_single(destination) && netlink.routes_to(destination)?.iter().all(|route| is_bridge(route.link_index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_granted_is_told_with_what_helps() {
        let tun = |granted| Tun {
            name: "underpass0".into(),
            mtu: 1400,
            queues: 1,
            backend: "offload".into(),
            offloads: Vec::new(),
            txqueuelen_wanted: Some(1000),
            txqueuelen: granted,
        };
        let granted = |receive, send| Buffers { wanted: 4_194_304, receive, send };
        let nothing: [&str; 0] = [];
        assert_eq!(queue_hints(&tun(Some(1000)), granted(4_194_304, 4_194_304)), nothing);
        assert_eq!(queue_hints(&tun(None), granted(8_388_608, 4_194_304)), nothing);
        assert_eq!(
            queue_hints(&tun(Some(500)), granted(212_992, 212_992)),
            [
                "underpass0 holds 500 packets, not 1000: raise its txqueuelen",
                "UDP receive buffers have 212992 octets, not 4194304: raise net.core.rmem_max",
                "UDP send buffers have 212992 octets, not 4194304: raise net.core.wmem_max"
            ]
        );
    }
}
