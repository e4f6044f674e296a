//! The near side: one request to the agent whose run directory this is.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{self, Fault, HostRemoved, RekeyWhat, Rekeyed, Request, SOCKET_NAME, Version};
use crate::observe::{Peers, Status};

/// How long a client waits by default: the agent answers within milliseconds unless the machine is in trouble.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no agent is running with run directory {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket is not for this user.
    #[error("no permission to talk to the agent at {}: be root, or the user that runs it", .0.display())]
    NotPermitted(PathBuf),
    /// Somebody listens and does not answer in time.
    #[error("the agent at {} did not answer within {} s", .0.display(), .1.as_secs_f32())]
    Timeout(PathBuf, Duration),
    /// The agent answered that it cannot.
    #[error("{0}")]
    Fault(Fault),
    /// What came back is no answer.
    #[error("the agent's answer makes no sense: {0}")]
    Protocol(String),
    /// The socket failed.
    #[error("talking to the agent at {}: {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
}

/// A way to ask one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    run_dir: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Names the agent by its run directory; connects only when something is asked.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self { socket: run_dir.join(SOCKET_NAME), run_dir: run_dir.to_owned(), timeout: TIMEOUT }
    }

    /// The same with another time limit for each request as a whole.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Everything about the agent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.ask(&Request::Status {})
    }

    /// All peers, or the one of that name.
    ///
    /// # Errors
    /// See [`ClientError`]; an unknown name is a fault of kind [`NotFound`](super::FaultKind::NotFound).
    pub fn peers(&self, name: Option<&str>) -> Result<Peers, ClientError> {
        self.ask(&Request::Peers { name: name.map(str::to_owned) })
    }

    /// Replaces an SA with a peer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn rekey(&self, peer: &str, what: RekeyWhat) -> Result<Rekeyed, ClientError> {
        self.ask(&Request::Rekey { peer: peer.to_owned(), what })
    }

    /// Takes a host out of the store.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn remove_host(&self, name: &str, force: bool) -> Result<HostRemoved, ClientError> {
        self.ask(&Request::HostRemove { name: name.to_owned(), force })
    }

    /// Which agent it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn version(&self) -> Result<Version, ClientError> {
        self.ask(&Request::Version {})
    }

    /// Asks and reads the answer as the type that belongs to the request.
    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        serde_json::from_value(self.ask_raw(request)?).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// Asks and hands the answer over as it came.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask_raw(&self, request: &Request) -> Result<Value, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let line = self.exchange(request, deadline).map_err(|error| self.explain(error))?;
        match protocol::parse_response(&line).map_err(ClientError::Protocol)? {
            Ok(value) => Ok(value),
            Err(fault) => Err(ClientError::Fault(fault)),
        }
    }

    fn exchange(&self, request: &Request, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut stream = connect(&self.socket, deadline)?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        // An agent that refuses us answers without reading: its answer is worth more than our write error.
        let written = stream.write_all(&line);
        let mut response = Vec::new();
        let mut chunk = [0; 8192];
        loop {
            stream.set_read_timeout(Some(remaining(deadline)?))?;
            match stream.read(&mut chunk) {
                Ok(0) if response.is_empty() => {
                    written?;
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "it hung up without an answer"));
                }
                Ok(0) => return Ok(response),
                Ok(len) => response.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if response.ends_with(b"\n") {
                return Ok(response);
            }
            if response.len() > protocol::MAX_RESPONSE {
                return Err(io::Error::new(ErrorKind::InvalidData, "its answer does not end"));
            }
        }
    }

    fn explain(&self, error: io::Error) -> ClientError {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                ClientError::NotRunning(self.run_dir.clone())
            }
            ErrorKind::PermissionDenied => ClientError::NotPermitted(self.socket.clone()),
            // A read timeout of a Unix socket is reported as EAGAIN.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => ClientError::Timeout(self.socket.clone(), self.timeout),
            _ => ClientError::Io(self.socket.clone(), error),
        }
    }
}

/// Connects. A full backlog makes the kernel say EAGAIN at once on a non-blocking socket and block for ever on a blocking
/// one, so we ask again until the deadline.
fn connect(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    use socket2::{Domain, SockAddr, Socket, Type};
    const PAUSE: Duration = Duration::from_millis(10);
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    socket.set_nonblocking(true)?;
    loop {
        match socket.connect(&address) {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(PAUSE.min(remaining(deadline)?));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// Time until the deadline; a timeout error once it has passed.
pub(super) fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}
