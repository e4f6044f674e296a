//! The far side: a thread that accepts, and one short-lived thread for each connection.
//!
//! Nobody who connects can hold the agent up: a connection has a deadline as a whole, there are few at a time, a request
//! line is bounded, and the agent's own threads only ever see whole, valid requests.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::remaining;
use super::protocol::{self, Fault, FaultKind, MAX_REQUEST, Request, SOCKET_NAME};
use crate::observe::ControlCounters;

/// Connections at a time. A person has one; a monitoring system a few.
const MAX_CONNECTIONS: usize = 16;

/// How long a connection may take to send its request, and again to fetch the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest socket path that the kernel takes (`sun_path` without its NUL), in octets.
const MAX_SOCKET_PATH: usize = 107;

/// Answers requests. Called on a connection's own thread: it may wait, within reason.
pub trait Handler: Send + Sync + 'static {
    /// The answer, with a `schema` field.
    ///
    /// # Errors
    /// A fault for the asker.
    fn handle(&self, request: Request) -> Result<Value, Fault>;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another agent answers there.
    #[error("an agent is already running with run directory {}", .0.display())]
    InUse(PathBuf),
    /// Somebody else may write there, and could put his own socket into its place.
    #[error("run directory {} {}: it must belong to the agent's user or root, and nobody else may write to it", .0.display(), .1)]
    Unsafe(PathBuf, String),
    /// The path does not fit into a socket address.
    #[error("run directory {} is too long: a socket's path has at most {MAX_SOCKET_PATH} octets", .0.display())]
    TooLong(PathBuf),
    /// The kernel refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
}

/// Counters of a server; any thread may read them.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    malformed: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    /// For the status.
    #[must_use]
    pub fn snapshot(&self) -> ControlCounters {
        ControlCounters {
            requests: self.requests.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// A control socket at work. Dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Opens the socket in `run_dir` (made with mode 0700 if it is not there) and begins to answer.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn start(run_dir: &Path, handler: Arc<dyn Handler>, counters: Arc<Counters>) -> Result<Self, ServerError> {
        prepare_run_dir(run_dir)?;
        let path = run_dir.join(SOCKET_NAME);
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ServerError::TooLong(run_dir.to_owned()));
        }
        let failed = |error| ServerError::Io(path.clone(), error);
        remove_stale(run_dir, &path)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        let own = listener.try_clone().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let acceptor = Acceptor { stop: Arc::clone(&stop), handler, counters, connections: Arc::default() };
        let thread = thread::Builder::new()
            .name("control-socket".to_owned())
            .spawn(move || acceptor.run(&listener))
            .map_err(failed)?;
        Ok(Self { path, stop, listener: own, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // accept() has no timeout; shutting the listener down ends it, also when somebody removed the socket's file.
        let _ = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        let _ = fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes the run directory, or checks that nobody else can change what is in it.
///
/// # Errors
/// [`ServerError::Unsafe`], or what the kernel said.
pub fn prepare_run_dir(run_dir: &Path) -> Result<(), ServerError> {
    let failed = |error| ServerError::Io(run_dir.to_owned(), error);
    if run_dir.join(SOCKET_NAME).as_os_str().len() > MAX_SOCKET_PATH {
        return Err(ServerError::TooLong(run_dir.to_owned()));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => ServerError::Unsafe(run_dir.to_owned(), "is no folder".to_owned()),
        _ => failed(error),
    })?;
    let metadata = fs::metadata(run_dir).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own && metadata.uid() != 0 {
        return Err(ServerError::Unsafe(run_dir.to_owned(), format!("belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(ServerError::Unsafe(run_dir.to_owned(), format!("has mode {:04o}", metadata.mode() & 0o7777)));
    }
    Ok(())
}

/// Removes a socket that nobody answers on: the agent that made it was killed.
fn remove_stale(run_dir: &Path, path: &Path) -> Result<(), ServerError> {
    match UnixStream::connect(path) {
        Ok(_) => Err(ServerError::InUse(run_dir.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| ServerError::Io(path.to_owned(), error))
        }
        Err(error) => Err(ServerError::Io(path.to_owned(), error)),
    }
}

struct Acceptor {
    stop: Arc<AtomicBool>,
    handler: Arc<dyn Handler>,
    counters: Arc<Counters>,
    connections: Arc<AtomicUsize>,
}

impl Acceptor {
    fn run(&self, listener: &UnixListener) {
        /// After an error of accept() itself (out of descriptors): long enough not to spin.
        const PAUSE: Duration = Duration::from_millis(100);
        loop {
            let accepted = listener.accept();
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// Gives the connection a thread, or turns it away.
    fn admit(&self, stream: UnixStream) {
        if self.connections.load(Ordering::Acquire) >= MAX_CONNECTIONS {
            self.turn_away(stream, Fault::new(FaultKind::Busy, "too many connections to the control socket: ask again"));
            return;
        }
        if !may_ask(&stream) {
            let message = "the control socket is for root and the agent's own user";
            self.turn_away(stream, Fault::new(FaultKind::NotPermitted, message));
            return;
        }
        let slot = Slot::take(&self.connections);
        let (handler, counters) = (Arc::clone(&self.handler), Arc::clone(&self.counters));
        // Without a thread the stream is dropped: the asker sees a hang-up, and the slot is free again.
        let _ = thread::Builder::new().name("control-conn".to_owned()).spawn(move || {
            let _slot = slot;
            serve(stream, &*handler, &counters);
        });
    }

    /// Says why, without ever waiting for the other side: a short line fits into a fresh socket's buffer.
    fn turn_away(&self, mut stream: UnixStream, fault: Fault) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        if stream.set_nonblocking(true).is_ok() {
            let _ = stream.write(&protocol::emit_response(Err(fault)));
        }
    }
}

/// One of the [`MAX_CONNECTIONS`]; given back when dropped, however the connection ends.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(connections))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether the kernel says that the other end is root or us.
fn may_ask(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|credentials| credentials.uid.is_root() || credentials.uid == rustix::process::geteuid())
}

/// One connection from its first octet to its last.
fn serve(mut stream: UnixStream, handler: &dyn Handler, counters: &Counters) {
    let request = match read_line(&mut stream, Instant::now() + CONNECTION_TIMEOUT) {
        Ok(line) => protocol::parse_request(&line),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(Fault::new(FaultKind::BadRequest, format!("bad request: {error}")))
        }
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            Err(Fault::new(FaultKind::BadRequest, "bad request: it did not come in time"))
        }
        // It went away.
        Err(_) => return,
    };
    let response = match request {
        Ok(request) => {
            counters.requests.fetch_add(1, Ordering::Relaxed);
            handler.handle(request)
        }
        Err(fault) => {
            counters.malformed.fetch_add(1, Ordering::Relaxed);
            Err(fault)
        }
    };
    let _ = write_line(&mut stream, &protocol::emit_response(response), Instant::now() + CONNECTION_TIMEOUT);
}

/// Octets up to the first line feed; what follows is ignored. A writer who ends without one has said it all, too.
fn read_line(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let len = match stream.read(&mut chunk) {
            Ok(0) if line.is_empty() => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Ok(line),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = chunk[..len].iter().position(|&octet| octet == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(len)]);
        if line.len() >= MAX_REQUEST {
            let message = format!("a request has at most {MAX_REQUEST} octets");
            return Err(io::Error::new(ErrorKind::InvalidData, message));
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// The timeout of a socket is per call, so a slow reader could stretch a write for ever: each call gets what is left.
fn write_line(stream: &mut UnixStream, mut line: &[u8], deadline: Instant) -> io::Result<()> {
    while !line.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => line = &line[len..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
