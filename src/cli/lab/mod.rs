//! Two hosts on this machine, for the commands that show or measure something between them.
//!
//! The hosts are network namespaces joined by a veth pair, with an agent on each (`hosts`); `ping` sends between them. Nothing of
//! it needs another program. However it ends, nothing is left behind.

pub mod hosts;
pub mod ping;

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Exit;
use crate::sys::caps;
use crate::sys::netlink::NetlinkError;
use crate::sys::netns::{Namespace, NamespaceError, enter_user_namespace};

/// The running program, also if its file has been replaced meanwhile.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// From where to where.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// The sender's namespace.
    pub from: &'a Namespace,
    /// The sender's address.
    pub source: Ipv4Addr,
    /// The receiver's namespace.
    pub to: &'a Namespace,
    /// The receiver's address.
    pub destination: Ipv4Addr,
}

/// Why it did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A right is missing.
    #[error("{0}")]
    NotPermitted(String),
    /// Something did not happen in time.
    #[error("{0}")]
    Timeout(String),
    /// A signal ended it.
    #[error("interrupted")]
    Interrupted,
    /// Anything else, including something that was seen and must not be.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// Something failed.
    pub fn failed(action: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Failed(format!("{action}: {reason}"))
    }

    /// What the system said while this was done.
    pub fn io(action: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Interrupted => Self::Interrupted,
            io::ErrorKind::TimedOut => Self::Timeout(format!("{action}: {error}")),
            io::ErrorKind::PermissionDenied => Self::NotPermitted(format!("{action}: {error}")),
            _ => Self::failed(action, error),
        }
    }

    /// The command's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Failed(_) | Self::Interrupted => Exit::Failed,
            Self::NotPermitted(_) => Exit::NotPermitted,
            Self::Timeout(_) => Exit::Timeout,
        }
    }
}

impl From<NamespaceError> for Failure {
    fn from(error: NamespaceError) -> Self {
        match error {
            NamespaceError::Denied | NamespaceError::User { .. } => Self::NotPermitted(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        if error.is_denied() { Self::NotPermitted(error.to_string()) } else { Self::Failed(error.to_string()) }
    }
}

/// Whether a signal has asked us to stop.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Nothing has.
    pub fn never() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// Asks to stop.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// `Interrupted` once it has been asked to stop.
    pub fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

/// Interrupts are noted, not obeyed at once, as long as this value lives: there is something to clean up.
#[derive(Debug)]
pub struct Interrupts {
    /// Whether one came.
    pub stop: Stop,
    signals: Vec<SigId>,
}

impl Interrupts {
    /// Notes SIGINT, SIGTERM and SIGHUP from now on.
    pub fn note() -> Result<Self, Failure> {
        let stop = Stop::never();
        let register = |signal| signal_hook::flag::register(signal, Arc::clone(&stop.0));
        let signals: Result<_, _> = [SIGINT, SIGTERM, SIGHUP].into_iter().map(register).collect();
        let signals = signals.map_err(|error| Failure::failed("listen for signals", error))?;
        Ok(Self { stop, signals })
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.signals.drain(..).for_each(|signal| {
            signal_hook::low_level::unregister(signal);
        });
    }
}

/// What is said when a user namespace stands in for root.
pub const NOT_ROOT: &str =
    "Not root: working in a user namespace, where this process has every right and gains none outside.";

/// Whether hosts may be made here. Without root, a user namespace stands in, and true is returned; this process must not have
/// threads yet.
pub fn enter() -> Result<bool, Failure> {
    caps::check_tun_device().map_err(|error| Failure::NotPermitted(error.to_string()))?;
    let is_stranger = !caps::may_make_namespaces();
    if is_stranger {
        enter_user_namespace()?;
    }
    Ok(is_stranger)
}
