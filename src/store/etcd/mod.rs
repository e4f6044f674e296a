//! etcd: hosts join by themselves.
//!
//! One thread follows the store: it lists what there is (`records.rs`), sees to it that this host is in it with a block of its own
//! (`claim.rs`), and watches for changes from the revision of the list on; when the store has forgotten those, it lists again. What it
//! learns it publishes as [`Members`]. It talks to etcd's JSON gateway (`api.rs`) by an HTTP client of its own (`http.rs`, `tls.rs`).
//!
//! Nothing waits for this thread. While the store is away, all stays as it said last, and the thread tries again every few seconds.

mod api;
mod claim;
mod http;
mod records;
mod session;
#[cfg(test)]
mod tests;
mod tls;

pub use api::ApiError;
pub(super) use api::Head;
pub use claim::ClaimError;
pub(super) use records::Entry;
pub use records::host_id;
pub use tls::{Credentials, CredentialsError};

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use ipnet::IpNet;

use super::{Members, Own};
use crate::config::{EtcdEndpoint, EtcdSettings};
use session::Follower;

/// Commands that wait for the thread: each comes from somebody who waits for its answer.
const MAX_COMMANDS: usize = 16;

/// How long somebody waits for a command to be carried out.
const COMMAND_PATIENCE: Duration = Duration::from_secs(4);

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
    stop: AtomicBool,
}

/// What the thread is asked to do.
#[derive(Debug)]
enum Command {
    Profile(Profile),
    Remove { id: String, force: bool, answer: Sender<Result<Vec<IpNet>, String>> },
}

/// Asks the thread for something.
#[derive(Clone, Debug)]
pub struct Asker(Sender<Command>);

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
        let snapshot = Snapshot { members: None, revision: 0, changed: None, trouble: None, warnings: Vec::new() };
        let shared = Arc::new(Shared { snapshot: Mutex::new(snapshot), stop: AtomicBool::new(false) });
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
        Asker(self.commands.clone())
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
        let (answer, answered) = bounded(1);
        let command = Command::Remove { id: id.to_owned(), force, answer };
        self.0.try_send(command).map_err(|_| "the store's thread is busy or gone".to_owned())?;
        answered.recv_timeout(COMMAND_PATIENCE).map_err(|_| "the store did not answer in time".to_owned())?
    }
}
