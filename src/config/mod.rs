//! The agent's configuration as data, and what is wrong with it as messages with places.
//!
//! Text becomes values in four steps, one file each: octets to a tree of YAML nodes that know their lines (`yaml.rs`); nodes
//! to sections whose unknown keys are refused with "did you mean" (`section.rs`); single texts to durations, prefixes and
//! addresses (`scalar.rs`); sections to a [`Config`] (`read.rs`). Then the configuration is held against itself
//! (`check.rs`): what cannot work is refused here, not found out at run time. Nothing stops at the first error: all messages
//! are collected, and shown in the order of the file.
//!
//! Key files are named here and read by whoever may do IO; [`check_key_file`] says whether what it found can be used.

#[cfg(feature = "x509")]
mod certificates;
pub(crate) mod check;
mod docker;
mod drivers;
pub(crate) mod keys;
mod message;
pub(crate) mod read;
pub(crate) mod scalar;
pub(crate) mod section;
mod store;
mod types;
pub(crate) mod yaml;

pub use check::{default_addresses, doubtful, holds_outer};
pub use docker::Docker;
pub use drivers::{CNI_BIN_DIR, CNI_CACHE_DIR, CNI_CONF_DIR, Cni, DriverBlock, DriverSource};
pub use keys::{KeyFile, check_key_file, resolve_keys};
pub use message::{Message, Report, Severity};
pub use section::Placed;
pub use types::{
    Advertise, Backend, CertificateFiles, Config, EtcdEndpoint, EtcdSettings, Host, Ipsec, Listen, Mesh, Mtu, Overlay, Peer,
    PeerAuth, PeerRemote, Queues, Store, Tun,
};

use std::path::Path;

/// Where the agent keeps what must survive, unless something else is said.
pub const STATE_DIR: &str = "/var/lib/underpass";

/// Folder of the control socket.
pub const RUN_DIR: &str = "/run/underpass";

/// Largest configuration file in octets: tens of thousands of peers fit, a mistaken file name does not fill the memory.
pub const MAX_FILE: usize = 1024 * 1024;

/// What a configuration takes from around it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The machine's hostname: the default of `host.name`.
    pub hostname: Option<String>,
    /// The environment's `CATTLE_AGENT_IP`, which overrides `host.advertise`.
    pub cattle_agent_ip: Option<String>,
}

/// Reads a configuration. `file` is its name, for messages and as the origin of relative paths.
///
/// # Errors
/// None as such: the configuration is missing exactly if the report holds an error.
#[must_use]
pub fn parse(file: &Path, octets: &[u8], surroundings: &Surroundings) -> (Option<Config>, Report) {
    let mut report = Report::new(file);
    let config = yaml::parse(octets, yaml::Duplicates::Refused, &mut report)
        .and_then(|root| read::config(&root, file, surroundings, &mut report));
    report.sort();
    (config.filter(|_| !report.has_errors()), report)
}

#[cfg(test)]
mod tests;
