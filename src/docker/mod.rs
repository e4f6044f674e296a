//! Containers of Docker that get addresses of the overlay by their labels.
//!
//! `docker run --label io.rancher.container.network=true …` is all that a user does. A thread of its own watches the daemon by its API
//! (`http.rs`, `api.rs`): the events as they come, and everything at the start and whenever the stream breaks (`watch.rs`). What a
//! container is now decides what is done (`table.rs`); how it is done stands in `hands.rs`: an address out of the journal, and an
//! interface by the module `attach`; `names.rs` says which name servers it asks.
//!
//! A container's address is its own from its first start to its removal: across restarts of the container, of Docker, and of the agent.
//! Only Docker's word that a container does not exist any more takes an address back.

mod api;
mod hands;
mod http;
mod names;
mod plan;
mod table;
mod watch;

use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

pub use table::{State, View};

use crate::ipam::Beyond;
use crate::network::Spec;
use hands::Overlay;
use http::Stop;
use table::Hands;
use watch::Watch;

/// What stands for a CNI network's name in the leases of containers that got their addresses by label: no runtime's plugin deletes
/// these.
pub const RUNTIME: &str = "docker";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Docker's socket.
    pub socket: PathBuf,
    /// The folder of the journal of addresses.
    pub state_dir: PathBuf,
    /// The tunnel's device.
    pub tun: String,
}

/// This host's networks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// All of them.
    pub networks: Vec<KnownNetwork>,
    /// The name of the default one.
    pub managed: Option<String>,
}

/// A network of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownNetwork {
    /// What its driver says.
    pub spec: Spec,
    /// By which name the journal of addresses knows it; none if its addresses do not come from there.
    pub pool: Option<String>,
    /// Whether it is to be there.
    pub is_wanted: bool,
}

/// Says which networks there are now: the same value as long as they are the same, so that asking costs nothing.
pub type Source = Box<dyn FnMut() -> Result<Arc<Known>, String> + Send>;

/// Whether Docker is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Link {
    /// It was not asked yet.
    Connecting,
    /// We hear its events.
    Watching,
    /// It does not answer, for this reason. What runs goes on.
    Away(String),
    /// The watch itself has failed: a bug.
    Broken,
}

/// What is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Of the daemon.
    pub link: Link,
    /// Of the containers that ask for an address, by id.
    pub containers: Vec<View>,
}

/// The thread that watches. Dropping it ends the thread; containers keep what they have.
#[derive(Debug)]
pub struct Watcher {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Default for Report {
    fn default() -> Self {
        Self { link: Link::Connecting, containers: Vec::new() }
    }
}

impl Watcher {
    /// Starts to watch the containers of one daemon; `beyond` gets what this host's blocks do not have. What is known of them stands in `report` from then on.
    ///
    /// # Errors
    /// Without a thread.
    pub fn start(
        settings: Settings,
        source: Source,
        beyond: Box<dyn Beyond + Send>,
        report: &Arc<Mutex<Report>>,
    ) -> io::Result<Self> {
        let socket = settings.socket.clone();
        Self::spawn(&socket, Overlay::new(settings, source, beyond), report)
    }

    /// Starts the thread. What it knows stands in `report` from then on.
    fn spawn(socket: &Path, hands: impl Hands + Send + 'static, report: &Arc<Mutex<Report>>) -> io::Result<Self> {
        let (stop, given) = Stop::new()?;
        let report = Arc::clone(report);
        let mut watch = Watch::new(socket.to_owned(), hands, Arc::clone(&report));
        let work = move || {
            // Containers that run must not pay for a bug here, nor must the agent.
            if catch_unwind(AssertUnwindSafe(|| watch.run(&stop))).is_err() {
                tracing::error!("Docker: the thread that watches it has failed; restart the agent to watch again");
                report.lock().unwrap_or_else(PoisonError::into_inner).link = Link::Broken;
            }
        };
        let thread = thread::Builder::new().name("docker".to_owned()).spawn(work)?;
        Ok(Self { stop: Some(given), thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
