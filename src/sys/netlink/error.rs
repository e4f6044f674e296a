//! What can go wrong between us and the kernel's tables, in the caller's words.

use std::io;

use super::socket::Fault;

/// A request to the kernel that failed. Each variant but the first names the `action` that was tried.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket: the kernel lacks this netlink protocol, or we may not use it.
    #[error("open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel understood the request and said no.
    #[error("{action}: {reason}{}", hint_suffix(hint.as_deref()))]
    Refused {
        /// What was tried, as an imperative clause.
        action: String,
        /// The kernel's errno.
        reason: io::Error,
        /// The kernel's own explanation, where it gave one.
        hint: Option<String>,
    },
    /// The request or the answer got lost on its way.
    #[error("{action}: netlink socket: {reason}")]
    Transport {
        /// What was tried, as an imperative clause.
        action: String,
        /// Why the socket failed.
        reason: io::Error,
    },
    /// The kernel answered in a form that we cannot read.
    #[error("{action}: the kernel's answer does not parse: {what}")]
    Malformed {
        /// What was tried, as an imperative clause.
        action: String,
        /// Where the parser stopped.
        what: String,
    },
    /// The request names an interface that is not there.
    #[error("{action}: there is no network interface {link}")]
    NoSuchLink {
        /// What was tried, as an imperative clause.
        action: String,
        /// The name that was looked for.
        link: String,
    },
}

impl NetlinkError {
    /// The system's error number, if the failure has one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(reason) | Self::Refused { reason, .. } | Self::Transport { reason, .. } => reason.raw_os_error(),
            Self::NoSuchLink { .. } => Some(libc::ENODEV),
            Self::Malformed { .. } => None,
        }
    }

    /// What was to be made exists already.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// What was to be changed or removed does not exist: no such interface, address, route or table.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL))
    }

    /// We lack `CAP_NET_ADMIN` in this network namespace.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }
}

/// The result of a removal: what is not there need not be removed.
///
/// # Errors
/// Every other failure.
pub fn absent_is_fine(removed: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    removed.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
}

fn hint_suffix(hint: Option<&str>) -> String {
    hint.map(|hint| format!(" (the kernel says: {hint})")).unwrap_or_default()
}

/// Adds to a bare fault what was being tried.
pub(crate) trait Context<T> {
    /// The same result, its error naming the action. The words are made only if there is an error.
    fn context(self, action: impl FnOnce() -> String) -> Result<T, NetlinkError>;
}

impl<T> Context<T> for Result<T, Fault> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T, NetlinkError> {
        self.map_err(|fault| fault.during(action()))
    }
}

impl Fault {
    /// The fault as an error that names the action.
    pub(crate) fn during(self, action: String) -> NetlinkError {
        match self {
            Fault::Refused { reason, hint } => NetlinkError::Refused { action, reason, hint },
            Fault::Transport(reason) => NetlinkError::Transport { action, reason },
            Fault::Malformed(what) => NetlinkError::Malformed { action, what },
        }
    }
}
