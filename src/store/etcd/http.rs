//! As much HTTP/1.1 as etcd's gateway speaks: a POST of JSON, and an answer with a length or in chunks that may never end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::config::EtcdEndpoint;
use crate::sys::http::{Answers, Rules};

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// Largest chunk or answer, in octets: a page of records is a hundredth of that.
const MAX_BODY: usize = 32 * 1024 * 1024;

/// Requests follow each other on one connection.
const RULES: Rules = Rules { is_kept: true, max_head: 16 * 1024, max_part: MAX_BODY as u64 };

/// A connection to one server. Requests follow each other.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    host: String,
    answers: Answers,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    /// Connects, to the first of the server's addresses that answers.
    pub(super) fn open(endpoint: &EtcdEndpoint, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in (endpoint.host.as_str(), endpoint.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => return Self::over(stream, endpoint, tls),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn over(stream: TcpStream, endpoint: &EtcdEndpoint, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // A server that vanishes without a word is noticed, whoever waits for it.
        let keepalive =
            socket2::TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let stream = match tls.filter(|_| endpoint.tls) {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
                let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                Stream::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        };
        let host = if endpoint.host.contains(':') { format!("[{}]", endpoint.host) } else { endpoint.host.clone() };
        let host = format!("{host}:{}", endpoint.port);
        Ok(Self { stream, host, answers: Answers::new(RULES) })
    }

    /// Our own address towards the server.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        self.stream.socket().local_addr()
    }

    /// Sends a request and reads the head of its answer: the status. The body is fetched by [`piece`](Self::piece).
    pub(super) fn post(&mut self, path: &str, token: Option<&str>, body: &[u8], deadline: Instant) -> io::Result<u16> {
        if !self.answers.has_ended() {
            return Err(invalid("an answer is still to be read"));
        }
        let authorization = token.map_or_else(String::new, |token| format!("Authorization: {token}\r\n"));
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{authorization}\r\n",
            self.host,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.set_timeouts(deadline)?;
        self.stream.write_all(&request)?;
        self.stream.flush()?;
        self.answers.begin();
        loop {
            if let Some(status) = self.answers.head().map_err(invalid)? {
                return Ok(status);
            }
            self.fill(deadline)?;
        }
    }

    /// The next part of the answer, as it came; none at its end. [`ErrorKind::WouldBlock`] or [`ErrorKind::TimedOut`] if nothing came
    /// until the deadline: then nothing is lost.
    pub(super) fn piece(&mut self, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut piece = Vec::new();
        loop {
            self.answers.body(&mut piece).map_err(invalid)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            if self.answers.has_ended() {
                return Ok(None);
            }
            self.fill(deadline)?;
        }
    }

    /// The whole rest of the answer.
    pub(super) fn rest(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece(deadline)? {
            whole.extend_from_slice(&piece);
            if whole.len() > MAX_BODY {
                return Err(invalid("the answer does not end"));
            }
        }
        Ok(whole)
    }

    /// Reads what there is, or waits for it.
    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            self.stream.set_timeouts(deadline)?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server hung up")),
                Ok(len) => {
                    self.answers.feed(&buffer[..len]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether nothing came in time; the connection is as good as before.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn set_timeouts(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.socket().set_read_timeout(Some(left))?;
        self.socket().set_write_timeout(Some(left))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that answers its first connection with these octets, whatever is asked, and hangs up.
    fn answering(parts: &'static [&'static str]) -> EtcdEndpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            for part in parts {
                stream.write_all(part.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        });
        EtcdEndpoint { tls: false, host: "127.0.0.1".into(), port }
    }

    fn ask(parts: &'static [&'static str]) -> io::Result<(u16, String)> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut connection = Connection::open(&answering(parts), None)?;
        let status = connection.post("/v3/kv/range", Some("t"), b"{}", deadline)?;
        let body = String::from_utf8(connection.rest(deadline)?).unwrap();
        assert!(connection.answers.has_ended());
        Ok((status, body))
    }

    #[test]
    fn answers_have_a_length_or_come_in_chunks() {
        let whole = ask(&["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"]).unwrap();
        assert_eq!(whole, (200, "hello".into()));
        let torn = ask(&["HTTP/1.1 401 Unau", "thorized\r\nContent-Length: 5\r", "\n\r\nhe", "llo"]).unwrap();
        assert_eq!(torn, (401, "hello".into()));
        let chunks = ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "lo\r\n", "1;x=y\r\n!\r\n0\r\n\r\n"];
        assert_eq!(ask(Box::leak(Box::new(chunks))).unwrap(), (200, "hello!".into()));
        let trailed = ["HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\nA: b\r\nC:", " d\r\n\r\n"];
        assert_eq!(ask(Box::leak(Box::new(trailed))).unwrap(), (400, "no".into()));
    }

    #[test]
    fn nonsense_is_an_error() {
        for parts in [
            &["SSH-2.0-x\r\n\r\n"][..],
            &["HTTP/1.1 200 OK\r\n\r\n"],
            &["HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"],
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"],
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"],
            &["HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhello"],
            &[],
        ] {
            assert!(ask(Box::leak(parts.to_vec().into_boxed_slice())).is_err(), "{parts:?}");
        }
    }
}
