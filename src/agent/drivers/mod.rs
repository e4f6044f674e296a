//! Network drivers at work: a driver brings its network once, and its CNI configuration is where runtimes look.
//!
//! The networks of a host stand in a file of the state directory (`list.rs`). The agent holds them against its configuration at the
//! start and at each reload (`reconcile.rs`); `underpass net` changes them by itself ([`create`], [`remove`]). Then, in either case, what
//! follows from them is made true (`settle.rs`): which network is the default one, which blocks each has in the journal of addresses,
//! and the files of runtimes (`install.rs`).
//!
//! A network is never changed or removed below its containers (`usage.rs`) unless somebody insists; then they are shown as
//! disconnected until they end.

mod bridges;
mod clash;
mod install;
mod list;
mod reconcile;
mod settle;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use bridges::sweep_fence;
use clash::clash;
use install::Places;
pub use install::{CONFLIST_PREFIX, link_plugins, missing_links};
use list::ListLock;
pub use list::{HostFacts, List, Network, Origin, State};
use reconcile::Reconciler;
pub(super) use settle::forget_gone;
use settle::{settle, uninstall};
pub use usage::Container;

use super::{Options, files};
use crate::config::{Config, Report};
use crate::network::Spec;
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

/// A path from the root on.
///
/// # Errors
/// [`NetworksError::Io`]: it is empty, or nobody can say where we are.
pub fn absolute(path: &Path) -> Result<PathBuf, NetworksError> {
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
    /// It is the default one.
    pub is_managed: bool,
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
            is_managed: list.is_managed(network),
            is_disconnected: !is_wanted,
        }));
    }
    members
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
