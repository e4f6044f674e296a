//! HTTP/1.1 over a Unix socket, as far as a client of Docker's API needs it: GET, one request per connection, bodies by length, by
//! chunks or to the end of the stream.
//!
//! Every wait is also a wait for the order to stop: an answer that never ends, such as the stream of events, holds nobody up.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};

/// Fields in the head of an answer: Docker sends nine.
const MAX_FIELDS: usize = 64;

/// Octets of the head of an answer.
const MAX_HEAD: usize = 32 * 1024;

/// Octets in front of a chunk: its size, and extensions that nobody uses.
const MAX_CHUNK_HEAD: usize = 256;

/// How long the daemon may take for its answer to a question, or the head of one that goes on. It answers within milliseconds unless
/// the machine is in trouble, or it is busy with that container: while it starts one it says nothing of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// We were told to stop.
    #[error("stopped")]
    Stopped,
    /// Nobody listens.
    #[error("{0}")]
    Connect(#[source] io::Error),
    /// The connection failed.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// It took too long.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
    /// The other side ended the connection in the middle of an answer.
    #[error("the connection ended in the middle of an answer")]
    CutOff,
    /// What came is not HTTP.
    #[error("the answer is not HTTP: {0}")]
    Malformed(String),
    /// More than anybody should say.
    #[error("the answer has more than {0} octets")]
    TooLong(usize),
}

/// The order to stop: readable once its other end is dropped.
#[derive(Debug)]
pub(super) struct Stop(UnixStream);

impl Stop {
    /// The order, and what gives it by being dropped.
    pub(super) fn new() -> io::Result<(Self, UnixStream)> {
        let (given, heard) = UnixStream::pair()?;
        Ok((Self(heard), given))
    }

    /// Waits so long, or until the order comes.
    pub(super) fn wait(&self, until: Instant) -> Result<(), HttpError> {
        match wait(None, self, Some(until))? {
            Heard::Late => Ok(()),
            Heard::Ready => Err(HttpError::Stopped),
        }
    }
}

enum Heard {
    Ready,
    Late,
}

/// Waits until the stream can be read (or, without one, the order to stop is there).
fn wait(stream: Option<(&UnixStream, PollFlags)>, stop: &Stop, until: Option<Instant>) -> Result<Heard, HttpError> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut both = vec![PollFd::from_borrowed_fd(stop.0.as_fd(), PollFlags::IN)];
        both.extend(stream.map(|(stream, flags)| PollFd::from_borrowed_fd(stream.as_fd(), flags)));
        match poll(&mut both, left.as_ref()) {
            Ok(0) => return Ok(Heard::Late),
            Ok(_) if !both[0].revents().is_empty() => return Err(HttpError::Stopped),
            Ok(_) => return Ok(Heard::Ready),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(HttpError::Io(errno.into())),
        }
    }
}

/// How the end of a body is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Framing {
    /// So many octets are still to come.
    Length(u64),
    /// A chunk's size comes next.
    ChunkSize,
    /// So many octets of a chunk are still to come.
    Chunk(u64),
    /// The line end behind a chunk comes next.
    ChunkEnd,
    /// It ends with the stream.
    Stream,
    /// It has ended.
    Ended,
}

/// A question that was asked, and its answer as it comes in.
#[derive(Debug)]
pub(super) struct Exchange<'s> {
    stream: UnixStream,
    stop: &'s Stop,
    /// What came in and was not looked at yet.
    raw: Vec<u8>,
    /// Of the body, what nobody took yet.
    body: Vec<u8>,
    framing: Framing,
    /// The answer's status.
    pub status: u16,
}

/// The next line of a body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// Its octets without the line end.
    Whole(Vec<u8>),
    /// None came in time; it may come later.
    Late,
    /// The body has ended.
    Ended,
}

impl<'s> Exchange<'s> {
    /// Asks, and waits for the head of the answer.
    pub(super) fn get(socket: &Path, target: &str, stop: &'s Stop) -> Result<Self, HttpError> {
        let until = Instant::now() + PATIENCE;
        let stream = connect(socket).map_err(HttpError::Connect)?;
        let mut exchange = Self { stream, stop, raw: Vec::new(), body: Vec::new(), framing: Framing::Ended, status: 0 };
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: docker\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
        exchange.send(request.as_bytes(), until)?;
        while !exchange.parse_head()? {
            exchange.receive(until)?;
        }
        Ok(exchange)
    }

    /// The whole body.
    pub(super) fn body(mut self, max: usize) -> Result<Vec<u8>, HttpError> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.decode()?;
            if self.body.len() > max {
                return Err(HttpError::TooLong(max));
            }
            if self.framing == Framing::Ended {
                return Ok(self.body);
            }
            self.receive(until)?;
        }
    }

    /// The body's next line, if it comes until then.
    pub(super) fn line(&mut self, max: usize, until: Option<Instant>) -> Result<Line, HttpError> {
        loop {
            self.decode()?;
            if let Some(end) = self.body.iter().position(|octet| *octet == b'\n') {
                let mut line: Vec<u8> = self.body.drain(..=end).collect();
                line.truncate(line.trim_ascii_end().len());
                return Ok(Line::Whole(line));
            }
            if self.body.len() > max {
                return Err(HttpError::TooLong(max));
            }
            if self.framing == Framing::Ended {
                return Ok(Line::Ended);
            }
            match self.receive_until(until) {
                Ok(Heard::Ready) => {}
                Ok(Heard::Late) => return Ok(Line::Late),
                Err(HttpError::CutOff) => return Ok(Line::Ended),
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, mut octets: &[u8], until: Instant) -> Result<(), HttpError> {
        while !octets.is_empty() {
            match self.stream.write(octets) {
                Ok(sent) => octets = &octets[sent..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if let Heard::Late = wait(Some((&self.stream, PollFlags::OUT)), self.stop, Some(until))? {
                        return Err(HttpError::Late);
                    }
                }
                Err(error) => return Err(HttpError::Io(error)),
            }
        }
        Ok(())
    }

    fn receive(&mut self, until: Instant) -> Result<(), HttpError> {
        match self.receive_until(Some(until))? {
            Heard::Ready => Ok(()),
            Heard::Late => Err(HttpError::Late),
        }
    }

    /// Takes what there is; nothing at all ends a body that ends with the stream, and is an error otherwise.
    fn receive_until(&mut self, until: Option<Instant>) -> Result<Heard, HttpError> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Heard::Late = wait(Some((&self.stream, PollFlags::IN)), self.stop, until)? {
                return Ok(Heard::Late);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) if self.framing == Framing::Stream => {
                    self.framing = Framing::Ended;
                    return Ok(Heard::Ready);
                }
                Ok(0) => return Err(HttpError::CutOff),
                Ok(len) => {
                    self.raw.extend_from_slice(&chunk[..len]);
                    return Ok(Heard::Ready);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(HttpError::Io(error)),
            }
        }
    }

    /// Reads the head, once it is whole. Interim answers (1xx) are passed over.
    fn parse_head(&mut self) -> Result<bool, HttpError> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let malformed = |error: httparse::Error| HttpError::Malformed(error.to_string());
        let len = match head.parse(&self.raw).map_err(malformed)? {
            httparse::Status::Complete(len) => len,
            httparse::Status::Partial if self.raw.len() > MAX_HEAD => return Err(HttpError::TooLong(MAX_HEAD)),
            httparse::Status::Partial => return Ok(false),
        };
        let status = head.code.unwrap_or_default();
        let framing = framing(status, head.headers)?;
        self.raw.drain(..len);
        if (100..200).contains(&status) {
            return self.parse_head();
        }
        (self.status, self.framing) = (status, framing);
        Ok(true)
    }

    /// Moves what is there of the body from `raw` to `body`.
    fn decode(&mut self) -> Result<(), HttpError> {
        loop {
            match self.framing {
                Framing::Length(0) => self.framing = Framing::Ended,
                Framing::Ended => return Ok(()),
                _ if self.raw.is_empty() => return Ok(()),
                Framing::Stream => self.body.append(&mut self.raw),
                Framing::Length(left) => self.framing = Framing::Length(left - self.take(left)),
                Framing::Chunk(left) => {
                    let left = left - self.take(left);
                    self.framing = if left == 0 { Framing::ChunkEnd } else { Framing::Chunk(left) };
                }
                Framing::ChunkEnd => match self.raw.as_slice() {
                    [b'\r', b'\n', ..] => {
                        self.raw.drain(..2);
                        self.framing = Framing::ChunkSize;
                    }
                    [b'\r'] => return Ok(()),
                    _ => return Err(HttpError::Malformed("a chunk without its end".to_owned())),
                },
                Framing::ChunkSize => match httparse::parse_chunk_size(&self.raw) {
                    // Behind the last chunk come trailers, of which we want none.
                    Ok(httparse::Status::Complete((_, 0))) => self.framing = Framing::Ended,
                    Ok(httparse::Status::Complete((len, size))) => {
                        self.raw.drain(..len);
                        self.framing = Framing::Chunk(size);
                    }
                    Ok(httparse::Status::Partial) if self.raw.len() <= MAX_CHUNK_HEAD => return Ok(()),
                    _ => return Err(HttpError::Malformed("a chunk without its size".to_owned())),
                },
            }
        }
    }

    fn take(&mut self, left: u64) -> u64 {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.raw.len());
        self.body.extend(self.raw.drain(..len));
        len as u64
    }
}

/// RFC 9112 §6.3: chunks before a length, a length before the stream's end.
fn framing(status: u16, fields: &[httparse::Header<'_>]) -> Result<Framing, HttpError> {
    let field = |name: &str| {
        let found = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(found.value).trim().to_ascii_lowercase())
    };
    if matches!(status, 100..200 | 204 | 304) {
        return Ok(Framing::Ended);
    }
    match (field("transfer-encoding"), field("content-length")) {
        (Some(coding), _) if coding == "chunked" => Ok(Framing::ChunkSize),
        (Some(coding), _) => Err(HttpError::Malformed(format!("unknown transfer coding {coding:?}"))),
        (None, Some(length)) => match length.parse() {
            Ok(length) => Ok(Framing::Length(length)),
            Err(_) => Err(HttpError::Malformed(format!("Content-Length {length:?}"))),
        },
        (None, None) => Ok(Framing::Stream),
    }
}

/// Connects without waiting: a daemon that does not accept is one that does not answer.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}
