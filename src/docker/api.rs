//! Docker's Engine API, as far as we ask it: its version, its containers, one of them, and what happens to them.
//!
//! Everything here is older than the oldest API that Docker serves today. A request names a version that both sides know: ours, which is
//! that of Docker 20.10, or the oldest that a later daemon still speaks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::http::{Exchange, HttpError, Line, Stop};
use crate::ipam::About;
use crate::model::{PortMapping, Protocol};
use crate::network::Labels;

/// The version of the API that we speak.
const OURS: Version = Version(1, 41);

/// Octets of an answer: a list of thousands of containers.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Octets of an event: it holds a container's labels.
const MAX_EVENT: usize = 4 * 1024 * 1024;

/// What happens to containers that makes us look at them again.
const EVENTS: &str = r#"{"type":["container","network"],"event":["create","start","die","destroy","rename","disconnect"]}"#;

/// Why Docker said nothing of use.
#[derive(Debug, thiserror::Error)]
pub(super) enum DockerError {
    /// There was no answer.
    #[error("{}: {}", .0.display(), .1)]
    Http(PathBuf, #[source] HttpError),
    /// Docker refuses.
    #[error("Docker answered {0}: {1}")]
    Refused(u16, String),
    /// What it said is not what its API says.
    #[error("Docker's answer to {0} makes no sense: {1}")]
    Nonsense(&'static str, String),
    /// It speaks no API that we know.
    #[error("Docker's API is {0}, which is older than {OURS}: Docker 20.10 or later is needed")]
    TooOld(Version),
}

impl DockerError {
    /// Whether Docker did not answer in time: it may be busy with that container alone.
    pub(super) const fn is_late(&self) -> bool {
        matches!(self, Self::Http(_, HttpError::Late))
    }

    /// Whether we were told to stop.
    pub(super) const fn is_stop(&self) -> bool {
        matches!(self, Self::Http(_, HttpError::Stopped))
    }
}

/// A version of the API.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Version(u32, u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }

    /// What to speak with a daemon of these versions.
    fn agreed(newest: Self, oldest: Option<Self>) -> Result<Self, DockerError> {
        if newest < OURS {
            return Err(DockerError::TooOld(newest));
        }
        Ok(oldest.map_or(OURS, |oldest| oldest.max(OURS)))
    }
}

/// A container in the list.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Docker writes null for none.
    #[serde(default)]
    pub labels: Option<Labels>,
}

/// A container, looked at.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// With a slash in front.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What it was made with.
    pub config: Config,
    /// What the host gives it.
    pub host_config: HostConfig,
    /// What it has of networks of Docker's own.
    #[serde(default)]
    pub network_settings: NetworkSettings,
    /// Where its `/etc/resolv.conf` is on the host; empty if it has none.
    #[serde(default)]
    pub resolv_conf_path: PathBuf,
}

/// `State`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    /// Also while it waits to be restarted.
    pub running: bool,
    /// Of its first process; 0 if there is none.
    #[serde(default)]
    pub pid: u32,
    /// When it was started last.
    #[serde(default)]
    pub started_at: String,
}

/// `Config`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    /// Docker writes null for none.
    #[serde(default)]
    pub labels: Option<Labels>,
}

/// `HostConfig`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostConfig {
    /// `default`, `bridge`, `none`, `host`, `container:ID`, or a network's name.
    #[serde(default)]
    pub network_mode: String,
    /// Name servers that its user gave it. Docker writes null for none.
    #[serde(default)]
    pub dns: Option<Vec<String>>,
    /// Domains that its user gave it.
    #[serde(default)]
    pub dns_search: Option<Vec<String>>,
}

/// `NetworkSettings`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkSettings {
    /// Where each port (`80/tcp`) is published; null for those that are not. Empty while it does not run.
    ports: Option<BTreeMap<String, Option<Vec<Binding>>>>,
    /// By name.
    networks: Option<BTreeMap<String, NetworkOfDocker>>,
}

/// A place where a port is published.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Binding {
    host_ip: String,
    host_port: String,
}

/// A network of Docker's own that it is on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkOfDocker {
    aliases: Option<Vec<String>>,
}

impl NetworkSettings {
    /// What makes no sense is left out: it is for people.
    fn port_mappings(&self) -> Vec<PortMapping> {
        let bound = |(port, bindings): (&String, &Option<Vec<Binding>>)| {
            let (container, protocol) = port.split_once('/')?;
            let (container, protocol) = (container.parse().ok()?, Protocol::of_name(protocol)?);
            let mapping = |binding: &Binding| {
                let (address, host) = (binding.host_ip.parse().ok(), Some(binding.host_port.parse().ok()?));
                Some(PortMapping { protocol, address, container, host })
            };
            Some(bindings.iter().flatten().filter_map(mapping).collect::<Vec<_>>())
        };
        self.ports.iter().flatten().filter_map(bound).flatten().collect()
    }

    fn aliases(&self) -> impl Iterator<Item = &str> {
        let networks = self.networks.iter().flat_map(BTreeMap::values);
        networks.filter_map(|network| network.aliases.as_ref()).flatten().map(String::as_str)
    }
}

impl Container {
    /// What it is called, and its ports.
    pub(super) fn about(&self) -> About {
        let settings = &self.network_settings;
        About::new(&self.id, Some(self.name()), settings.aliases(), &settings.port_mappings())
    }

    /// Its name as people write it.
    pub(super) fn name(&self) -> &str {
        self.name.trim_start_matches('/')
    }

    /// Its first process, if there is one.
    pub(super) const fn pid(&self) -> Option<u32> {
        match self.state.pid {
            pid @ 1.. if self.state.running => Some(pid),
            _ => None,
        }
    }

    /// Its labels.
    pub(super) fn labels(&self) -> &Labels {
        const NONE: &Labels = &Labels::new();
        self.config.labels.as_ref().unwrap_or(NONE)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawEvent {
    #[serde(rename = "Type")]
    kind: String,
    action: String,
    actor: Actor,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    attributes: Option<Labels>,
}

/// Something happened to a container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Event {
    /// To which one.
    pub container: String,
    /// Its labels and its name, as far as Docker says them along with it.
    pub labels: Option<Labels>,
}

impl Event {
    fn of(raw: RawEvent) -> Option<Self> {
        if raw.kind == "network" {
            let container = raw.actor.attributes?.remove("container")?;
            return Some(Self { container, labels: None });
        }
        (raw.kind == "container" && !raw.action.is_empty())
            .then_some(Self { container: raw.actor.id, labels: raw.actor.attributes })
    }
}

/// What the stream of events says next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Something happened.
    Event(Event),
    /// Nothing, until then.
    Nothing,
    /// The stream has ended.
    Ended,
}

/// A daemon that we have spoken to.
#[derive(Debug)]
pub(super) struct Docker<'s> {
    socket: PathBuf,
    stop: &'s Stop,
    version: Version,
}

impl<'s> Docker<'s> {
    /// Asks the daemon which API it speaks.
    pub(super) fn connect(socket: &Path, stop: &'s Stop) -> Result<Self, DockerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            api_version: String,
            #[serde(rename = "MinAPIVersion", default)]
            oldest: String,
        }
        let answer: Answer = parse("/version", &get(socket, "/version", stop)?.1)?;
        let newest = Version::parse(&answer.api_version)
            .ok_or_else(|| DockerError::Nonsense("/version", format!("API version {:?}", answer.api_version)))?;
        let version = Version::agreed(newest, Version::parse(&answer.oldest))?;
        Ok(Self { socket: socket.to_owned(), stop, version })
    }

    /// Every container, also those that do not run.
    pub(super) fn containers(&self) -> Result<Vec<Listed>, DockerError> {
        let target = format!("/v{}/containers/json?all=1", self.version);
        match get(&self.socket, &target, self.stop)? {
            (200, body) => parse("/containers/json", &body),
            (status, body) => Err(refused(status, &body)),
        }
    }

    /// One container; none if there is no such one.
    pub(super) fn container(&self, id: &str) -> Result<Option<Container>, DockerError> {
        if id.is_empty() || !id.bytes().all(|octet| octet.is_ascii_alphanumeric()) {
            return Err(DockerError::Nonsense("/events", format!("container {id:?}")));
        }
        let target = format!("/v{}/containers/{id}/json", self.version);
        match get(&self.socket, &target, self.stop)? {
            (200, body) => parse("/containers/ID/json", &body).map(Some),
            (404, _) => Ok(None),
            (status, body) => Err(refused(status, &body)),
        }
    }

    /// What happens from now on.
    pub(super) fn events(&self) -> Result<Events<'s>, DockerError> {
        let target = format!("/v{}/events?filters={}", self.version, escaped(EVENTS));
        let failed = |error| DockerError::Http(self.socket.clone(), error);
        let exchange = Exchange::get(&self.socket, &target, self.stop).map_err(failed)?;
        match exchange.status {
            200 => Ok(Events { socket: self.socket.clone(), exchange }),
            status => Err(refused(status, &exchange.body(MAX_ANSWER).map_err(failed)?)),
        }
    }
}

/// The stream of events.
#[derive(Debug)]
pub(super) struct Events<'s> {
    socket: PathBuf,
    exchange: Exchange<'s>,
}

impl Events<'_> {
    /// The next one, if it comes until then.
    pub(super) fn next(&mut self, until: Option<Instant>) -> Result<Next, DockerError> {
        loop {
            let failed = |error| DockerError::Http(self.socket.clone(), error);
            match self.exchange.line(MAX_EVENT, until).map_err(failed)? {
                Line::Late => return Ok(Next::Nothing),
                Line::Ended => return Ok(Next::Ended),
                Line::Whole(line) if line.is_empty() => {}
                Line::Whole(line) => {
                    if let Some(event) = Event::of(parse("/events", &line)?) {
                        return Ok(Next::Event(event));
                    }
                }
            }
        }
    }
}

fn get(socket: &Path, target: &str, stop: &Stop) -> Result<(u16, Vec<u8>), DockerError> {
    let failed = |error| DockerError::Http(socket.to_owned(), error);
    let exchange = Exchange::get(socket, target, stop).map_err(failed)?;
    Ok((exchange.status, exchange.body(MAX_ANSWER).map_err(failed)?))
}

fn parse<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, DockerError> {
    serde_json::from_slice(body).map_err(|error| DockerError::Nonsense(what, error.to_string()))
}

/// Docker says why as `{"message": "…"}`.
fn refused(status: u16, body: &[u8]) -> DockerError {
    let said: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = said.as_ref().and_then(|said| said.get("message")?.as_str());
    DockerError::Refused(status, message.unwrap_or("no reason").to_owned())
}

/// A text as a query's value (RFC 3986 §2.1).
fn escaped(text: &str) -> String {
    let one = |octet: u8| match octet {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(octet).to_string(),
        octet => format!("%{octet:02X}"),
    };
    text.bytes().map(one).collect()
}
