//! Network drivers as data: the `network_driver` block of a compose file, read, typed and checked.
//!
//! A driver says which network it brings (`default_network`) and by which CNI plugins containers get onto it (`cni_config`).
//! Such blocks stand in `rancher-compose.yml` or `docker-compose.yml`, below a service or a section `services`. The way of one:
//! `compose.rs` finds it in the file, `interpolate.rs` puts variables in, `read.rs` makes values of it, `netconf.rs` makes the
//! CNI configuration files, and `types.rs` says what comes out. `spec.rs` is the network that a host makes of a driver, with what container
//! runtimes get, `bridge.rs` what our own plugins read in that; `change.rs` says what of it can change while containers use it; [`choice`] says which network a container gets.
//!
//! Files of this kind were never validated before: unknown keys were ignored, and of a key that stood twice the last one
//! counted. They load here as they did, but each such key earns a warning with its line, or an error if the reader is strict.
//! What could not have worked is an error always.

mod bridge;
mod change;
pub mod choice;
mod compose;
mod interpolate;
mod netconf;
mod read;
mod result;
mod spec;
mod types;

pub use bridge::{BridgeConf, first_address};
pub use change::Change;
pub use result::addresses_in;
pub use spec::{BRIDGE_PLUGINS, IPAM_PLUGIN, OnHost, Spec};
pub use types::{CniFile, DefaultNetwork, Driver, IPV6_GATEWAY, Labels, Subnet};

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::config::scalar;
use crate::config::yaml::{self, Duplicates, Node};
use crate::config::{DriverBlock, Report};

/// The value of a variable for `${NAME}`, or none if it is not set.
pub type Variables<'v> = &'v dyn Fn(&str) -> Option<String>;

/// Reads the network drivers of a compose file. `file` is its name, for messages; `strict` makes errors of warnings.
///
/// # Errors
/// None as such: there are no drivers if the report holds an error.
#[must_use]
pub fn parse(file: &Path, octets: &[u8], variables: Variables<'_>, strict: bool) -> (Vec<Driver>, Report) {
    let mut report = Report::new(file);
    let root = yaml::parse(octets, Duplicates::LastWins, &mut report);
    drivers_of(root.as_ref(), report, variables, strict)
}

/// The same if this is a compose file, and not the agent's configuration: by its name, or because it holds a block.
#[must_use]
pub fn parse_if_compose(
    file: &Path,
    octets: &[u8],
    variables: Variables<'_>,
    strict: bool,
) -> Option<(Vec<Driver>, Report)> {
    let is_called_so = compose::is_called_so(file);
    if !is_called_so && !compose::may_have_block(octets) {
        return None;
    }
    let mut report = Report::new(file);
    let root = yaml::parse(octets, Duplicates::LastWins, &mut report);
    let is_compose = is_called_so || root.as_ref().is_some_and(compose::has_block);
    is_compose.then(|| drivers_of(root.as_ref(), report, variables, strict))
}

fn drivers_of(root: Option<&Node>, mut report: Report, variables: Variables<'_>, strict: bool) -> (Vec<Driver>, Report) {
    let mut drivers = root.map(|root| compose::drivers(root, variables, &mut report)).unwrap_or_default();
    if strict {
        report.harden();
    }
    report.sort();
    if report.has_errors() {
        drivers.clear();
    }
    (drivers, report)
}

/// What a compose file holds besides network drivers, and why it means nothing to an agent.
#[must_use]
pub fn not_taken(file: &Path, octets: &[u8]) -> Report {
    let mut report = Report::new(file);
    // What the tree itself is warned of was said by whoever read the drivers.
    if let Some(root) = yaml::parse(octets, Duplicates::LastWins, &mut Report::new(file)) {
        compose::not_taken(&root, &mut report);
    }
    report.sort();
    report
}

/// A network's name, if it can be one.
///
/// # Errors
/// What was expected, in words.
pub fn check_name(name: &str) -> Result<String, String> {
    read::network_name(name).map_err(|expected| format!("expected {}, got {name:?}", expected.what))
}

/// An interface's name, if it can be one.
///
/// # Errors
/// What was expected, in words.
pub fn interface_of(name: &str) -> Result<String, String> {
    scalar::interface(name).map_err(|expected| format!("expected {}, got {name:?}", expected.what))
}

/// Reads a driver that stands in the agent's configuration: the block itself, or a service that holds one. What is wrong goes into
/// the configuration's report.
#[must_use]
pub fn parse_block(block: &DriverBlock, variables: Variables<'_>, report: &mut Report) -> Vec<Driver> {
    compose::inline(block, variables, report)
}

/// Holds drivers of several files against each other: a name means one network, and an address is in one. Those of one compose file
/// were held against each other when it was read; those in the configuration, whose report this is, were not.
pub fn check_together(drivers: &[(PathBuf, Driver)], report: &mut Report) {
    for (index, (file, late)) in drivers.iter().enumerate() {
        let Some(network) = &late.default_network else { continue };
        for (early_file, early) in &drivers[..index] {
            let Some(other) = &early.default_network else { continue };
            if file == early_file && *file != report.file {
                continue;
            }
            let place = format!("{}:{}", early_file.display(), early.line);
            let mut own = Report::new(file);
            if network.name == other.name {
                let message = format!("a network called {} comes with the driver at {place} already", network.name);
                own.error(late.line, "default_network.name", message);
            } else if let Some((ours, theirs)) = overlap(&network.subnets, &other.subnets) {
                let message = overlapping(ours, &network.name, theirs, &other.name, &place);
                own.error(late.line, "default_network.subnets", message);
            }
            report.include(own);
        }
    }
}

fn overlapping(ours: IpNet, name: &str, theirs: IpNet, other: &str, place: &str) -> String {
    format!("{ours} of network {name} overlaps {theirs} of network {other} ({place}): on one host they cannot be told apart")
}

fn overlap(ours: &[Subnet], theirs: &[Subnet]) -> Option<(IpNet, IpNet)> {
    let pairs = ours.iter().flat_map(|ours| theirs.iter().map(move |theirs| (ours.network, theirs.network)));
    pairs.into_iter().find(|(ours, theirs)| ours.contains(theirs) || theirs.contains(ours))
}

#[cfg(test)]
mod tests;
