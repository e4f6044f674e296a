//! Network drivers as data: the `network_driver` block of a compose file, read, typed and checked.
//!
//! A driver says which network it brings (`default_network`) and by which CNI plugins containers get onto it (`cni_config`).
//! Such blocks stand in `rancher-compose.yml` or `docker-compose.yml`, below a service or a section `services`. The way of one:
//! `compose.rs` finds it in the file, `interpolate.rs` puts variables in, `read.rs` makes values of it, `netconf.rs` makes the
//! CNI configuration files, and `types.rs` says what comes out.
//!
//! Files of this kind were never validated before: unknown keys were ignored, and of a key that stood twice the last one
//! counted. They load here as they did, but each such key earns a warning with its line, or an error if the reader is strict.
//! What could not have worked is an error always.

pub mod choice;
mod compose;
mod interpolate;
mod netconf;
mod read;
mod types;

pub use compose::is_compose;
pub use types::{CniFile, DefaultNetwork, Driver, Labels, Subnet};

use std::path::Path;

use crate::config::Report;
use crate::config::yaml::{self, Duplicates};

/// The value of a variable for `${NAME}`, or none if it is not set.
pub type Variables<'v> = &'v dyn Fn(&str) -> Option<String>;

/// Reads the network drivers of a compose file. `file` is its name, for messages; `strict` makes errors of warnings.
///
/// # Errors
/// None as such: there are no drivers if the report holds an error.
#[must_use]
pub fn parse(file: &Path, octets: &[u8], variables: Variables<'_>, strict: bool) -> (Vec<Driver>, Report) {
    let mut report = Report::new(file);
    let mut drivers = match yaml::parse(octets, Duplicates::LastWins, &mut report) {
        Some(root) => compose::drivers(&root, variables, &mut report),
        None => Vec::new(),
    };
    if strict {
        report.harden();
    }
    report.sort();
    if report.has_errors() {
        drivers.clear();
    }
    (drivers, report)
}

#[cfg(test)]
mod tests;
