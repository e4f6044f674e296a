//! Which addresses containers of this host may have: told to the journal, from which CNI plugins take them.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::ipam::{Ipam, IpamError, Namespaces, Source};

/// The network of `overlay`: the one that containers get which name none.
const MANAGED: &str = "managed";

/// Writes this host's blocks down, and takes back leases whose namespaces are gone, as after the host's restart. Plugins work
/// without us, so what fails here is a warning.
pub(super) fn tell(config: &Config, state_dir: &Path) -> Option<String> {
    match try_tell(config, state_dir) {
        Ok(()) => None,
        Err(error) => {
            let warning = format!("CNI plugins do not know this host's blocks: {error}");
            tracing::warn!("{warning}");
            Some(warning)
        }
    }
}

fn try_tell(config: &Config, state_dir: &Path) -> Result<(), IpamError> {
    let mut ipam = Ipam::open(state_dir)?;
    if ipam.set_network(MANAGED, &config.overlay.blocks, &config.overlay.addresses, Source::Agent)? {
        tracing::debug!("wrote this host's blocks down for CNI plugins");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default();
    for lease in ipam.release_gone(&Namespaces::look(), now)? {
        tracing::info!("network {}: took back what {} had: its network namespace is gone", lease.network, lease.owner);
    }
    Ok(())
}
