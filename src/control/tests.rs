//! The protocol over a real socket: who asks, what comes back, and what a hostile asker cannot do.

use std::io::BufRead;
use std::os::unix::fs::FileTypeExt;
use std::sync::{Condvar, Mutex, mpsc};

use serde_json::json;

use super::*;
use crate::control::{Client, ClientError};
use crate::model::{Rng, SeededRng};

/// Answers `version`, knows no peers, and answers `status` once somebody has asked for `version` meanwhile.
#[derive(Default)]
struct Stub {
    asked: Mutex<Vec<&'static str>>,
    news: Condvar,
}

impl Stub {
    fn note(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
        self.news.notify_all();
    }

    fn await_that(&self, what: &str) {
        drop(self.news.wait_while(self.asked.lock().unwrap(), |asked| !asked.contains(&what)).unwrap());
    }
}

impl Handler for Stub {
    fn handle(&self, request: Request) -> Result<Value, Fault> {
        match request {
            Request::Version {} => {
                self.note("version");
                Ok(json!({"schema": "underpass.version/1", "version": "9.9", "pid": 1}))
            }
            Request::Peers { name: Some(name) } => Err(Fault::new(FaultKind::NotFound, format!("no peer {name:?}"))),
            Request::Status {} => {
                self.note("status");
                self.await_that("version");
                Ok(json!({"slow": true}))
            }
            _ => Ok(json!({})),
        }
    }
}

fn start() -> (tempfile::TempDir, Server, Arc<Counters>) {
    let folder = tempfile::tempdir().unwrap();
    let counters = Arc::new(Counters::default());
    let server = Server::start(&folder.path().join("run"), Arc::new(Stub::default()), Arc::clone(&counters)).unwrap();
    (folder, server, counters)
}

fn raw(server: &Server, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(&server.path).unwrap();
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = String::new();
    let _ = io::BufReader::new(stream).read_line(&mut answer);
    answer
}

#[test]
fn a_request_gets_its_answer() {
    let (folder, _server, counters) = start();
    let client = Client::new(&folder.path().join("run"));
    assert_eq!(client.version().unwrap().version, "9.9");
    match client.peers(Some("nobody")) {
        Err(ClientError::Fault(fault)) => assert_eq!(fault, Fault::new(FaultKind::NotFound, "no peer \"nobody\"")),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.peers(None), Err(ClientError::Protocol(_))), "an answer of another shape is refused");
    assert_eq!(counters.snapshot().requests, 3);
}

#[test]
fn the_socket_and_its_folder_are_private() {
    let (folder, server, _) = start();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&folder.path().join("run")), 0o700);
    assert_eq!(mode(&server.path), 0o600);
    assert!(fs::metadata(&server.path).unwrap().file_type().is_socket());
    let path = server.path.clone();
    drop(server);
    assert!(!path.exists(), "a stopped server leaves nothing behind");
}

#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let error = Server::start(folder.path(), Arc::new(Stub::default()), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("has mode 0777"), "{error}");
}

#[test]
fn a_second_server_is_refused_and_a_stale_socket_is_replaced() {
    let (folder, server, _) = start();
    let run_dir = folder.path().join("run");
    assert!(matches!(Server::start(&run_dir, Arc::new(Stub::default()), Arc::default()), Err(ServerError::InUse(_))));
    assert_eq!(Client::new(&run_dir).version().unwrap().version, "9.9", "the first one still answers");
    drop(server);
    // What a killed agent leaves: a socket that nobody listens on.
    drop(UnixListener::bind(run_dir.join(SOCKET_NAME)).unwrap());
    let _server = Server::start(&run_dir, Arc::new(Stub::default()), Arc::default()).unwrap();
    assert_eq!(Client::new(&run_dir).version().unwrap().version, "9.9");
}

#[test]
fn a_path_too_long_for_a_socket_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Server::start(&folder.path().join("x".repeat(120)), Arc::new(Stub::default()), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("at most 107 octets"), "{error}");
}

#[test]
fn nobody_there_and_nobody_answering_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(folder.path()).with_timeout(Duration::from_millis(100));
    assert!(matches!(client.version(), Err(ClientError::NotRunning(_))));
    let path = folder.path().join(SOCKET_NAME);
    let listener = UnixListener::bind(&path).unwrap();
    assert!(matches!(client.version(), Err(ClientError::Timeout(..))), "it listens and does not answer");
    drop(listener);
    assert!(matches!(client.version(), Err(ClientError::NotRunning(_))), "a stale socket");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(matches!(client.version(), Err(ClientError::NotRunning(_))), "not a socket");
}

#[test]
fn a_full_backlog_is_a_timeout_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SOCKET_NAME);
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let client = Client::new(folder.path()).with_timeout(Duration::from_millis(100));
    assert!(matches!(client.version(), Err(ClientError::Timeout(..))));
}

#[test]
fn malformed_requests_are_answered_and_counted() {
    let (_folder, server, counters) = start();
    let long = format!("{{\"command\":\"peers\",\"name\":\"{}\"}}\n", "x".repeat(MAX_REQUEST));
    let requests: [&[u8]; 6] =
        [b"\n", b"hello\n", b"{\"command\":\"halt\"}\n", b"\xff\xfe\n", b"{\"command\"", long.as_bytes()];
    for (index, request) in requests.iter().enumerate() {
        let answer = raw(&server, request);
        assert!(answer.contains("\"kind\":\"bad-request\""), "{}: {answer:?}", String::from_utf8_lossy(request));
        assert_eq!(counters.snapshot().malformed, index as u64 + 1);
    }
    assert!(raw(&server, b"{\"command\":\"version\"}\n").contains("9.9"), "it still works");
    assert!(raw(&server, b"{\"command\":\"version\"}").contains("9.9"), "a last line without its end is a line");
}

/// Seeded garbage: mutations of a good request. Each gets one whole line of JSON, and the server outlives them all.
#[test]
fn garbage_never_stops_the_server() {
    let (_folder, server, _) = start();
    let mut rng = SeededRng::new(7);
    for _ in 0..300 {
        let mut request = b"{\"command\":\"rekey\",\"peer\":\"beta\",\"what\":\"child\"}".to_vec();
        for _ in 0..1 + rng.u32() % 4 {
            let at = rng.u32() as usize % request.len();
            match rng.u32() % 3 {
                0 => request[at] = rng.u32() as u8,
                1 => request.truncate(at + 1),
                _ => request.insert(at, rng.u32() as u8),
            }
        }
        let answer = raw(&server, &request);
        let value: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
        assert_eq!(value["schema"], "underpass.control/1");
        assert!(value["error"].is_object() != value["result"].is_object(), "{answer}");
    }
    assert!(raw(&server, b"{\"command\":\"version\"}\n").contains("9.9"));
}

#[test]
fn slow_clients_use_up_slots_and_never_the_server() {
    let (folder, server, counters) = start();
    let idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| UnixStream::connect(&server.path).unwrap()).collect();
    // All slots are taken once the acceptor got round to the last of them.
    let busy = raw(&server, b"{\"command\":\"version\"}\n");
    assert!(busy.contains("\"kind\":\"busy\""), "{busy}");
    assert_eq!(counters.snapshot().refused, 1);
    drop(idle);
    let client = Client::new(&folder.path().join("run"));
    let free = (0..50).any(|_| {
        thread::sleep(Duration::from_millis(20));
        client.version().is_ok()
    });
    assert!(free, "slots come back when their connections end");
}

#[test]
fn a_slow_answer_holds_nobody_else_up() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    let stub = Arc::new(Stub::default());
    let handler: Arc<dyn Handler> = stub.clone();
    let _server = Server::start(&run_dir, handler, Arc::default()).unwrap();
    let slow = thread::spawn({
        let run_dir = run_dir.clone();
        move || Client::new(&run_dir).ask_raw(&Request::Status {}).unwrap()
    });
    stub.await_that("status");
    Client::new(&run_dir).version().unwrap();
    assert_eq!(slow.join().unwrap(), json!({"slow": true}));
}

#[test]
fn a_server_stops_although_its_socket_file_is_gone() {
    let (_folder, server, _) = start();
    fs::remove_file(&server.path).unwrap();
    let (told, ended) = mpsc::channel();
    thread::spawn(move || {
        drop(server);
        told.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(30)).expect("it ends");
}

#[test]
fn a_request_that_trickles_in_is_cut_off() {
    let (_folder, server, counters) = start();
    let mut stream = UnixStream::connect(&server.path).unwrap();
    let begun = Instant::now();
    // Each octet comes well within any timeout of a single read.
    while stream.write_all(b"{").is_ok() {
        assert!(begun.elapsed() < 4 * CONNECTION_TIMEOUT, "it is still read");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(begun.elapsed() >= CONNECTION_TIMEOUT);
    let mut answer = String::new();
    io::BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.contains("it did not come in time"), "{answer}");
    assert_eq!(counters.snapshot().malformed, 1);
}
