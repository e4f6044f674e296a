//! What stands while one way is measured: the two hosts, a container on each, and the programs that carry packets.
//!
//! ```text
//!   container 10.42.1.10 ── br0 ─ host alpha ─ underpass0 … wire … underpass0 ─ host beta ─ br0 ── container 10.42.2.10
//! ```
//!
//! A container is a namespace on a bridge of its host, and sees one flat network: its host answers for every address that it
//! has a route to (proxy ARP), as a host of the managed network does.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::ceiling;
use super::matrix::Way;
use crate::cli::lab::hosts::{AgentOptions, Host, Hosts, WIRE};
use crate::cli::lab::{Failure, Flow, OWN_PROGRAM, Stop, ping};
use crate::model::AeadAlgorithm;
use crate::sys::netlink::{Netlink, RouteSpec, VethEnd};
use crate::sys::netns::Namespace;

/// The tunnels' MTU: what an agent chooses by itself on this wire. Containers have the same.
pub const INNER_MTU: u16 = 1400;

/// A host's bridge, and the container's interface in it.
const BRIDGE: &str = "br0";
const PORT: &str = "c0";
/// The container's own interface.
const OWN: &str = "eth0";

/// Places in a host's block: the container's, and the bridge's.
const CONTAINER_PLACE: u8 = 10;
const BRIDGE_PLACE: u8 = 254;

/// Between those pings.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long until the first ping must have been answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agents are told.
#[derive(Clone, Copy, Debug)]
pub struct Agents {
    /// Workers; as many as cores unless said otherwise.
    pub queues: Option<u16>,
    /// How packets are sealed.
    pub suite: AeadAlgorithm,
}

/// A way that stands.
pub struct Site {
    hosts: Hosts,
    containers: Option<[Namespace; 2]>,
    way: Way,
}

impl Site {
    /// Builds it, and waits until packets pass.
    pub fn build(way: Way, agents: Agents, with_containers: bool, stop: &Stop) -> Result<Self, Failure> {
        let mut hosts = Hosts::build(Path::new(OWN_PROGRAM), "bench")?;
        // Before the agents, whose guard goes by the addresses that it finds.
        let containers = if with_containers {
            let (alpha, beta) = hosts.pair();
            Some([make_container(alpha)?, make_container(beta)?])
        } else {
            None
        };
        let check = || stop.check().map_err(|_| Failure::Interrupted);
        match way {
            Way::Raw => {
                let (alpha, beta) = hosts.pair();
                join_blocks(alpha, beta)?;
                join_blocks(beta, alpha)?;
            }
            Way::Ceiling => hosts.start_instead(|host, peer| ceiling::arguments(host, peer, INNER_MTU))?,
            Way::Underpass | Way::Plain => {
                let Agents { queues, suite } = agents;
                let is_plain = way == Way::Plain;
                // That backend has one.
                let queues = if is_plain { Some(1) } else { queues };
                hosts.start_agents(AgentOptions { queues, mtu: Some(INNER_MTU), is_plain, suite: Some(suite) })?;
                hosts.await_up(check, |_, _, _| {})?;
            }
        }
        let mut site = Self { hosts, containers, way };
        site.settle(stop)?;
        Ok(site)
    }

    /// From alpha to beta.
    pub fn there(&self) -> Flow<'_> {
        let (alpha, beta) = self.hosts.pair();
        let [source, destination] = [alpha, beta].map(|host| self.address(host));
        Flow { from: &alpha.namespace, source, to: &beta.namespace, destination }
    }

    /// From beta to alpha.
    pub fn back(&self) -> Flow<'_> {
        let there = self.there();
        Flow { from: there.to, source: there.destination, to: there.from, destination: there.source }
    }

    /// From alpha's container to beta's, if they were wanted.
    pub fn contained(&self) -> Option<Flow<'_>> {
        let (alpha, beta) = self.hosts.pair();
        let [from, to] = self.containers.as_ref()?;
        let [source, destination] = [alpha, beta].map(|host| place(host, CONTAINER_PLACE));
        Some(Flow { from, source, to, destination })
    }

    /// The programs that carry packets.
    pub fn processes(&self) -> Vec<u32> {
        let (alpha, beta) = self.hosts.pair();
        [alpha, beta].into_iter().filter_map(Host::process).collect()
    }

    /// Why something failed here: if a program has ended meanwhile, that is why.
    pub fn explain(&mut self, failure: Failure) -> Failure {
        match failure {
            Failure::Interrupted => failure,
            failure => self.hosts.check_agents().err().unwrap_or(failure),
        }
    }

    fn address(&self, host: &Host) -> Ipv4Addr {
        if self.way == Way::Raw { host.outer } else { host.overlay }
    }

    /// Pings every way until it answers.
    fn settle(&mut self, stop: &Stop) -> Result<(), Failure> {
        let flows = [Some(self.there()), Some(self.back()), self.contained()];
        let outcome = flows.into_iter().flatten().try_for_each(|flow| await_answer(flow, stop));
        outcome.map_err(|failure| self.explain(failure))
    }
}

fn await_answer(flow: Flow<'_>, stop: &Stop) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let (from, to) = (flow.source, flow.destination);
    while Instant::now() < deadline {
        match ping::ping(flow, 2, INTERVAL, stop) {
            Ok(pings) if pings.answered == pings.sent => return Ok(()),
            Ok(_) => {}
            // The address or the route is still to come.
            Err(error) if matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::NetworkUnreachable) => {
                thread::sleep(INTERVAL);
            }
            Err(error) => return Err(Failure::io(&format!("ping from {from} to {to}"), &error)),
        }
    }
    Err(Failure::Timeout(format!("{to} did not answer {from} within {} s", PATIENCE.as_secs())))
}

/// An address in the host's block.
fn place(host: &Host, place: u8) -> Ipv4Addr {
    let [a, b, c, _] = host.overlay.octets();
    Ipv4Addr::new(a, b, c, place)
}

/// Makes a namespace on a bridge of the host.
fn make_container(host: &Host) -> Result<Namespace, Failure> {
    let container = Namespace::create()?;
    host.netlink(|netlink| {
        netlink.create_bridge(BRIDGE)?;
        let far = VethEnd { name: OWN, namespace: Some(container.as_fd()) };
        netlink.create_veth(VethEnd { name: PORT, namespace: None }, far)?;
        netlink.join_bridge(PORT, BRIDGE)?;
        netlink.set_mtu(PORT, INNER_MTU.into())?;
        netlink.add_address(BRIDGE, Ipv4Net::new_assert(place(host, BRIDGE_PLACE), 24).into())?;
        netlink.set_up(PORT)?;
        netlink.set_up(BRIDGE)
    })?;
    let inside = || -> Result<(), crate::sys::netlink::NetlinkError> {
        let mut netlink = Netlink::open()?;
        netlink.set_mtu(OWN, INNER_MTU.into())?;
        // The whole overlay is on the link.
        netlink.add_address(OWN, Ipv4Net::new_assert(place(host, CONTAINER_PLACE), 16).into())?;
        netlink.set_up("lo")?;
        netlink.set_up(OWN)
    };
    container.run(inside)??;
    host.namespace.run(forward)?.map_err(|error| Failure::failed("let a host forward packets", error))?;
    Ok(container)
}

/// Lets the calling thread's namespace forward, and answer ARP for what it has routes to.
fn forward() -> std::io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    fs::write("/proc/sys/net/ipv4/conf/all/proxy_arp", "1")?;
    for link in [BRIDGE, WIRE] {
        // Up to 0.8 s before the first answer; not ours to change in a user namespace, and then only the start waits.
        let _ = fs::write(format!("/proc/sys/net/ipv4/neigh/{link}/proxy_delay"), "0");
    }
    Ok(())
}

/// Without a tunnel the peer's block lies on the wire.
fn join_blocks(host: &Host, peer: &Host) -> Result<(), Failure> {
    let block: Ipv4Net = peer.block.parse().map_err(|error| Failure::failed("read a block", error))?;
    host.netlink(|netlink| netlink.add_route(RouteSpec::new(block.into(), WIRE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_reach_each_other_over_the_bare_wire() {
        let agents = Agents { queues: None, suite: AeadAlgorithm::Aes256Gcm16 };
        let site = Site::build(Way::Raw, agents, true, &Stop::never()).expect("needs root");
        let flow = site.contained().unwrap();
        assert_eq!((flow.source, flow.destination), (Ipv4Addr::new(10, 42, 1, 10), Ipv4Addr::new(10, 42, 2, 10)));
        assert!(site.processes().is_empty());
        assert_eq!(site.there().source, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(site.back().source, Ipv4Addr::new(192, 0, 2, 2));
        let without = Site::build(Way::Raw, agents, false, &Stop::never()).unwrap();
        assert!(without.contained().is_none());
    }
}
