//! Exit codes: the whole list, and which failure has which.

use std::io::ErrorKind;
use std::process::ExitCode;

use crate::agent::files::HostKeyError;
use crate::control::{ClientError, FaultKind};

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Fine = 0,
    /// Something failed that has no code of its own.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// The agent runs, and some peer is not reached.
    Degraded = 3,
    /// No agent runs there.
    NotRunning = 4,
    /// The configuration, or what it names, cannot be used.
    BadConfig = 5,
    /// A right is missing.
    NotPermitted = 6,
    /// No answer in time.
    Timeout = 7,
    /// The thing asked for does not exist.
    NotFound = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::NotRunning(_) => Self::NotRunning,
            ClientError::NotPermitted(_) => Self::NotPermitted,
            ClientError::Timeout(..) => Self::Timeout,
            ClientError::Fault(fault) => match fault.kind {
                FaultKind::NotFound => Self::NotFound,
                FaultKind::NotPermitted => Self::NotPermitted,
                FaultKind::Timeout | FaultKind::Away => Self::Timeout,
                FaultKind::BadRequest | FaultKind::Busy | FaultKind::Failed => Self::Failed,
            },
            ClientError::Protocol(_) | ClientError::Io(..) => Self::Failed,
        }
    }
}

impl From<&HostKeyError> for Exit {
    fn from(error: &HostKeyError) -> Self {
        match error {
            HostKeyError::Missing(_) | HostKeyError::NoNext(_) | HostKeyError::Finished(_) => Self::NotFound,
            HostKeyError::Present(_) | HostKeyError::Unfinished(_) => Self::Failed,
            HostKeyError::Unsafe(_) | HostKeyError::Format(..) => Self::BadConfig,
            HostKeyError::Io(_, error) => error.kind().into(),
        }
    }
}

/// What a file system said.
impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::NotPermitted,
            _ => Self::Failed,
        }
    }
}
