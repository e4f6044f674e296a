//! What could stand in the way, asked before anything is changed: one clear sentence instead of a failure half-way.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::AgentError;
use crate::config::{Advertise, Config, PeerRemote, Report, doubtful, holds_outer};
use crate::control::{ServerError, prepare_run_dir};
use crate::sys::caps::{check_tun_device, may_administer_network};
use crate::sys::file::{self, Locked};
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::nft::CONTAINERS_GROUP;

/// The lock's file name in the run directory.
const LOCK: &str = "agent.lock";

/// Takes the run directory for this process, for as long as the lock is held. A killed agent's lock is free.
///
/// # Errors
/// [`AgentError::AlreadyRunning`], or what the file system said.
pub(super) fn lock(run_dir: &Path) -> Result<Locked, AgentError> {
    prepare_run_dir(run_dir)?;
    let path = run_dir.join(LOCK);
    let failed = |error| AgentError::Control(ServerError::Io(path.clone(), error));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    let lock = match Locked::exclusive(file, Duration::ZERO) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            // Who it is only makes the message better.
            let holder = file::open(&path).and_then(|file| file::read_bounded(&file, 16)).ok();
            let holder =
                holder.as_ref().and_then(|holder| std::str::from_utf8(holder.expose()).ok()).unwrap_or_default().trim();
            let who = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            return Err(AgentError::AlreadyRunning(run_dir.to_owned(), who));
        }
        Err(error) => return Err(failed(error)),
    };
    let note = format!("{}\n", std::process::id());
    lock.set_len(0).and_then(|()| (&*lock).write_all(note.as_bytes())).map_err(failed)?;
    Ok(lock)
}

/// Whether this process may and can have a TUN device here.
///
/// # Errors
/// [`AgentError::NotAdmin`] or [`AgentError::TunDevice`].
pub(super) fn check_rights() -> Result<(), AgentError> {
    if !may_administer_network()? {
        return Err(AgentError::NotAdmin);
    }
    Ok(check_tun_device()?)
}

/// Holds the configuration against this host's interfaces: what the file alone could not tell.
///
/// # Errors
/// When the kernel cannot be asked.
pub(super) fn check_interfaces(config: &Config, report: &mut Report) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let listed = netlink.addresses()?;
    let addresses: Vec<IpAddr> = listed.iter().map(|address| address.address.addr()).collect();
    for advertise in &config.host.advertise {
        let Advertise::Interface(name) = advertise else { continue };
        let Some(link) = links.iter().find(|link| link.name == *name) else {
            report.warning(None, "host.advertise", format!("there is no interface {name}"));
            continue;
        };
        let on_link = listed.iter().filter(|address| address.link_index == link.index);
        for address in on_link.map(|address| address.address.addr()) {
            advertised_is_outside(config, address, name, report);
            if let Some(doubt) = doubtful(address) {
                report.warning(None, "host.advertise", format!("iface:{name}: {address} {doubt}"));
            }
        }
    }
    for peer in &config.peers {
        let is_own = |remote: &PeerRemote| match *remote {
            PeerRemote::Standard(address) => addresses.contains(&address),
            PeerRemote::Natt(endpoint) => {
                addresses.contains(&endpoint.ip()) && endpoint.port() == config.host.listen.natt_port
            }
        };
        if let Some(remote) = peer.remotes().find(is_own) {
            let key = peer.name.key.replace(".name", ".address");
            report.error(peer.name.line, key, format!("{} is this host's own address", remote.address()));
        }
        for address in &listed {
            let network = address.address.trunc();
            let link = links.iter().find(|link| link.index == address.link_index && link.name != config.tun.name);
            if let (Some(link), true) = (link, peer.remote_blocks.contains(&network)) {
                let key = peer.name.key.replace(".name", ".remote_blocks");
                let message = format!("{network} is the network of {} here: it cannot be behind a peer, too", link.name);
                report.error(peer.name.line, key, message);
            }
        }
    }
    Ok(())
}

/// An address that peers are to reach this host by must not be routed into the tunnel on either side. Those that the file names
/// are checked with it.
fn advertised_is_outside(config: &Config, address: IpAddr, interface: &str, report: &mut Report) {
    let what = format!("an address of {interface}, which host.advertise names");
    if let Some(block) = config.overlay.blocks.iter().find(|block| block.contains(&address)) {
        report.error(None, "overlay.blocks", holds_outer(*block, address, &what));
    }
    for peer in &config.peers {
        if let Some(block) = peer.remote_blocks.iter().find(|block| block.contains(&address)) {
            let key = peer.name.key.replace(".name", ".remote_blocks");
            report.error(peer.name.line, key, holds_outer(*block, address, &what));
        }
    }
}

/// `host.advertise` as other hosts would write it. An interface that is not there (yet) stands for itself.
pub(super) fn advertised(config: &Config) -> Vec<String> {
    let of_interface = |name: &str| match Netlink::open().and_then(|mut netlink| netlink.addresses_of(name)) {
        Ok(addresses) => {
            let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
            let addresses = addresses.iter().map(|address| address.address.addr()).filter(|address| !link_local(address));
            addresses.map(|address| address.to_string()).collect()
        }
        Err(_) => vec![format!("iface:{name}")],
    };
    let places = config.host.advertise.iter().map(|advertise| match advertise {
        Advertise::Address(address, None) => vec![address.to_string()],
        Advertise::Address(address, Some(port)) => vec![SocketAddr::new(*address, *port).to_string()],
        Advertise::Interface(name) => of_interface(name),
    });
    places.flatten().collect()
}

/// What the guard must know of this host's interfaces; what the TUN device has does not count.
pub(super) struct Surroundings {
    /// The addresses of this host and its peers on the underlay.
    pub outer: Vec<IpAddr>,
    /// Parts of our blocks that live on other interfaces, because an address of ours is there with its network: containers'
    /// bridges, the LAN behind a gateway.
    pub inside: Vec<(String, IpNet)>,
    /// Those of the bridges on which there is nothing but containers, or that are not there yet.
    pub trusted: Vec<String>,
    /// The others.
    pub doubted: Vec<String>,
}

/// Looks around. `bridges` are those of plugins that are not ours.
pub(super) fn surroundings(config: &Config, tun: &str, bridges: &[String]) -> Result<Surroundings, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let peers = config.peers.iter().flat_map(|peer| peer.remotes()).map(|remote| remote.address());
    // On a bridge with a port that is no container's wire, a whole LAN may hang.
    let leads_further = |name: &&String| {
        let bridge = links.iter().find(|link| link.name == **name);
        bridge.is_some_and(|bridge| {
            !bridge.is_bridge || links.iter().any(|it| it.controller == Some(bridge.index) && !it.is_veth)
        })
    };
    let (doubted, trusted) = bridges.iter().partition(leads_further);
    let clone = |names: Vec<&String>| names.into_iter().cloned().collect();
    let (doubted, trusted) = (clone(doubted), clone(trusted));
    let mut around = Surroundings { outer: peers.collect(), inside: Vec::new(), trusted, doubted };
    for address in netlink.addresses()? {
        let Some(link) = links.iter().find(|link| link.index == address.link_index) else { continue };
        let (own, network) = (address.address.addr(), address.address.trunc());
        if link.name == tun || link.group == CONTAINERS_GROUP || around.trusted.contains(&link.name) || own.is_loopback() {
            continue;
        }
        match config.overlay.blocks.iter().find(|block| block.contains(&own)) {
            Some(block) => around.inside.push((link.name.clone(), if block.contains(&network) { network } else { *block })),
            None => around.outer.push(own),
        }
    }
    around.outer.sort();
    around.outer.dedup();
    around.inside.sort();
    around.inside.dedup();
    Ok(around)
}

/// Says why a file could not be read.
pub(super) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> AgentError + '_ {
    |error| AgentError::Unreadable(path.to_owned(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_belongs_to_one_agent() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("run");
        let first = lock(&run_dir).unwrap();
        let error = lock(&run_dir).unwrap_err();
        let who =
            format!("an agent is already running with run directory {} (process {})", run_dir.display(), std::process::id());
        assert_eq!(error.to_string(), who);
        // As a child process has it between fork and exec.
        let _shared = first.try_clone().unwrap();
        drop(first);
        lock(&run_dir).expect("the lock goes with its holder");
    }
}
