//! Containers and their addresses: what `underpass ps` shows (schema `underpass.containers/1`), and how.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::render::{line, plain, table};

/// The `schema` of [`Containers`].
const CONTAINERS_SCHEMA: &str = "underpass.containers/1";

/// Characters of a container's id that tell it from others, as Docker shows them.
const SHORT_ID: usize = 12;

/// Containers of one host, and of others as far as its store knows them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Containers {
    /// `underpass.containers/1`.
    pub schema: String,
    /// The host's name in the overlay; none if no agent could be asked.
    pub host: Option<String>,
    /// Whether an agent was asked. Without one there is what the journal of addresses says.
    pub agent: bool,
    /// The daemon whose containers get addresses by their labels, if one is configured.
    pub docker: Option<DockerLink>,
    /// The containers, by network and address.
    pub containers: Vec<Container>,
}

/// A Docker daemon as the agent sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DockerLink {
    /// Where it listens.
    pub socket: String,
    /// Whether its events are heard.
    pub watching: bool,
    /// Why not.
    pub why: Option<String>,
}

/// One container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Container {
    /// Its id, as its runtime calls it.
    pub id: String,
    /// Its name, if it is known.
    pub name: Option<String>,
    /// What it may be called besides.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its ports that are to be reached at its host, as its runtime was told: `8080->80/tcp`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// `docker` for addresses by label, `cni` for those that a plugin gave.
    pub runtime: String,
    /// The host that it is on; none if no agent could be asked.
    pub host: Option<String>,
    /// The network; none if that could not be told.
    pub network: Option<String>,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
    /// Its interface there.
    pub interface: Option<String>,
    /// How it is.
    pub state: ContainerState,
    /// Why, if the state alone does not say it.
    pub why: Option<String>,
    /// When its addresses were given: seconds since 1970.
    pub since: Option<u64>,
}

/// How a container is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// It has its addresses.
    Attached,
    /// It does not run; its addresses stay its own.
    Waiting,
    /// It asks for what it cannot have.
    Failed,
    /// It had addresses, and its network or its namespace is gone.
    Disconnected,
    /// Nobody could be asked.
    Unknown,
}

impl ContainerState {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Disconnected => "disconnected",
            Self::Unknown => "unknown",
        }
    }

    /// Whether nobody need do anything.
    #[must_use]
    pub const fn is_fine(self) -> bool {
        !matches!(self, Self::Failed | Self::Disconnected)
    }
}

impl Containers {
    /// None yet.
    #[must_use]
    pub fn new(host: Option<String>) -> Self {
        Self { schema: CONTAINERS_SCHEMA.to_owned(), agent: host.is_some(), host, docker: None, containers: Vec::new() }
    }

    /// By network and address; who has none comes last.
    pub fn sort(&mut self) {
        let key = |container: &Container| {
            (container.addresses.is_empty(), container.network.clone(), container.addresses.clone(), container.id.clone())
        };
        self.containers.sort_by_key(key);
    }
}

/// Containers for people: a table, and below it what is not as it should be.
#[must_use]
pub fn render_containers(containers: &Containers) -> String {
    let mut out = String::new();
    if containers.containers.is_empty() {
        line(&mut out, format_args!("no containers have addresses here"));
    } else {
        table(&mut out, &rows(&containers.containers), "");
    }
    if let Some(DockerLink { socket, watching: false, why }) = &containers.docker {
        let why = why.as_deref().unwrap_or("not asked yet");
        line(&mut out, format_args!("Docker at {} is away: {}", plain(socket), plain(why)));
    }
    out
}

fn rows(containers: &[Container]) -> Vec<Vec<String>> {
    // Most containers have no other names and no ports, and then nobody needs these columns.
    let (with_aliases, with_ports) =
        (containers.iter().any(|it| !it.aliases.is_empty()), containers.iter().any(|it| !it.ports.is_empty()));
    let headings = ["CONTAINER", "NAME", "ALIASES", "NETWORK", "ADDRESS", "HOST", "PORTS", "STATE"].map(str::to_owned);
    let all = std::iter::once(headings).chain(containers.iter().map(row));
    let narrowed = |[container, name, aliases, network, address, host, ports, state]: [String; 8]| {
        let cells = [
            Some(container),
            Some(name),
            Some(aliases).filter(|_| with_aliases),
            Some(network),
            Some(address),
            Some(host),
            Some(ports).filter(|_| with_ports),
            Some(state),
        ];
        cells.into_iter().flatten().collect()
    };
    all.map(narrowed).collect()
}

fn row(container: &Container) -> [String; 8] {
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), plain);
    let list = |texts: &[String]| if texts.is_empty() { "-".to_owned() } else { plain(&texts.join(" ")) };
    let addresses: Vec<String> = container.addresses.iter().map(ToString::to_string).collect();
    let state = container.state.name();
    [
        plain(&container.id).chars().take(SHORT_ID).collect(),
        text(&container.name),
        list(&container.aliases),
        text(&container.network),
        list(&addresses),
        text(&container.host),
        list(&container.ports),
        container.why.as_deref().map_or_else(|| state.to_owned(), |why| format!("{state}: {}", plain(why))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_says_why_and_cannot_be_steered() {
        let container = |id: &str, address: Option<&str>, state, why: Option<&str>| Container {
            id: id.repeat(16),
            name: Some("we\u{1b}b".to_owned()),
            aliases: Vec::new(),
            ports: Vec::new(),
            runtime: "docker".to_owned(),
            host: Some("alpha".to_owned()),
            network: Some("managed".to_owned()),
            addresses: address.iter().map(|address| address.parse().unwrap()).collect(),
            interface: None,
            state,
            why: why.map(str::to_owned),
            since: None,
        };
        let mut all = Containers::new(Some("alpha".to_owned()));
        assert_eq!(render_containers(&all), "no containers have addresses here\n");
        all.containers = vec![
            container("bad0", None, ContainerState::Failed, Some("label x: expected true")),
            container("c0de", Some("10.42.1.10"), ContainerState::Attached, None),
            container("beef", Some("10.42.1.9"), ContainerState::Waiting, None),
        ];
        all.docker = Some(DockerLink { socket: "/d.sock".to_owned(), watching: false, why: Some("refused".to_owned()) });
        all.sort();
        let expected = "\
CONTAINER     NAME       NETWORK  ADDRESS     HOST   STATE
beefbeefbeef  we\\u{1b}b  managed  10.42.1.9   alpha  waiting
c0dec0dec0de  we\\u{1b}b  managed  10.42.1.10  alpha  attached
bad0bad0bad0  we\\u{1b}b  managed  -           alpha  failed: label x: expected true
Docker at /d.sock is away: refused
";
        assert_eq!(render_containers(&all), expected);
        all.containers[1].aliases = vec!["x".to_owned(), "y\n".to_owned()];
        all.containers[0].ports = vec!["8080->80/tcp".to_owned()];
        all.containers.truncate(2);
        let expected = "\
CONTAINER     NAME       ALIASES  NETWORK  ADDRESS     HOST   PORTS         STATE
beefbeefbeef  we\\u{1b}b  -        managed  10.42.1.9   alpha  8080->80/tcp  waiting
c0dec0dec0de  we\\u{1b}b  x y\\n    managed  10.42.1.10  alpha  -             attached
Docker at /d.sock is away: refused
";
        assert_eq!(render_containers(&all), expected);
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(
            (&json["schema"], &json["containers"][0]["state"]),
            (&"underpass.containers/1".into(), &"waiting".into())
        );
        let mut earlier = json.clone();
        for container in earlier["containers"].as_array_mut().unwrap() {
            container.as_object_mut().unwrap().retain(|key, _| !["aliases", "ports"].contains(&key.as_str()));
        }
        let read: Containers = serde_json::from_value(earlier).unwrap();
        assert_eq!(read.containers[0].ports, [""; 0], "an agent that does not know them says the rest");
    }
}
