//! The networks of this host, in one file of the state directory.
//!
//! Agent and commands change it under one lock, each reading it anew, so a command needs no agent: what the agent knows of this
//! host stands in the file as well.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::NetworksError;
use super::usage::Container;
use crate::ipam::Seconds;
use crate::network::{OnHost, Spec};
use crate::sys::file::{self, Locked, Stamp};

/// The file in the state directory.
const NETWORKS: &str = "networks.json";

/// Its lock: the file itself is replaced at each change.
const LOCK: &str = "networks.lock";

/// The `schema` of the file.
const SCHEMA: &str = "underpass.network-list/1";

/// How long others may hold the lock: they write a few small files.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every network, and what the agent said of this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct List {
    schema: String,
    /// The name of the default network.
    pub managed: Option<String>,
    /// This host; none if no agent has run.
    pub host: Option<HostFacts>,
    /// The networks, in the order in which they came.
    pub networks: Vec<Network>,
}

/// What networks must know of this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostFacts {
    /// The agent's.
    pub run_dir: PathBuf,
    /// `cni.conf_dir`.
    pub conf_dir: PathBuf,
    /// `cni.bin_dir`.
    pub bin_dir: PathBuf,
    /// `cni.cache_dir`.
    pub cache_dir: PathBuf,
    /// This host's blocks.
    pub blocks: Vec<IpNet>,
    /// Its own addresses in them.
    pub addresses: Vec<IpAddr>,
    /// The TUN device.
    pub tun: String,
}

/// Who wanted a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A driver of the configuration.
    Driver,
    /// `underpass net create`.
    Command,
}

/// How a network is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Containers can join it.
    Active,
    /// It should be, and something is in the way.
    Failed,
    /// `underpass net rm` removed it, while its driver is still configured: it does not come back by itself.
    Removed,
    /// It was removed by force, and some container was on it and still is there.
    Disconnected,
}

impl State {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Failed => "failed",
            Self::Removed => "removed",
            Self::Disconnected => "disconnected",
        }
    }

    /// Whether it is to be there.
    #[must_use]
    pub const fn is_wanted(self) -> bool {
        matches!(self, Self::Active | Self::Failed)
    }
}

/// A network of this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// What it is.
    #[serde(flatten)]
    pub spec: Spec,
    /// Who wanted it.
    pub origin: Origin,
    /// How it is.
    pub state: State,
    /// What is in the way, if it failed.
    pub problem: Option<String>,
    /// By which name the journal of addresses knows it; none if another plugin gives them.
    pub pool: Option<String>,
    /// When it was made.
    pub since: Seconds,
    /// When it was removed.
    pub removed: Option<Seconds>,
    /// Whoever was on it when it was removed by force.
    #[serde(default)]
    pub left: Vec<Container>,
}

impl Default for List {
    fn default() -> Self {
        Self { schema: SCHEMA.to_owned(), managed: None, host: None, networks: Vec::new() }
    }
}

impl List {
    /// What the file says; an empty list if there is none.
    ///
    /// # Errors
    /// [`NetworksError::Io`], or that it was changed by somebody else.
    pub fn read(state_dir: &Path) -> Result<Self, NetworksError> {
        let path = state_dir.join(NETWORKS);
        let octets = match std::fs::read(&path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(NetworksError::Io(path, error)),
        };
        let list: Self = serde_json::from_slice(&octets).map_err(|error| NetworksError::Damaged(path.clone(), error))?;
        if list.schema != SCHEMA {
            return Err(NetworksError::Newer(path));
        }
        Ok(list)
    }

    /// The file's stamp: another one if anybody has changed it.
    pub(in crate::agent) fn stamp(state_dir: &Path) -> Option<Stamp> {
        file::stamp(&state_dir.join(NETWORKS))
    }

    /// Writes the file; only who holds the lock does.
    pub(super) fn write(&self, state_dir: &Path, _lock: &ListLock) -> Result<(), NetworksError> {
        let path = state_dir.join(NETWORKS);
        let text = serde_json::to_string_pretty(self).map_err(|error| NetworksError::Damaged(path.clone(), error))?;
        file::replace(&path, (text + "\n").as_bytes(), 0o600).map_err(|error| NetworksError::Io(path, error))
    }

    /// The network of that name; `managed` is the default one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Network> {
        let name = self.resolve(name)?;
        self.networks.iter().find(|network| network.spec.name == name)
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Option<&mut Network> {
        let name = self.resolve(name)?.to_owned();
        self.networks.iter_mut().find(|network| network.spec.name == name)
    }

    fn resolve<'n>(&'n self, name: &'n str) -> Option<&'n str> {
        if name == crate::model::MANAGED { self.managed.as_deref() } else { Some(name) }
    }

    /// Whether it is the default network.
    #[must_use]
    pub fn is_managed(&self, network: &Network) -> bool {
        self.managed.as_deref() == Some(&network.spec.name)
    }

    /// Every network that containers can join.
    pub fn wanted(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter().filter(|network| network.state.is_wanted())
    }
}

impl Network {
    pub(super) fn new(spec: Spec, origin: Origin, now: Seconds) -> Self {
        Self { spec, origin, state: State::Active, problem: None, pool: None, since: now, removed: None, left: Vec::new() }
    }

    /// What this host adds to its configuration.
    pub(super) fn on_host<'h>(&'h self, host: &'h HostFacts, state_dir: &'h Path) -> OnHost<'h> {
        OnHost { run_dir: &host.run_dir, tun: &host.tun, state_dir, pool: self.pool.as_deref(), blocks: &host.blocks }
    }
}

/// Whoever has this may change the networks of this host.
#[derive(Debug)]
pub(super) struct ListLock {
    _held: Locked,
}

impl ListLock {
    /// Waits for the others.
    pub(super) fn take(state_dir: &Path) -> Result<Self, NetworksError> {
        let path = state_dir.join(LOCK);
        let mut options = OpenOptions::new();
        let opened = file::make_folder(state_dir, 0o700)
            .and_then(|()| options.write(true).create(true).truncate(false).mode(0o600).open(&path));
        match opened.and_then(|file| Locked::exclusive(file, PATIENCE)) {
            Ok(held) => Ok(Self { _held: held }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(NetworksError::Locked(path)),
            Err(error) => Err(NetworksError::Io(path, error)),
        }
    }
}
