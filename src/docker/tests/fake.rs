//! A daemon that answers as Docker does, with containers that a test makes, and hands that note what they are told to do.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::docker::api::Container;
use crate::docker::table::{Hands, Plugged, Refusal, refusal};
use crate::docker::{Report, Watcher};
use crate::network::Labels;
use crate::network::choice::{AddressWish, Attachment, Choices, KnownNetwork, Place, choose};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon's state.
#[derive(Default)]
pub struct World {
    pub containers: BTreeMap<String, Value>,
    streams: Vec<UnixStream>,
    pub requests: Vec<String>,
    /// Does not answer questions about this container.
    pub silent_about: Option<String>,
    /// Answers with this status to everything but /version.
    pub broken: Option<u16>,
}

/// A daemon that listens in a folder of its own.
pub struct Daemon {
    folder: TempDir,
    pub world: Arc<Mutex<World>>,
}

/// What Docker says of a container.
pub fn container(id: &str, pid: u32, labels: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    json!({
        "Id": id, "Created": "2026-01-01T00:00:00.5Z", "Path": "sh", "Args": [], "Name": format!("/name-of-{id}"),
        "State": {"Status": if pid == 0 { "exited" } else { "running" }, "Running": pid != 0, "Paused": false, "Restarting": false,
            "OOMKilled": false, "Dead": false, "Pid": pid, "ExitCode": 0, "Error": "", "StartedAt": "2026-01-01T00:00:01.5Z"},
        "Image": "sha256:00", "RestartCount": 0, "Driver": "vfs",
        "HostConfig": {"NetworkMode": "default", "PortBindings": {}, "AutoRemove": false},
        "Config": {"Hostname": id, "Env": ["PATH=/bin"], "Labels": labels},
        "NetworkSettings": {"Bridge": "", "SandboxID": "00", "Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
    })
}

impl Daemon {
    pub fn new() -> Self {
        let daemon = Self { folder: tempfile::tempdir().unwrap(), world: Arc::default() };
        daemon.listen();
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// Starts to answer.
    pub fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let world = Arc::clone(&self.world);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let world = Arc::clone(&world);
                thread::spawn(move || answer(stream, &world));
            }
        });
    }

    /// Ends: nobody answers at the socket any more, and streams of events break.
    pub fn end(&self) {
        std::fs::remove_file(self.socket()).unwrap();
        for stream in self.world.lock().unwrap().streams.drain(..) {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    /// Makes or changes a container and says so.
    pub fn set(&self, action: &str, value: Value) {
        let id = value["Id"].as_str().unwrap().to_owned();
        let mut attributes = value["Config"]["Labels"].clone();
        attributes["name"] = json!(value["Name"].as_str().unwrap().trim_start_matches('/'));
        self.world.lock().unwrap().containers.insert(id.clone(), value);
        self.say(&json!({"Type": "container", "Action": action, "Actor": {"ID": id, "Attributes": attributes}}));
    }

    /// Removes a container and says so.
    pub fn remove(&self, id: &str) {
        self.world.lock().unwrap().containers.remove(id);
        self.say(&json!({"Type": "container", "Action": "destroy", "Actor": {"ID": id, "Attributes": {}}}));
    }

    /// An event, in two chunks.
    pub fn say(&self, event: &Value) {
        let mut line = event.to_string();
        line.push('\n');
        let (one, two) = line.split_at(line.len() / 2);
        for stream in &mut self.world.lock().unwrap().streams {
            for part in [one, two] {
                write!(stream, "{:x}\r\n{part}\r\n", part.len()).unwrap();
                stream.flush().unwrap();
            }
        }
    }
}

fn answer(mut stream: UnixStream, world: &Mutex<World>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let target = request.split(' ').nth(1).unwrap().to_owned();
    let mut world = world.lock().unwrap();
    world.requests.push(target.clone());
    let path = target.split('?').next().unwrap();
    if world.silent_about.as_ref().is_some_and(|id| path.contains(&format!("/{id}/"))) {
        drop(world);
        thread::sleep(PATIENCE);
        return;
    }
    let (status, body) = match (path, world.broken) {
        ("/version", _) => (200, json!({"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12"})),
        (_, Some(status)) => (status, json!({"message": "out of order"})),
        ("/v1.41/events", None) => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
                .unwrap();
            world.streams.push(stream);
            return;
        }
        ("/v1.41/containers/json", None) => {
            let short = |(id, value): (&String, &Value)| json!({"Id": id, "Labels": value["Config"]["Labels"]});
            (200, world.containers.iter().map(short).collect())
        }
        (path, None) => {
            let id = path.strip_prefix("/v1.41/containers/").and_then(|rest| rest.strip_suffix("/json"));
            match id.and_then(|id| world.containers.get(id)) {
                Some(container) => (200, container.clone()),
                None => (404, json!({"message": "No such container"})),
            }
        }
    };
    let body = body.to_string();
    let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
}

/// What the hands did.
#[derive(Default)]
pub struct Deeds {
    pub log: Vec<String>,
    pub held: BTreeMap<String, Vec<IpAddr>>,
    /// Refuses every plug.
    pub refuses: Option<Refusal>,
    pub panics: bool,
    /// The networks are others, once.
    pub news: bool,
}

/// Hands that give 10.42.1.2, 10.42.1.3, ….
#[derive(Clone, Default)]
pub struct Noted(pub Arc<Mutex<Deeds>>);

impl Hands for Noted {
    fn choose(&mut self, mode: &str, labels: &Labels) -> Result<Option<Attachment>, Refusal> {
        let networks = [KnownNetwork { name: "ipsec", subnets: &[] }];
        let choices = Choices { networks: &networks, managed: Some("ipsec"), docker: &[mode] };
        match choose(mode, labels, &choices).map_err(|error| refusal(&error))?.place {
            Place::Network(attachment) => Ok(Some(attachment)),
            Place::Docker(_) => Ok(None),
        }
    }

    fn plug(&mut self, id: &str, _: &File, wish: &Attachment) -> Result<Plugged, Refusal> {
        let mut deeds = self.0.lock().unwrap();
        assert!(!deeds.panics, "on purpose");
        if let Some(refusal) = &deeds.refuses {
            return Err(refusal.clone());
        }
        let next = 2 + deeds.held.len();
        let address = match &wish.address {
            AddressWish::This(address, _) => *address,
            _ => format!("10.42.1.{next}").parse().unwrap(),
        };
        let addresses = deeds.held.entry(id.to_owned()).or_insert_with(|| vec![address]).clone();
        deeds.log.push(format!("plug {id}"));
        Ok(Plugged { addresses, interface: "eth0".to_owned() })
    }

    fn set_names(&mut self, container: &Container, wish: &Attachment) {
        assert!(wish.dns && !container.id.is_empty());
    }

    fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.0.lock().unwrap().news)
    }

    fn unplug(&mut self, id: &str) {
        self.0.lock().unwrap().log.push(format!("unplug {id}"));
    }

    fn release(&mut self, id: &str) -> Result<(), Refusal> {
        let mut deeds = self.0.lock().unwrap();
        deeds.log.push(format!("release {id}"));
        deeds.held.remove(id);
        Ok(())
    }

    fn held(&mut self) -> Result<BTreeMap<String, Vec<IpAddr>>, Refusal> {
        Ok(self.0.lock().unwrap().held.clone())
    }
}

/// A watch of a daemon.
pub struct Scene {
    pub daemon: Daemon,
    pub hands: Noted,
    pub report: Arc<Mutex<Report>>,
    watcher: Option<Watcher>,
}

impl Scene {
    pub fn new() -> Self {
        Self { daemon: Daemon::new(), hands: Noted::default(), report: Arc::default(), watcher: None }
    }

    pub fn watch(&mut self) {
        self.watcher = Some(Watcher::spawn(&self.daemon.socket(), self.hands.clone(), &self.report).unwrap());
    }

    /// Ends the watch; what was done is still known.
    pub fn stop(&mut self) {
        self.watcher = None;
    }

    /// Waits until the report says so.
    pub fn until(&self, what: &str, holds: impl Fn(&Report) -> bool) {
        let late = Instant::now() + PATIENCE;
        while !holds(&self.report.lock().unwrap()) {
            assert!(Instant::now() < late, "{what}: {:?}, {:?}", self.report.lock().unwrap(), self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a container is `state: why` (as far as given), with these addresses.
    pub fn until_is(&self, id: &str, state: &str, addresses: &[&str]) {
        self.until(&format!("{id} {state}"), |report| {
            report.containers.iter().any(|view| {
                let is = format!("{:?}: {}", view.state, view.why.as_deref().unwrap_or_default());
                let has: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
                view.id == id && is.starts_with(state) && has == addresses
            })
        });
    }

    pub fn log(&self) -> Vec<String> {
        self.hands.0.lock().unwrap().log.clone()
    }
}
