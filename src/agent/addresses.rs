//! Which addresses containers of this host may have: told to the journal, from which CNI plugins take them.

use std::path::Path;

use crate::config::Config;
use crate::ipam::{Ipam, IpamError, MANAGED, Namespaces, Source};
use crate::sys::clock::wall_clock;

/// How the warning begins that CNI plugins were not told.
pub(super) const UNTOLD: &str = "CNI plugins do not know this host's blocks";

/// Writes this host's blocks down, and takes back leases whose namespaces are gone, as after the host's restart. Plugins work
/// without us, so what fails here is a warning.
pub(super) fn tell(config: &Config, state_dir: &Path) -> Option<String> {
    match try_tell(config, state_dir) {
        Ok(()) => None,
        Err(error) => {
            let warning = format!("{UNTOLD}: {error}");
            tracing::warn!("{warning}");
            Some(warning)
        }
    }
}

fn try_tell(config: &Config, state_dir: &Path) -> Result<(), IpamError> {
    let mut ipam = Ipam::open(state_dir)?;
    let (blocks, addresses) = (&config.overlay.blocks, &config.overlay.addresses);
    // A store that was never read says nothing about the blocks that were ours before.
    if !blocks.is_empty() && ipam.set_network(MANAGED, blocks, addresses, Source::Agent)? {
        tracing::debug!("wrote this host's blocks down for CNI plugins");
    }
    for lease in ipam.release_gone(&Namespaces::look(), wall_clock())? {
        tracing::info!("network {}: took back what {} had: its network namespace is gone", lease.network, lease.owner);
    }
    Ok(())
}
