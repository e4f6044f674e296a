//! Network drivers at work: a driver brings its network once, and its CNI configuration is where runtimes look.
//!
//! The networks of a host stand in a file of the state directory (`list.rs`). The agent holds them against its configuration at the
//! start and at each reload (`apply`); `underpass net` changes them by itself ([`create`], [`remove`]). Then, in either case, what
//! follows from them is made true (`settle`): which network is the default one, which blocks each has in the journal of addresses,
//! and the files of runtimes (`install.rs`).
//!
//! A network is never changed or removed below its containers (`usage.rs`) unless somebody insists; then they are shown as
//! disconnected until they end.

mod bridges;
mod clash;
mod install;
mod list;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use clash::clash;
use install::Places;
pub use install::{CONFLIST_PREFIX, link_plugins, missing_links};
use list::ListLock;
pub use list::{HostFacts, List, Network, Origin, State};
pub use usage::Container;

use super::{Options, files};
use crate::config::{Config, Report};
use crate::ipam::{Ipam, IpamError, MANAGED, Namespaces, Seconds, Source};
use crate::network::{Change, Driver, Labels, Spec};
use crate::observe::{self, Disconnected, Status};
use crate::sys::clock::wall_clock;

/// Containers that are named in a message; of more, the number.
const NAMED: usize = 8;

/// Why a network is not made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// The file system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
    /// Somebody else changed the file.
    #[error("{}: {}", .0.display(), .1)]
    Damaged(PathBuf, #[source] serde_json::Error),
    /// A newer version wrote it.
    #[error("{}: written by a newer version of underpass", .0.display())]
    Newer(PathBuf),
    /// Somebody holds the lock.
    #[error("{}: another process holds the lock", .0.display())]
    Locked(PathBuf),
    /// Nobody said where files go.
    #[error("no agent has run with state directory {}: it says which addresses are this host's and where files go", .0.display())]
    NoHost(PathBuf),
    /// There is no such network.
    #[error("no network is called {0:?}; there are {1}")]
    NotFound(String, String),
    /// There is one already.
    #[error("there is a network called {0} already")]
    Exists(String),
    /// It cannot be beside the others.
    #[error("{0}")]
    Overlaps(String),
    /// Containers are on it.
    #[error(
        "network {name} is in use by {}: stop them, or remove it by --force, which disconnects them",
        named(.containers)
    )]
    InUse {
        /// The network.
        name: String,
        /// Who is on it.
        containers: Vec<Container>,
    },
}

/// `2 containers: a (eth0 10.42.1.2), b (eth0 10.42.1.3)`.
#[must_use]
pub fn named(containers: &[Container]) -> String {
    let mut listed: Vec<String> = containers.iter().take(NAMED).map(ToString::to_string).collect();
    if containers.len() > NAMED {
        listed.push(format!("{} more", containers.len() - NAMED));
    }
    format!("{}: {}", observe::counted(containers.len(), "container"), listed.join(", "))
}

/// Holds the networks against the configuration, and makes true what follows. The tunnel works without, so what fails is
/// returned in words.
pub(super) fn apply(config: &Config, options: &Options) -> Vec<String> {
    let warnings = match try_apply(config, options) {
        Ok(warnings) => warnings,
        Err(error) => vec![format!("the networks stay as they were: {error}")],
    };
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    warnings
}

fn try_apply(config: &Config, options: &Options) -> Result<Vec<String>, NetworksError> {
    let state_dir = absolute(&options.state_dir)?;
    let mut report = Report::new(&options.config);
    let drivers = files::drivers(config, &mut report);
    if report.has_errors() {
        return Ok(vec![format!("the networks stay as they were: {}", report.to_string().trim_end())]);
    }
    let lock = ListLock::take(&state_dir)?;
    let mut list = List::read(&state_dir)?;
    let before = list.clone();
    let mut warnings = Vec::new();
    let facts = host_facts(config, options)?;
    if let Some(old) =
        list.host.replace(facts).filter(|old| list.host.as_ref().is_some_and(|new| old.conf_dir != new.conf_dir))
    {
        let places = Places { host: &old, state_dir: &state_dir };
        let gone = list.networks.iter().map(|network| places.uninstall(&network.spec.name));
        warnings.extend(gone.chain([places.uninstall_managed()]).filter_map(Result::err));
    }
    let mut reconciler = Reconciler {
        list: &mut list,
        state_dir: &state_dir,
        labels: &config.labels,
        now: wall_clock(),
        warnings: &mut warnings,
    };
    // First what goes: it may have what others are to get.
    reconciler.without_driver(&drivers);
    for driver in &drivers {
        reconciler.driver(driver);
    }
    warnings.extend(settle(&mut list, &state_dir));
    // Who watches the file is not to be woken for nothing.
    if list != before {
        list.write(&state_dir, &lock)?;
    }
    Ok(warnings)
}

fn absolute(path: &Path) -> Result<PathBuf, NetworksError> {
    std::path::absolute(path).map_err(|error| NetworksError::Io(path.to_owned(), error))
}

fn host_facts(config: &Config, options: &Options) -> Result<HostFacts, NetworksError> {
    Ok(HostFacts {
        run_dir: absolute(&options.run_dir)?,
        conf_dir: absolute(&config.cni.conf_dir)?,
        bin_dir: absolute(&config.cni.bin_dir)?,
        cache_dir: absolute(&config.cni.cache_dir)?,
        blocks: config.overlay.blocks.clone(),
        addresses: config.overlay.addresses.clone(),
        tun: config.tun.name.clone(),
    })
}

/// The networks while the agent holds them against its drivers.
struct Reconciler<'l> {
    list: &'l mut List,
    state_dir: &'l Path,
    labels: &'l Labels,
    now: Seconds,
    warnings: &'l mut Vec<String>,
}

impl Reconciler<'_> {
    /// A driver that is configured: its network is made, or changed.
    fn driver(&mut self, driver: &Driver) {
        let Some(spec) = Spec::of(driver, self.labels) else {
            self.warnings.push(format!("driver {}: no default_network: it brings no network", driver.name));
            return;
        };
        let containers = self.list.find(&spec.name).map(|network| self.containers(network)).unwrap_or_default();
        if self.list.find(&spec.name).is_none() {
            if let Some(clash) = clash(self.list, &spec) {
                self.warnings.push(format!("driver {}: {clash}", driver.name));
                return;
            }
            tracing::info!("driver {} brings network {}", driver.name, spec.name);
            self.list.networks.push(Network::new(spec, Origin::Driver, self.now));
            return;
        }
        let others: List = {
            let mut others = self.list.clone();
            others.networks.retain(|network| network.spec.name != spec.name);
            others
        };
        let Some(network) = self.list.find_mut(&spec.name) else { return };
        network.origin = Origin::Driver;
        if !network.state.is_wanted() {
            return;
        }
        let change = Change::between(&network.spec, &spec);
        if containers.is_empty() && !change.refused.is_empty() {
            // Else its own bridge of before is taken for another network's.
            self.warnings.extend(bridges::take_down(&others, &network.spec));
        }
        // While somebody is on it, the network's own bridge of before would be in its way.
        let clash = if containers.is_empty() { clash(&others, &spec) } else { None };
        if change.refused.is_empty() || (containers.is_empty() && clash.is_none()) {
            if network.spec != spec {
                tracing::info!("network {}: changed: {}", spec.name, [change.in_place, change.refused].concat().join(", "));
            }
            network.spec = spec;
            return;
        }
        let why = clash.unwrap_or_else(|| {
            let who = named(&containers);
            format!("while containers use it: stop {who}, and reload; or bring it under another name")
        });
        let why = if containers.is_empty() { format!(": {why}") } else { format!(" {why}") };
        if !change.in_place.is_empty() {
            tracing::info!("network {}: changed: {}", spec.name, change.in_place.join(", "));
        }
        let keys = change.refused.join(", ");
        self.warnings.push(format!("network {}: {keys} cannot be changed{why}", spec.name));
        network.spec = change.spec;
    }

    /// Networks whose driver is not configured: they go when nobody is on them.
    fn without_driver(&mut self, drivers: &[Driver]) {
        let brought = |name: &str| {
            drivers.iter().any(|driver| driver.default_network.as_ref().is_some_and(|network| network.name == name))
        };
        let orphans: Vec<String> = self
            .list
            .networks
            .iter()
            .filter(|network| network.origin == Origin::Driver && !brought(&network.spec.name))
            .map(|network| network.spec.name.clone())
            .collect();
        for name in orphans {
            let Some(network) = self.list.find(&name) else { continue };
            let containers = self.containers(network);
            match network.state {
                State::Removed => self.list.networks.retain(|network| network.spec.name != name),
                // It goes when its containers do.
                State::Disconnected => {
                    if let Some(network) = self.list.find_mut(&name) {
                        network.origin = Origin::Command;
                    }
                }
                State::Active | State::Failed if containers.is_empty() => {
                    tracing::info!("network {name}: removed, as its driver is");
                    let spec = network.spec.clone();
                    self.warnings.extend(uninstall(self.list, &name, self.state_dir));
                    self.list.networks.retain(|network| network.spec.name != name);
                    self.warnings.extend(bridges::take_down(self.list, &spec));
                }
                State::Active | State::Failed => {
                    let who = named(&containers);
                    let message = format!(
                        "network {name}: its driver is not configured any more, but it is in use by {who}: it stays until they \
                         are stopped and the configuration is read again; `underpass net rm {name} --force` disconnects them"
                    );
                    self.warnings.push(message);
                }
            }
        }
    }

    fn containers(&self, network: &Network) -> Vec<Container> {
        containers(self.list, network, self.state_dir)
    }
}

/// Shows the networks in a status. What cannot be read stands among its warnings.
pub(super) fn show(state_dir: &Path, status: &mut Status) {
    let list = match List::read(state_dir) {
        Ok(list) => list,
        Err(error) => {
            status.warnings.push(error.to_string());
            return;
        }
    };
    let now = wall_clock();
    for network in &list.networks {
        status.networks.push(observe::Network {
            name: network.spec.name.clone(),
            managed: list.is_managed(network),
            driver: network.spec.driver.clone(),
            state: network.state.name().to_owned(),
            subnets: network.spec.prefixes().iter().map(ToString::to_string).collect(),
            problem: network.problem.clone(),
        });
        for lost in disconnected(&list, network, state_dir) {
            status.disconnected.push(Disconnected {
                network: network.spec.name.clone(),
                container: lost.container,
                interface: lost.interface,
                addresses: lost.addresses.iter().map(ToString::to_string).collect(),
                seconds_ago: now.saturating_sub(network.removed.unwrap_or(now)),
            });
        }
    }
}

/// Everybody on a network.
#[must_use]
pub fn containers(list: &List, network: &Network, state_dir: &Path) -> Vec<Container> {
    let Some(host) = &list.host else { return Vec::new() };
    usage::containers(network, list.is_managed(network), host, state_dir)
}

/// Whoever was on a network that was removed by force, and still is there.
#[must_use]
pub fn disconnected(list: &List, network: &Network, state_dir: &Path) -> Vec<Container> {
    if network.state != State::Disconnected {
        return Vec::new();
    }
    let Some(host) = &list.host else { return Vec::new() };
    // It may have been the default network.
    let there = usage::containers(network, true, host, state_dir);
    let same =
        |left: &Container| there.iter().any(|it| (&it.container, &it.interface) == (&left.container, &left.interface));
    network.left.iter().filter(|left| same(left)).cloned().collect()
}

/// A container on one of this host's networks, whichever plugin connected it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The network's own name.
    pub network: String,
    /// Who it is.
    pub container: Container,
    /// The network was removed by force.
    pub is_disconnected: bool,
}

/// What containers of this host are called by who started them, if somebody noted that: by their ids.
#[must_use]
pub fn names(list: &List) -> BTreeMap<String, String> {
    list.host.as_ref().map(usage::names).unwrap_or_default()
}

/// Everybody on the networks of this host.
#[must_use]
pub fn members(list: &List, state_dir: &Path) -> Vec<Member> {
    let mut members = Vec::new();
    for network in &list.networks {
        let is_wanted = network.state.is_wanted();
        let here = if is_wanted { containers(list, network, state_dir) } else { disconnected(list, network, state_dir) };
        members.extend(here.into_iter().map(|container| Member {
            network: network.spec.name.clone(),
            container,
            is_disconnected: !is_wanted,
        }));
    }
    members
}

/// Makes true what follows from the list. What is in the way is returned in words, and stands in the list.
fn settle(list: &mut List, state_dir: &Path) -> Vec<String> {
    let Some(host) = list.host.clone() else { return Vec::new() };
    let mut warnings = forget_the_gone(list, state_dir);
    let had_managed = list.managed.is_some();
    choose_managed(list);
    choose_pools(list);
    let places = Places { host: &host, state_dir };
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
        if pool == MANAGED {
            // Drivers speak of IPv4; what this host has of IPv6 is the default network's.
            let more = unclaimed(list, host).into_iter();
            blocks.extend(more.filter(|block| network.spec.subnets.is_empty() || block.addr().is_ipv6()));
        }
        if blocks.is_empty() {
            let subnets: Vec<String> = network.spec.prefixes().iter().map(ToString::to_string).collect();
            let subnets = subnets.join(", ");
            let name = &network.spec.name;
            warnings
                .push(format!("network {name}: this host owns no block of {subnets}: containers get no address on it here"));
        }
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

/// This host's blocks that are in no network's subnets.
fn unclaimed(list: &List, host: &HostFacts) -> Vec<IpNet> {
    let claimed: Vec<IpNet> = list.wanted().flat_map(|network| network.spec.blocks(&host.blocks)).collect();
    host.blocks.iter().filter(|block| !claimed.contains(block)).copied().collect()
}

fn uninstall(list: &List, name: &str, state_dir: &Path) -> Option<String> {
    let host = list.host.as_ref()?;
    Places { host, state_dir }.uninstall(name).err()
}

/// Makes a network by hand, or brings one back that was removed. Returns it with what is in the way.
///
/// # Errors
/// [`NetworksError`]; then nothing was changed.
pub fn create(state_dir: &Path, wanted: Wanted) -> Result<(Network, Vec<String>), NetworksError> {
    let state_dir = &absolute(state_dir)?;
    let lock = ListLock::take(state_dir)?;
    let mut list = List::read(state_dir)?;
    if list.host.is_none() {
        return Err(NetworksError::NoHost(state_dir.clone()));
    }
    let name = match wanted {
        Wanted::New(spec) => {
            if list.find(&spec.name).is_some() {
                return Err(NetworksError::Exists(spec.name));
            }
            clash(&list, &spec).map_or(Ok(()), |clash| Err(NetworksError::Overlaps(clash)))?;
            let name = spec.name.clone();
            list.networks.push(Network::new(*spec, Origin::Command, wall_clock()));
            name
        }
        Wanted::Back(name) => {
            let Some(network) = list.networks.iter().find(|network| network.spec.name == name) else {
                return Err(not_found(&list, &name));
            };
            if network.state.is_wanted() {
                return Err(NetworksError::Exists(name));
            }
            clash(&list, &network.spec).map_or(Ok(()), |clash| Err(NetworksError::Overlaps(clash)))?;
            if let Some(network) = list.find_mut(&name) {
                (network.state, network.removed) = (State::Active, None);
                network.left.clear();
            }
            for warning in bridges::switch(&list, &name, true) {
                tracing::warn!("{warning}");
            }
            name
        }
    };
    let warnings = settle(&mut list, state_dir);
    list.write(state_dir, &lock)?;
    let network = list.find(&name).cloned().ok_or_else(|| not_found(&list, &name))?;
    Ok((network, warnings))
}

/// Which network is wanted.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A new one.
    New(Box<Spec>),
    /// One that was removed.
    Back(String),
}

/// Removes a network; returns who was disconnected, with what is in the way.
///
/// # Errors
/// [`NetworksError`]; then nothing was changed.
pub fn remove(state_dir: &Path, name: &str, force: bool) -> Result<(Vec<Container>, Vec<String>), NetworksError> {
    let state_dir = &absolute(state_dir)?;
    let lock = ListLock::take(state_dir)?;
    let mut list = List::read(state_dir)?;
    let found = list.find(name).filter(|network| network.state.is_wanted());
    let Some(network) = found else { return Err(not_found(&list, name)) };
    let (name, spec) = (network.spec.name.clone(), network.spec.clone());
    let containers = containers(&list, network, state_dir);
    if !(containers.is_empty() || force) {
        return Err(NetworksError::InUse { name, containers });
    }
    let mut warnings: Vec<String> = uninstall(&list, &name, state_dir).into_iter().collect();
    if !containers.is_empty() {
        warnings.extend(bridges::switch(&list, &name, false));
    }
    if let Some(network) = list.find_mut(&name) {
        network.state = if containers.is_empty() { State::Removed } else { State::Disconnected };
        network.removed = Some(wall_clock());
        network.problem = None;
        network.left.clone_from(&containers);
    }
    if containers.is_empty() {
        warnings.extend(bridges::take_down(&list, &spec));
    }
    warnings.extend(settle(&mut list, state_dir));
    list.write(state_dir, &lock)?;
    Ok((containers, warnings))
}

fn not_found(list: &List, name: &str) -> NetworksError {
    let names: Vec<&str> = list.networks.iter().map(|network| network.spec.name.as_str()).collect();
    NetworksError::NotFound(name.to_owned(), if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

#[cfg(test)]
mod tests;
