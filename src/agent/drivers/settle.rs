//! What follows from the networks of this host, made true: which is the default one, which blocks each has in the journal of addresses,
//! the files of runtimes, and nothing of those that are gone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::install::Places;
use super::list::{HostFacts, List, ListLock, Network, Origin, State};
use super::{NetworksError, bridges, disconnected};
use crate::ipam::{Ipam, IpamError, MANAGED, Namespaces, Source};
use crate::network::{Spec, Subnet};
use crate::sys::clock::wall_clock;

/// Makes true what follows from the list. What is in the way is returned in words, and stands in the list.
pub(super) fn settle(list: &mut List, state_dir: &Path) -> Vec<String> {
    let Some(host) = list.host.clone() else { return Vec::new() };
    let mut warnings = forget_the_gone(list, state_dir);
    let had_managed = list.managed.is_some();
    choose_managed(list);
    choose_pools(list);
    let places = Places { host: &host, state_dir };
    places.sweep(&list.wanted().map(|network| network.spec.name.as_str()).collect::<Vec<_>>());
    let managed = list.managed.clone();
    let mut linked = None;
    for network in list.networks.iter_mut().filter(|network| network.state.is_wanted()) {
        let linked = linked.get_or_insert_with(|| places.link_plugins());
        let is_managed = managed.as_deref() == Some(&network.spec.name);
        let outcome = places.install(network, is_managed).and_then(|()| linked.clone());
        network.state = if outcome.is_ok() { State::Active } else { State::Failed };
        network.problem = outcome.err();
        warnings.extend(network.problem.iter().map(|problem| format!("network {}: {problem}", network.spec.name)));
    }
    if managed.is_none() && had_managed {
        warnings.extend(places.uninstall_managed().err());
    }
    match tell_journal(list, &host, state_dir) {
        Ok(more) => warnings.extend(more),
        Err(error) => warnings.push(format!("CNI plugins do not know this host's blocks: {error}")),
    }
    warnings
}

/// As [`settle`] does it, for networks alone whose containers have ended since: whoever disconnected them went away then. Costs a look at a
/// file where there are none.
pub(in crate::agent) fn forget_gone(state_dir: &Path) -> Result<Vec<String>, NetworksError> {
    let waits = |list: &List| list.networks.iter().any(|network| network.state == State::Disconnected);
    if !waits(&List::read(state_dir)?) {
        return Ok(Vec::new());
    }
    let lock = ListLock::take(state_dir)?;
    let mut list = List::read(state_dir)?;
    let before = list.clone();
    let warnings = forget_the_gone(&mut list, state_dir);
    if list != before {
        list.write(state_dir, &lock)?;
    }
    Ok(warnings)
}

/// Networks that were removed by force are done with when their containers are. What is in the way of that is returned in words.
fn forget_the_gone(list: &mut List, state_dir: &Path) -> Vec<String> {
    let gone: Vec<Spec> = list
        .networks
        .iter()
        .filter(|network| network.state == State::Disconnected && disconnected(list, network, state_dir).is_empty())
        .map(|network| network.spec.clone())
        .collect();
    let is_gone = |network: &Network| gone.iter().any(|spec| spec.name == network.spec.name);
    for network in list.networks.iter_mut().filter(|network| is_gone(network)) {
        network.state = State::Removed;
        network.left.clear();
    }
    list.networks.retain(|network| network.state != State::Removed || network.origin == Origin::Driver);
    gone.iter().flat_map(|spec| bridges::take_down(list, spec)).collect()
}

/// The default network stays what it is while it is there; else the first one becomes it.
fn choose_managed(list: &mut List) {
    let is_there = list.managed.as_ref().is_some_and(|name| list.wanted().any(|network| network.spec.name == *name));
    if !is_there {
        let first = list.wanted().next().map(|network| network.spec.name.clone());
        list.managed = first;
    }
}

/// A network's name in the journal stays while the network does: its leases are under it. The first network takes over what was
/// given before there were drivers.
fn choose_pools(list: &mut List) {
    for index in 0..list.networks.len() {
        let ours = list.networks[index].spec.has_our_addresses();
        if !ours || list.networks[index].pool.is_some() {
            continue;
        }
        let free = list.networks.iter().all(|network| network.pool.as_deref() != Some(MANAGED));
        let pool = if free { MANAGED.to_owned() } else { list.networks[index].spec.name.clone() };
        list.networks[index].pool = Some(pool);
    }
}

/// Tells the journal which blocks each network has, and takes back leases whose namespaces are gone.
fn tell_journal(list: &List, host: &HostFacts, state_dir: &Path) -> Result<Vec<String>, IpamError> {
    let mut warnings = Vec::new();
    let mut ipam = Ipam::open(state_dir)?;
    for lease in ipam.release_gone(&Namespaces::look(), wall_clock())? {
        tracing::info!("network {}: took back what {} had: its network namespace is gone", lease.network, lease.owner);
    }
    let mut pools: Vec<(String, Vec<IpNet>, Vec<IpAddr>)> = Vec::new();
    for network in list.wanted() {
        let Some(pool) = &network.pool else { continue };
        let mut blocks = network.spec.blocks(&host.blocks);
        let subnets = &network.spec.subnets;
        let has_ipv6 = subnets.iter().any(Subnet::is_ipv6);
        if pool == MANAGED {
            // Most drivers speak of IPv4 alone; what this host has of IPv6 is the default network's then.
            let more = unclaimed(list, host).into_iter();
            blocks.extend(more.filter(|block| subnets.is_empty() || (!has_ipv6 && block.addr().is_ipv6())));
        }
        warnings.extend(without_blocks(&network.spec, &blocks));
        let reserved = network.spec.reserved(&blocks).unwrap_or_else(|| {
            let name = &network.spec.name;
            warnings.push(format!("network {name}: start_address and end_address leave out too much of a block to be kept"));
            Vec::new()
        });
        pools.push((pool.clone(), blocks, reserved));
    }
    // Without drivers all blocks are the default network's. One that was removed keeps its name, and has nothing.
    if list.networks.iter().all(|network| network.pool.as_deref() != Some(MANAGED)) {
        pools.push((MANAGED.to_owned(), unclaimed(list, host), Vec::new()));
    }
    let known: Vec<String> = ipam.book().networks().map(|(name, _)| name.to_owned()).collect();
    for name in known.into_iter().filter(|name| pools.iter().all(|(pool, ..)| pool != name)) {
        // What a network had that is gone, nobody gets by its name; what a plugin's configuration brought is its own.
        if ipam.book().network(&name).is_some_and(|known| known.source() == Source::Agent) {
            ipam.set_network(&name, &[], &[], Source::Agent)?;
        }
    }
    for (pool, blocks, mut reserved) in pools {
        reserved.extend(host.addresses.iter().filter(|address| blocks.iter().any(|block| block.contains(*address))));
        // An address is somebody's whatever its network was called when it was given.
        let elsewhere = ipam.book().leases().filter(|lease| lease.network != pool);
        reserved.extend(
            elsewhere.flat_map(|lease| &lease.addresses).filter(|it| blocks.iter().any(|block| block.contains(*it))),
        );
        let reserved: Vec<IpAddr> = reserved.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        if ipam.set_network(&pool, &blocks, &reserved, Source::Agent)? {
            tracing::debug!("wrote this host's blocks of {pool} down for CNI plugins");
        }
    }
    Ok(warnings)
}

/// A family of a network's subnets of which this host has nothing to give, in words.
fn without_blocks(spec: &Spec, blocks: &[IpNet]) -> Option<String> {
    let is_missing = |subnet: &&Subnet| !blocks.iter().any(|block| block.addr().is_ipv6() == subnet.is_ipv6());
    let missing: Vec<&Subnet> = spec.subnets.iter().filter(is_missing).collect();
    let listed: Vec<String> = missing.iter().map(|subnet| subnet.network.to_string()).collect();
    let (name, listed) = (&spec.name, listed.join(", "));
    let what = match missing.as_slice() {
        [] => return None,
        [one, ..] if missing.len() < spec.subnets.len() => {
            if one.is_ipv6() {
                "no IPv6 address"
            } else {
                "no IPv4 address"
            }
        }
        _ => "no address",
    };
    Some(format!("network {name}: this host owns no block of {listed}: containers get {what} on it here"))
}

/// This host's blocks that are in no network's subnets.
fn unclaimed(list: &List, host: &HostFacts) -> Vec<IpNet> {
    let claimed: Vec<IpNet> = list.wanted().flat_map(|network| network.spec.blocks(&host.blocks)).collect();
    host.blocks.iter().filter(|block| !claimed.contains(block)).copied().collect()
}

pub(super) fn uninstall(list: &List, name: &str, state_dir: &Path) -> Option<String> {
    let host = list.host.as_ref()?;
    Places { host, state_dir }.uninstall(name).err()
}
