//! An address for a container, from wherever it is to be had: this host's blocks first, and if they do not have it, by whoever can ask
//! the store for more.
//!
//! What is in none of our blocks is written down as a lease first and claimed then, so the claim lives exactly as long as the lease: whoever
//! is killed in between leaves a lease that says that it is pending, and ends with its namespace or when its owner asks anew; and the claim
//! ends with the lease.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::{Ipam, IpamError, Lease, Request, Seconds};

/// Who can get what this host's blocks do not have.
pub trait Beyond {
    /// Claims an address of a network that is in none of this host's blocks, and for which a lease stands in the journal.
    ///
    /// # Errors
    /// Why it is not to be had.
    fn claim(&self, network: &str, address: IpAddr) -> Result<(), Refusal>;

    /// Gets another block of a network, and has written it into the journal when this returns.
    ///
    /// # Errors
    /// Why there is none.
    fn next_block(&self, network: &str) -> Result<(), Refusal>;
}

impl<B: Beyond + ?Sized> Beyond for Arc<B> {
    fn claim(&self, network: &str, address: IpAddr) -> Result<(), Refusal> {
        (**self).claim(network, address)
    }

    fn next_block(&self, network: &str) -> Result<(), Refusal> {
        (**self).next_block(network)
    }
}

/// Why something is not to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The reason, which goes on after a comma.
    pub why: String,
    /// Whether it may be to be had later.
    pub later: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.why, if self.later { ": try again later" } else { "" })
    }
}

/// Leases what is asked for. The journal is not held while somebody else is asked.
///
/// # Errors
/// [`IpamError`]; then nothing was given.
pub fn obtain(
    mut ipam: Ipam,
    state_dir: &Path,
    request: &Request,
    beyond: &dyn Beyond,
    now: Seconds,
) -> Result<Lease, IpamError> {
    let full = match ipam.lease_or_reclaim(request.clone(), now) {
        Err(IpamError::Beyond { .. }) => {
            let lease = ipam.lease_beyond(request.clone(), now)?;
            let network = ipam.book().network(&lease.network);
            let is_beyond = |address: &&IpAddr| network.is_some_and(|network| !network.is_own(**address));
            let singles: Vec<IpAddr> = lease.addresses.iter().filter(is_beyond).copied().collect();
            drop(ipam);
            return claim(state_dir, lease, &singles, beyond, now);
        }
        // A store has blocks of IPv4 only.
        Err(full @ IpamError::Full { ipv6: false, .. }) => full,
        other => return other,
    };
    let has_store = ipam.book().network(&request.network).is_some_and(|network| !network.beyond().is_empty());
    drop(ipam);
    if !has_store {
        return Err(full);
    }
    match beyond.next_block(&request.network) {
        Ok(()) => Ipam::open(state_dir)?.lease(request.clone(), now),
        Err(refusal) => Err(IpamError::NoMore { full: Box::new(full), refusal }),
    }
}

fn claim(state_dir: &Path, lease: Lease, singles: &[IpAddr], beyond: &dyn Beyond, now: Seconds) -> Result<Lease, IpamError> {
    for &address in singles {
        if let Err(refusal) = beyond.claim(&lease.network, address) {
            Ipam::open(state_dir)?.release(&lease.network, &lease.owner, now)?;
            return Err(IpamError::Unclaimed { network: lease.network, address, refusal });
        }
    }
    let (network, address) = (lease.network.clone(), lease.addresses[0]);
    let gone = || Refusal { why: "it was given back while it was asked for".to_owned(), later: true };
    let settled = Ipam::open(state_dir)?.settle(lease)?;
    settled.ok_or_else(|| IpamError::Unclaimed { network, address, refusal: gone() })
}
