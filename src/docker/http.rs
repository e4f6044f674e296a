//! HTTP/1.1 over a Unix socket, as far as a client of Docker's API needs it: GET, one request per connection.
//!
//! Every wait is also a wait for the order to stop: an answer that never ends, such as the stream of events, holds nobody up.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::http::{AnswerError, Answers, Rules};

/// One answer per connection; how long it may be, its reader knows.
const RULES: Rules = Rules { is_kept: false, max_head: 32 * 1024, max_part: u64::MAX };

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
    /// What came is none.
    #[error(transparent)]
    Answer(#[from] AnswerError),
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

/// A question that was asked, and its answer as it comes in.
#[derive(Debug)]
pub(super) struct Exchange<'s> {
    stream: UnixStream,
    stop: &'s Stop,
    answers: Answers,
    /// Of the body, what nobody took yet.
    body: Vec<u8>,
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
        let mut exchange = Self { stream, stop, answers: Answers::new(RULES), body: Vec::new(), status: 0 };
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: docker\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
        exchange.send(request.as_bytes(), until)?;
        exchange.answers.begin();
        loop {
            if let Some(status) = exchange.answers.head()? {
                exchange.status = status;
                return Ok(exchange);
            }
            exchange.receive(until)?;
        }
    }

    /// The whole body.
    pub(super) fn body(mut self, max: usize) -> Result<Vec<u8>, HttpError> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.answers.body(&mut self.body)?;
            if self.body.len() > max {
                return Err(AnswerError::TooLong(max as u64).into());
            }
            if self.answers.has_ended() {
                return Ok(self.body);
            }
            self.receive(until)?;
        }
    }

    /// The body's next line, if it comes until then.
    pub(super) fn line(&mut self, max: usize, until: Option<Instant>) -> Result<Line, HttpError> {
        loop {
            self.answers.body(&mut self.body)?;
            if let Some(end) = self.body.iter().position(|octet| *octet == b'\n') {
                let mut line: Vec<u8> = self.body.drain(..=end).collect();
                line.truncate(line.trim_ascii_end().len());
                return Ok(Line::Whole(line));
            }
            if self.body.len() > max {
                return Err(AnswerError::TooLong(max as u64).into());
            }
            if self.answers.has_ended() {
                return Ok(Line::Ended);
            }
            match self.receive_until(until) {
                Ok(Heard::Ready) => {}
                Ok(Heard::Late) => return Ok(Line::Late),
                Err(HttpError::Answer(AnswerError::CutOff)) => return Ok(Line::Ended),
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
                Ok(0) => {
                    self.answers.hang_up()?;
                    return Ok(Heard::Ready);
                }
                Ok(len) => {
                    self.answers.feed(&chunk[..len]);
                    return Ok(Heard::Ready);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(HttpError::Io(error)),
            }
        }
    }
}

/// Connects without waiting: a daemon that does not accept is one that does not answer.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}
