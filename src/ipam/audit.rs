//! The book against the world: leases whose namespace is gone, and leases that this host should not have given.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{Book, Lease, NamespaceId, Sandbox};

/// The network namespaces of this system, as far as we see them.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    boot: String,
    seen_from: Option<u64>,
    inhabited: HashSet<NamespaceId>,
}

impl Namespaces {
    /// The namespaces that some process lives in.
    #[must_use]
    pub fn look() -> Self {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbered = processes.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
        let inhabited = numbered.filter_map(|entry| id(&entry.path().join("ns/net").to_string_lossy())).collect();
        Self { boot: boot(), seen_from: seen_from(), inhabited }
    }

    /// Whether nothing can use the lease's addresses any more: the namespace was of an earlier boot, or its path does not lead to it
    /// and no process lives in it. What could not be looked at then is gone when its path is. What was seen from another process
    /// namespace is not ours to judge.
    #[must_use]
    pub fn is_gone(&self, lease: &Lease) -> bool {
        let Sandbox { netns, netns_id, boot, seen_from } = &lease.sandbox;
        if !boot.is_empty() && !self.boot.is_empty() && *boot != self.boot {
            return true;
        }
        if seen_from.is_none() || *seen_from != self.seen_from {
            return false;
        }
        let found = id(netns);
        match netns_id {
            Some(id) => found != Some(*id) && !self.inhabited.contains(id),
            None => found.is_none(),
        }
    }
}

impl Sandbox {
    /// What a path leads to now.
    #[must_use]
    pub fn look(netns: &str) -> Self {
        Self { netns: netns.to_owned(), netns_id: id(netns), boot: boot(), seen_from: seen_from() }
    }
}

fn id(path: &str) -> Option<NamespaceId> {
    let metadata = fs::metadata(path).ok()?;
    Some(NamespaceId { dev: metadata.dev(), ino: metadata.ino() })
}

/// What names this boot of the system.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Our process namespace.
fn seen_from() -> Option<u64> {
    id("/proc/self/ns/pid").map(|id| id.ino)
}

/// Something that should not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A process was killed while it wrote, and never answered.
    Tail {
        /// Octets behind the last whole record.
        octets: u64,
    },
    /// A record that nobody wrote like that: what it said is lost.
    Damage {
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A file beside the journal that was to be another one: a process was killed while it wrote it.
    Draft(PathBuf),
    /// A lease whose namespace is gone.
    Gone(Lease),
    /// A lease of an address that is none of this host's any more.
    Outside(Lease, IpAddr),
    /// A lease of an address that no container should have.
    Reserved(Lease, IpAddr),
}

impl Finding {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tail { .. } => "unfinished-record",
            Self::Damage { .. } => "damaged-record",
            Self::Draft(_) => "unfinished-file",
            Self::Gone(_) => "namespace-gone",
            Self::Outside(..) => "outside-of-blocks",
            Self::Reserved(..) => "reserved",
        }
    }

    /// Whether `check` with `repair` mends it. The rest ends when the container does.
    #[must_use]
    pub const fn is_repairable(&self) -> bool {
        matches!(self, Self::Tail { .. } | Self::Damage { .. } | Self::Draft(_) | Self::Gone(_))
    }

    /// The lease that it is about.
    #[must_use]
    pub const fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Gone(lease) | Self::Outside(lease, _) | Self::Reserved(lease, _) => Some(lease),
            Self::Tail { .. } | Self::Damage { .. } | Self::Draft(_) => None,
        }
    }
}

/// What is wrong with the leases.
pub(super) fn findings(book: &Book, namespaces: &Namespaces) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, network) in book.networks() {
        for lease in network.leases() {
            if namespaces.is_gone(lease) {
                findings.push(Finding::Gone(lease.clone()));
                continue;
            }
            for address in &lease.addresses {
                let is_beyond = network.beyond().iter().any(|subnet| subnet.contains(address));
                if !network.is_own(*address) && !is_beyond {
                    findings.push(Finding::Outside(lease.clone(), *address));
                } else if network.reserved().contains(address) {
                    findings.push(Finding::Reserved(lease.clone(), *address));
                }
            }
        }
    }
    findings
}
