//! Addresses for containers, out of this host's blocks, kept in one journal in the state directory.
//!
//! Who wants something opens the journal (`journal.rs`): it is locked, read, and replayed into a book (`book.rs`) of networks,
//! leases and addresses that rest. What is decided is written as a record (`record.rs`) and is on disk before the answer leaves. CNI
//! plugin, agent and `underpass ipam check` do this with the same code, in any number, at any time; neither the agent nor a store
//! need be there. A process that is killed at any point leaves the journal as it was before its last record, or after it.
//!
//! Two containers never have one address: a lease ends only by its release, or when its namespace is gone (`audit.rs`). A released
//! address rests for a minute before somebody else gets it, as neighbours and resolvers still know its last holder.

mod audit;
mod book;
mod journal;
mod obtain;
mod record;

pub use audit::{Finding, Namespaces};
pub use book::{Book, Counts, HOLD_DOWN, Network, Request, Wish};
pub use obtain::{Beyond, Refusal, obtain};
pub use record::{About, Lease, NamespaceId, Owner, Sandbox, Source};

/// The network of the agent's `overlay`: the one that containers get which name none.
pub use crate::model::MANAGED;
use crate::model::listed;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use ipnet::IpNet;

use journal::{Access, Journal};
use record::Record;

use crate::sys::file;

/// The journal in the state directory.
pub const JOURNAL: &str = "ipam.journal";

/// How long the journal may be in others' hands: each holds it for one write to the disk.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// From this size on, in octets, the journal is written anew when that halves it: thousands of records are read in a millisecond.
const COMPACT_OVER: u64 = 256 * 1024;

/// Seconds since 1970.
pub type Seconds = u64;

/// Why there is no address, or no journal.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// Nobody said which blocks are ours.
    #[error("network {network}: this host has no block of it; known here: {}", listed(.known))]
    NoBlocks {
        /// The network.
        network: String,
        /// Networks that have blocks.
        known: Vec<String>,
    },
    /// Everything is taken.
    #[error("network {network}: no free {} address in {}: {counts}", family(*.ipv6), listed(.blocks))]
    Full {
        /// The network.
        network: String,
        /// Of which family.
        ipv6: bool,
        /// Its blocks of this family.
        blocks: Vec<IpNet>,
        /// What became of them.
        counts: Counts,
    },
    /// A requested address is somebody's.
    #[error("network {network}: {address} is held by {holder} since {since} (seconds since 1970)")]
    Taken {
        /// The network.
        network: String,
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: Owner,
        /// Since when.
        since: Seconds,
    },
    /// A requested address is not ours to give.
    #[error("network {network}: {address} is {why}; this host gives out {}", listed(.blocks))]
    NotOurs {
        /// The network.
        network: String,
        /// The address.
        address: IpAddr,
        /// Why.
        why: &'static str,
        /// This host's blocks.
        blocks: Vec<IpNet>,
    },
    /// A requested address is in no block of ours, and must be claimed by who asks.
    #[error("network {network}: {address} is in no block of this host")]
    Beyond {
        /// The network.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// It was not to be had there either.
    #[error("network {network}: {address} is in no block of this host, and {refusal}")]
    Unclaimed {
        /// The network.
        network: String,
        /// The address.
        address: IpAddr,
        /// Why.
        refusal: Refusal,
    },
    /// Everything is taken, and there are no more blocks.
    #[error("{full}; {refusal}")]
    NoMore {
        /// That everything is taken.
        full: Box<IpamError>,
        /// Why there is no other block.
        refusal: Refusal,
    },
    /// There is a lease already.
    #[error("network {network}: {owner} has {} already: it must be released first", listed(.addresses))]
    Already {
        /// The network.
        network: String,
        /// Who asks.
        owner: Owner,
        /// What it has.
        addresses: Vec<IpAddr>,
    },
    /// Somebody holds the journal.
    #[error("{}: another process has held the lock for {} s", .0.display(), LOCK_PATIENCE.as_secs())]
    Locked(PathBuf),
    /// The journal was changed by something else than us.
    #[error("{}:{}: {}; `underpass ipam check --repair` keeps what can be read", .0.display(), .1, .2)]
    Damaged(PathBuf, usize, &'static str),
    /// The journal is of a later version.
    #[error("{}: written by a newer version of underpass", .0.display())]
    Newer(PathBuf),
    /// The file system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
}

const fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

/// The journal in our hands: while this lives, nobody else changes it.
#[derive(Debug)]
pub struct Ipam {
    journal: Journal,
    book: Book,
}

impl Ipam {
    /// Opens the journal to change it; makes it, and the state directory, if need be.
    ///
    /// # Errors
    /// [`IpamError`] when it is locked for too long, damaged, or not accessible.
    pub fn open(state_dir: &Path) -> Result<Self, IpamError> {
        Self::open_at(&state_dir.join(JOURNAL), COMPACT_OVER)
    }

    fn open_at(path: &Path, compact_over: u64) -> Result<Self, IpamError> {
        let (mut journal, contents) = Journal::open(path, Access::Change, compact_over)?;
        if let Some((line, what)) = contents.damage {
            return Err(IpamError::Damaged(path.to_owned(), line, what));
        }
        journal.cut_tail(contents.whole)?;
        Ok(Self { journal, book: Book::replay(contents.records) })
    }

    /// What the journal says now; nothing is changed, and no journal is an empty book.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn look(state_dir: &Path) -> Result<Book, IpamError> {
        let path = state_dir.join(JOURNAL);
        match Journal::open(&path, Access::Look, COMPACT_OVER) {
            Ok((_, journal::Contents { damage: Some((line, what)), .. })) => Err(IpamError::Damaged(path, line, what)),
            Ok((_, contents)) => Ok(Book::replay(contents.records)),
            Err(IpamError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(Book::default()),
            Err(error) => Err(error),
        }
    }

    /// What it says.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// Says which blocks of a network are this host's, and which of their addresses no container gets. Leases stay as they are.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn set_network(
        &mut self,
        name: &str,
        blocks: &[IpNet],
        reserved: &[IpAddr],
        source: Source,
    ) -> Result<bool, IpamError> {
        let wanted =
            Record::Network { network: name.to_owned(), blocks: blocks.to_vec(), reserved: reserved.to_vec(), source };
        if self.book.network(name).is_some_and(|known| known.is(blocks, reserved, source)) {
            return Ok(false);
        }
        self.write(wanted).map(|()| true)
    }

    /// Says of which subnets single addresses can be had that are in none of a network's blocks.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn set_beyond(&mut self, name: &str, subnets: &[IpNet]) -> Result<(), IpamError> {
        if self.book.network(name).map_or(&[][..], Network::beyond) == subnets {
            return Ok(());
        }
        self.write(Record::Beyond { network: name.to_owned(), subnets: subnets.to_vec() })
    }

    /// Gives somebody addresses: one of each family that the network has blocks of here, or those that it wishes.
    ///
    /// # Errors
    /// [`IpamError`]; then nothing was given.
    pub fn lease(&mut self, request: Request, now: Seconds) -> Result<Lease, IpamError> {
        let lease = self.book.choose(request, false, now)?;
        self.write(Record::Lease(lease.clone()))?;
        Ok(lease)
    }

    /// The same, also with addresses that are in none of the blocks: nobody may use them before they are claimed.
    fn lease_beyond(&mut self, request: Request, now: Seconds) -> Result<Lease, IpamError> {
        let lease = Lease { pending: true, ..self.book.choose(request, true, now)? };
        self.write(Record::Lease(lease.clone()))?;
        Ok(lease)
    }

    /// What a lease waited for is had. Returns it; none if it was taken back meanwhile.
    fn settle(&mut self, lease: Lease) -> Result<Option<Lease>, IpamError> {
        if self.book.lease_of(&lease.network, &lease.owner) != Some(&lease) {
            return Ok(None);
        }
        let lease = Lease { pending: false, ..lease };
        self.write(Record::Lease(lease.clone()))?;
        Ok(Some(lease))
    }

    /// As [`Self::lease`]. Where everything is taken, what containers left behind whose namespaces are gone is taken back first; that
    /// is looked for only then, as it takes milliseconds.
    ///
    /// # Errors
    /// As [`Self::lease`].
    fn lease_or_reclaim(&mut self, request: Request, now: Seconds) -> Result<Lease, IpamError> {
        match self.lease(request.clone(), now) {
            Err(IpamError::Full { .. }) => {
                self.release_gone(&Namespaces::look(), now)?;
                self.lease(request, now)
            }
            other => other,
        }
    }

    /// Gives another host one address out of our blocks, for good: it is nobody's here until it comes back by [`Self::release`].
    ///
    /// # Errors
    /// [`IpamError`]; then it was not given.
    pub fn lend(&mut self, host: &str, address: IpAddr, now: Seconds) -> Result<(), IpamError> {
        let owner = Owner::host(host, address);
        if self.book.leases().any(|lease| lease.owner == owner) {
            return Ok(());
        }
        self.write(Record::Lease(self.book.lend(host, address, now)?))
    }

    /// Takes back what somebody has, if it has something.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn release(&mut self, network: &str, owner: &Owner, now: Seconds) -> Result<Option<Lease>, IpamError> {
        let Some(lease) = self.book.lease_of(network, owner).cloned() else { return Ok(None) };
        self.write(Record::Release { network: network.to_owned(), owner: owner.clone(), at: now })?;
        Ok(Some(lease))
    }

    /// Takes back every lease whose namespace is gone.
    ///
    /// # Errors
    /// [`IpamError::Io`]; what was taken back before stays so.
    pub fn release_gone(&mut self, namespaces: &Namespaces, now: Seconds) -> Result<Vec<Lease>, IpamError> {
        let gone: Vec<Lease> = self.book.leases().filter(|lease| namespaces.is_gone(lease)).cloned().collect();
        for lease in &gone {
            self.release(&lease.network, &lease.owner, now)?;
        }
        Ok(gone)
    }

    /// First the disk, then the book.
    fn write(&mut self, record: Record) -> Result<(), IpamError> {
        self.journal.append(&record)?;
        self.book.apply(record);
        let book = &self.book;
        self.journal.compact(book.size(), &|| book.records())
    }
}

/// Holds the journal against itself, this host's blocks and the namespaces that there are, and looks for what killed processes left beside
/// it; with `repair`, mends what can be.
///
/// # Errors
/// [`IpamError`] when the journal or its folder cannot be read or written. Where nothing is, nothing is found.
pub fn check(state_dir: &Path, namespaces: &Namespaces, now: Seconds, repair: bool) -> Result<Vec<Finding>, IpamError> {
    let path = state_dir.join(JOURNAL);
    let mut drafts = match file::old_drafts(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| IpamError::Io(state_dir.to_owned(), error))?,
    };
    let mut findings: Vec<Finding> = Vec::new();
    if path.exists() {
        let access = if repair { Access::Change } else { Access::Look };
        let (mut journal, contents) = Journal::open(&path, access, COMPACT_OVER)?;
        drafts.extend(journal.left_draft());
        let damaged = contents.damage.is_some();
        findings.extend(contents.damage.map(|(line, what)| Finding::Damage { line, what }));
        findings.extend((contents.tail > 0).then_some(Finding::Tail { octets: contents.tail }));
        let book = Book::replay(contents.records);
        findings.extend(audit::findings(&book, namespaces));
        if repair && !findings.is_empty() {
            if damaged {
                journal.rewrite(&book.records())?;
            } else {
                journal.cut_tail(contents.whole)?;
            }
            Ipam { journal, book }.release_gone(namespaces, now)?;
        }
    }
    for draft in drafts {
        if repair {
            match fs::remove_file(&draft) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(IpamError::Io(draft, error)),
                _ => {}
            }
        }
        findings.push(Finding::Draft(draft));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests;
