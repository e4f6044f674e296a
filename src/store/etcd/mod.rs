//! etcd: hosts join by themselves.
//!
//! One thread follows the store: it lists what there is (`records.rs`), sees to it that this host is in it with a block of its own
//! (`claim.rs`), and watches for changes from the revision of the list on; when the store has forgotten those, it lists again. What it
//! learns it publishes as [`Members`]. It talks to etcd's JSON gateway (`api.rs`) by an HTTP client of its own (`http.rs`, `tls.rs`).
//!
//! What containers of this host use it is told by the agent (`usage.rs`): from that follow their records (`endpoints.rs`), single addresses
//! that are in none of this host's blocks (`singles.rs`), and the next block when those are nearly full.
//!
//! Nothing waits for this thread. While the store is away, all stays as it said last, and the thread tries again every few seconds.

mod api;
mod claim;
mod endpoints;
mod http;
mod records;
mod session;
mod singles;
#[cfg(test)]
mod tests;
mod tls;
mod usage;

pub use api::ApiError;
pub(super) use api::Head;
pub use claim::ClaimError;
pub(super) use records::Entry;
pub use records::host_id;
pub use singles::Claimed;
pub use tls::{Credentials, CredentialsError};
pub use usage::{Refused, Tight, Usage};

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use ipnet::IpNet;

use super::{Endpoint, Members, Own};
use crate::config::{EtcdEndpoint, EtcdSettings};
use session::Follower;

/// Commands that wait for the thread: each comes from somebody who waits for its answer.
const MAX_COMMANDS: usize = 16;

/// How long somebody waits for a command to be carried out.
const COMMAND_PATIENCE: Duration = Duration::from_secs(4);

/// How long somebody waits who claims a single address: the owner of its block may have to be asked.
const CLAIM_PATIENCE: Duration = Duration::from_secs(6);

/// What this host says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Name and keys.
    pub own: Own,
    /// Where it can be reached, in the texts of `host.advertise`. Empty: where it is seen to talk to etcd from.
    pub addresses: Vec<String>,
    /// Its port of NAT-T: what other hosts call by default is 4500.
    pub natt_port: u16,
    /// `overlay.blocks`, if the configuration says them.
    pub blocks: Vec<IpNet>,
}

/// What the thread knows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The hosts; none before the store was read for the first time.
    pub members: Option<Arc<Members>>,
    /// The store's revision as of then.
    pub revision: i64,
    /// When `members` last became others.
    pub changed: Option<Instant>,
    /// Since when the store cannot be reached, and why.
    pub trouble: Option<(Instant, String)>,
    /// What else is to be said.
    pub warnings: Vec<String>,
    /// Addresses in this host's blocks that other hosts have or want.
    pub claims: Arc<Vec<Claimed>>,
    /// Whether the store was read since the start: before, what is missing in `claims` may be missing because it was not written
    /// down in time.
    pub live: bool,
}

/// A store that is being followed. When this is dropped, the thread ends at its next breath.
#[derive(Debug)]
pub struct Etcd {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    changed: Receiver<()>,
    endpoints: Vec<EtcdEndpoint>,
}

#[derive(Debug)]
struct Shared {
    snapshot: Mutex<Snapshot>,
    usage: Mutex<Option<Arc<Usage>>>,
    stop: AtomicBool,
}

/// What the thread is asked to do.
#[derive(Debug)]
enum Command {
    Profile(Profile),
    Remove { id: String, force: bool, answer: Sender<Result<Vec<IpNet>, String>> },
    Single { address: IpAddr, answer: Sender<Result<(), Refused>> },
    NextBlock { network: String, answer: Sender<Result<(), Refused>> },
    Lent { address: IpAddr, host: String, verdict: Result<(), String> },
    Endpoints { answer: Sender<BTreeMap<String, Vec<Endpoint>>> },
}

/// Asks the thread for something.
#[derive(Clone, Debug)]
pub struct Asker {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

impl Etcd {
    /// Begins to follow the store. What it said last is read from the state directory, and counts until it says more.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(
        settings: &EtcdSettings,
        credentials: &Credentials,
        profile: Profile,
        state_dir: PathBuf,
    ) -> io::Result<Self> {
        let tls = credentials.tls().map_err(io::Error::other)?;
        let api = api::Api::new(settings.endpoints.clone(), tls, credentials);
        let snapshot = Snapshot {
            members: None,
            revision: 0,
            changed: None,
            trouble: None,
            warnings: Vec::new(),
            claims: Arc::default(),
            live: false,
        };
        let (snapshot, usage) = (Mutex::new(snapshot), Mutex::new(None));
        let shared = Arc::new(Shared { snapshot, usage, stop: AtomicBool::new(false) });
        let (commands, mailbox) = bounded(MAX_COMMANDS);
        let (wake, changed) = bounded(1);
        let mut follower = Follower::new(api, settings, profile, state_dir, mailbox, Arc::clone(&shared), wake);
        follower.recall();
        thread::Builder::new().name("store".to_owned()).spawn(move || follower.follow())?;
        Ok(Self { shared, commands, changed, endpoints: settings.endpoints.clone() })
    }

    /// What is known.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        // Whoever panicked left what is no less true.
        self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has a message when there is something new.
    #[must_use]
    pub const fn changed(&self) -> &Receiver<()> {
        &self.changed
    }

    /// The servers.
    #[must_use]
    pub fn place(&self) -> String {
        self.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Says of this host what is true from now on.
    pub fn set_profile(&self, profile: Profile) {
        // A thread that does not take sixteen commands is in a worse trouble than an old address.
        let _ = self.commands.try_send(Command::Profile(profile));
    }

    /// For those who have something to ask.
    #[must_use]
    pub fn asker(&self) -> Asker {
        Asker { commands: self.commands.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Asker {
    /// Takes a host out of the store for good. Returns the blocks that are free again.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn remove(&self, id: &str, force: bool) -> Result<Vec<IpNet>, String> {
        let command = |answer| Command::Remove { id: id.to_owned(), force, answer };
        self.ask(command, COMMAND_PATIENCE).map_err(|silence| silence.why)?
    }

    /// What containers here use from now on: the store follows it, as soon as it can.
    pub fn set_usage(&self, usage: Usage) {
        *self.shared.usage.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(usage));
    }

    /// Claims a single address that stands in what was last said by [`Self::set_usage`], and waits until it is this host's.
    ///
    /// # Errors
    /// [`Refused`]; the claim goes on as long as the address is used.
    pub fn claim(&self, address: IpAddr) -> Result<(), Refused> {
        self.ask(|answer| Command::Single { address, answer }, CLAIM_PATIENCE)?
    }

    /// Claims the next block for a network whose blocks are nearly full, as was last said by [`Self::set_usage`].
    ///
    /// # Errors
    /// [`Refused`].
    pub fn next_block(&self, network: &str) -> Result<(), Refused> {
        let network = network.to_owned();
        self.ask(|answer| Command::NextBlock { network, answer }, COMMAND_PATIENCE)?
    }

    /// Says whether a host may have an address out of a block of ours: if so, it is written down here that nobody else gets it.
    pub fn lent(&self, claimed: &Claimed, verdict: Result<(), String>) {
        let (address, host) = (claimed.address, claimed.host.clone());
        // It is asked again at the next look.
        let _ = self.commands.try_send(Command::Lent { address, host, verdict });
    }

    /// Containers of other hosts, by host, as far as the store has said.
    ///
    /// # Errors
    /// [`Refused`] if the thread does not answer.
    pub fn endpoints(&self) -> Result<BTreeMap<String, Vec<Endpoint>>, Refused> {
        self.ask(|answer| Command::Endpoints { answer }, COMMAND_PATIENCE)
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command, patience: Duration) -> Result<T, Refused> {
        let (answer, answered) = bounded(1);
        self.commands.try_send(command(answer)).map_err(|_| Refused::later("the store's thread is busy or gone"))?;
        answered.recv_timeout(patience).map_err(|_| Refused::later("the store did not answer in time"))
    }
}
