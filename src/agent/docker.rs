//! Containers of Docker by label: the watcher, fed with this host's networks, and what it knows in the words of `underpass ps`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::census::Census;
use super::drivers::List;
use crate::config::Config;
use crate::docker::{self, Known, KnownNetwork, Link, RUNTIME, Report, Settings, Watcher};
use crate::observe::{Container, ContainerState, Containers, DockerLink};
use crate::sys::file::Stamp;

/// Containers that the status complains of by name.
const COMPLAINTS: usize = 8;

/// What is known of Docker's containers, for whoever asks.
#[derive(Clone, Debug)]
pub(super) struct Docker {
    socket: PathBuf,
    report: Arc<Mutex<Report>>,
}

impl Docker {
    /// Nothing yet; none if Docker is not to be watched.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let socket = config.docker.as_ref()?.socket.clone();
        Some(Self { socket, report: Arc::default() })
    }

    /// Starts to watch. What fails is a warning: the tunnel works without.
    pub(super) fn watch(&self, config: &Config, state_dir: &Path, census: &Arc<Census>) -> Result<Watcher, String> {
        let failed = |error: std::io::Error| format!("containers of Docker get no addresses: {error}");
        let state_dir = std::path::absolute(state_dir).map_err(failed)?;
        let settings = Settings { socket: self.socket.clone(), state_dir: state_dir.clone(), tun: config.tun.name.clone() };
        let beyond = Box::new(Arc::clone(census));
        let mut networks = Networks { state_dir, read: None };
        Watcher::start(settings, Box::new(move || networks.now()), beyond, &self.report).map_err(failed)
    }

    /// What is known of its containers.
    pub(super) fn views(&self) -> Vec<docker::View> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).containers.clone()
    }
}

/// What the status says of those that have not what they ask for.
pub(super) fn complaints(views: &[docker::View]) -> Vec<String> {
    let is_bad = |view: &&docker::View| !state(view.state).is_fine();
    let text = |view: &docker::View| {
        let why = view.why.as_deref().unwrap_or_default();
        format!("container {} of Docker is {}: {why}", view.name, state(view.state).name())
    };
    let mut said: Vec<String> = views.iter().filter(is_bad).take(COMPLAINTS).map(text).collect();
    let more = views.iter().filter(is_bad).count().saturating_sub(COMPLAINTS);
    if more > 0 {
        said.push(format!("{more} more containers of Docker have not what they ask for: `underpass ps` lists them"));
    }
    said
}

/// This host's networks: commands change them without us, so the file is looked at, and read if it is another one.
struct Networks {
    state_dir: PathBuf,
    read: Option<(Option<Stamp>, Arc<Known>)>,
}

impl Networks {
    fn now(&mut self) -> Result<Arc<Known>, String> {
        let stamp = List::stamp(&self.state_dir);
        if let Some((seen, known)) = &self.read
            && *seen == stamp
        {
            return Ok(Arc::clone(known));
        }
        let known = Arc::new(known(&self.state_dir)?);
        self.read = Some((stamp, Arc::clone(&known)));
        Ok(known)
    }
}

/// As they are now.
fn known(state_dir: &Path) -> Result<Known, String> {
    let list = List::read(state_dir).map_err(|error| error.to_string())?;
    let managed = list.managed.clone();
    let networks = list.networks.into_iter().map(|network| KnownNetwork {
        pool: network.pool,
        is_wanted: network.state.is_wanted(),
        spec: network.spec,
    });
    Ok(Known { networks: networks.collect(), managed })
}

/// For `underpass ps`.
pub(super) fn containers(host: &str, docker: Option<&Docker>) -> Containers {
    let mut all = Containers::new(Some(host.to_owned()));
    let Some(docker) = docker else { return all };
    let report = docker.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let why = match &report.link {
        Link::Watching => None,
        Link::Connecting => Some("not asked yet".to_owned()),
        Link::Away(why) => Some(why.clone()),
        Link::Broken => Some("the thread that watches it has failed; restart the agent".to_owned()),
    };
    let socket = docker.socket.display().to_string();
    all.docker = Some(DockerLink { socket, watching: why.is_none(), why });
    let container = |view: docker::View| Container {
        id: view.id,
        name: Some(view.name),
        aliases: view.aliases,
        ports: view.ports,
        runtime: RUNTIME.to_owned(),
        host: Some(host.to_owned()),
        network: view.network,
        addresses: view.addresses,
        interface: view.interface,
        state: state(view.state),
        why: view.why,
        since: None,
    };
    all.containers = report.containers.into_iter().map(container).collect();
    all
}

pub(super) const fn state(state: docker::State) -> ContainerState {
    match state {
        docker::State::Attached => ContainerState::Attached,
        docker::State::Waiting => ContainerState::Waiting,
        docker::State::Failed => ContainerState::Failed,
        docker::State::Disconnected => ContainerState::Disconnected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_what_it_asks_for_is_named_up_to_a_number() {
        let view = |name: &str, state, why: Option<&str>| docker::View {
            id: "0".repeat(64),
            name: name.to_owned(),
            aliases: Vec::new(),
            ports: Vec::new(),
            labels: Default::default(),
            network: None,
            addresses: Vec::new(),
            interface: None,
            state,
            why: why.map(str::to_owned),
        };
        let fine = view("web", docker::State::Attached, None);
        let bad = view("x", docker::State::Failed, Some("taken"));
        assert_eq!(complaints(&[fine.clone(), bad.clone()]), ["container x of Docker is failed: taken"]);
        let many: Vec<_> = (0..COMPLAINTS + 2).map(|_| bad.clone()).chain([fine]).collect();
        let said = complaints(&many);
        assert_eq!(said.len(), COMPLAINTS + 1);
        assert!(said[COMPLAINTS].starts_with("2 more containers of Docker "), "{}", said[COMPLAINTS]);
    }
}
