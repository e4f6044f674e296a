//! The host agent: what the configuration wants, made true on this host, and kept so.
//!
//! [`run`] is its life in order: what could stand in the way is asked first (`preflight.rs`), the configuration becomes what the
//! engine and the node take (`desired.rs`), with the hosts of a store joined in (`membership.rs`, `mesh.rs`, `wish.rs`), the engine runs,
//! the guard stands before the first address does (`plumbing.rs`), the control socket answers (`answers.rs`), container runtimes are told
//! of networks and blocks (`drivers/`), the store is told what they use (`census.rs`, `delivery.rs`), containers that run are kept as they
//! should be (`containers.rs`, `passage.rs`, `barrier.rs`, `neighbours.rs`), the kernel is asked for path MTUs now and then (`paths.rs`) and watched (`watch.rs`, `places.rs`),
//! and signals decide
//! (`life.rs`): SIGHUP reads the configuration again, and changes what can be changed while packets flow; SIGTERM takes
//! everything back in the opposite order.

mod answers;
mod barrier;
mod census;
mod containers;
mod delivery;
mod desired;
mod docker;
pub mod drivers;
pub mod files;
mod life;
mod membership;
mod mesh;
mod neighbours;
mod passage;
mod paths;
mod places;
mod plumbing;
mod preflight;
mod random;
pub mod rotation;
mod watch;
mod wish;

use std::io;
use std::path::PathBuf;

pub use life::run;

use crate::config::Report;
use crate::control::ServerError;
use crate::engine::{EngineError, Unreachable};
use crate::sys::caps::TunDeviceError;
use crate::sys::netlink::NetlinkError;
use crate::sys::nft::GuardError;
use files::HostKeyError;
use random::OsRng;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration.
    pub config: PathBuf,
    /// Folder of the control socket and the lock.
    pub run_dir: PathBuf,
    /// Folder of the host's key.
    pub state_dir: PathBuf,
}

/// Why an agent did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration cannot be read.
    #[error("{}: {}", .0.display(), .1)]
    Unreadable(PathBuf, io::Error),
    /// The configuration cannot be used; each message stands on its own line.
    #[error("{0}")]
    Config(Report),
    /// The host's key cannot be used.
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
    /// Another agent has this run directory.
    #[error("an agent is already running with run directory {}{}", .0.display(), .1)]
    AlreadyRunning(PathBuf, String),
    /// The network may not be changed by us.
    #[error("this needs root: no CAP_NET_ADMIN in this network namespace")]
    NotAdmin,
    /// No TUN device.
    #[error(transparent)]
    TunDevice(#[from] TunDeviceError),
    /// Device, sockets or threads.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Links, addresses, routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The guard.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The control socket or its folder.
    #[error(transparent)]
    Control(#[from] ServerError),
    /// The control thread is gone or stuck.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// Signals cannot be received.
    #[error("receiving signals: {0}")]
    Signals(io::Error),
    /// A thread of the engine ended.
    #[error("{0}")]
    Failed(String),
}

/// What kind of failure it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureKind {
    /// The configuration cannot work here.
    BadConfig,
    /// A right is missing.
    NotPermitted,
    /// Anything else.
    Other,
}

impl AgentError {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        let denied = |error: &io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => FailureKind::NotPermitted,
            _ => FailureKind::Other,
        };
        match self {
            Self::Unreadable(_, error) if error.kind() != io::ErrorKind::PermissionDenied => FailureKind::BadConfig,
            Self::Unreadable(_, error) | Self::HostKey(HostKeyError::Io(_, error)) => denied(error),
            Self::Control(ServerError::Io(_, error)) => denied(error),
            Self::NotAdmin | Self::TunDevice(TunDeviceError::Denied) => FailureKind::NotPermitted,
            Self::Engine(error) if error.is_permission() => FailureKind::NotPermitted,
            Self::Netlink(error) | Self::Guard(GuardError::Netlink(error)) if error.is_denied() => FailureKind::NotPermitted,
            Self::Config(_)
            | Self::HostKey(_)
            | Self::AlreadyRunning(..)
            | Self::TunDevice(_)
            | Self::Engine(EngineError::Tun(_) | EngineError::Udp(_))
            | Self::Control(_)
            | Self::Guard(GuardError::NoNfTables { .. } | GuardError::BadName(..)) => FailureKind::BadConfig,
            Self::Netlink(error) if error.is_present() => FailureKind::BadConfig,
            Self::Engine(_)
            | Self::Netlink(_)
            | Self::Guard(_)
            | Self::Unreachable(_)
            | Self::Signals(_)
            | Self::Failed(_) => FailureKind::Other,
        }
    }
}
