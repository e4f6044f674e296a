//! Who is on a network.
//!
//! Three places tell: our journal of addresses, the notes that libcni keeps for every runtime (`results/` in `cni.cache_dir`), and the
//! reference plugin `host-local`'s own (`networks/` there, or its `dataDir`). So a driver of somebody else's plugins is not removed
//! below its containers either.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::list::{HostFacts, Network};
use crate::ipam::{Ipam, Namespaces};
use crate::model::MANAGED;
use crate::observe::plain;
use crate::sys::file;

/// Largest note that is read: a result has some hundred octets, its configuration some thousand.
const MAX_NOTE: usize = 1024 * 1024;

/// A container's interface on a network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Container {
    /// The container's id, as its runtime calls it.
    pub container: String,
    /// The interface in it.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl std::fmt::Display for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}", plain(&self.container), plain(&self.interface))?;
        for address in &self.addresses {
            write!(f, " {address}")?;
        }
        write!(f, ")")
    }
}

/// Everybody on a network. What cannot be read tells nothing.
pub(super) fn containers(network: &Network, is_managed: bool, host: &HostFacts, state_dir: &Path) -> Vec<Container> {
    let mut found: BTreeMap<(String, String), Vec<IpAddr>> = BTreeMap::new();
    let mut add = |container: String, interface: String, addresses: Vec<IpAddr>| {
        let known = found.entry((container, interface)).or_default();
        known.extend(addresses);
        known.sort();
        known.dedup();
    };
    if let Some(pool) = &network.pool
        && let Ok(book) = Ipam::look(state_dir)
        && let Some(pool) = book.network(pool)
    {
        let namespaces = Namespaces::look();
        for lease in pool.leases().filter(|lease| !lease.owner.is_host() && !namespaces.is_gone(lease)) {
            add(lease.owner.container.clone(), lease.owner.interface.clone(), lease.addresses.clone());
        }
    }
    let mut names = vec![network.spec.name.clone()];
    names.extend(is_managed.then(|| MANAGED.to_owned()));
    for note in notes(&host.cache_dir.join("results")) {
        if let Some((container, interface, addresses)) = attachment(&note, &names) {
            add(container, interface, addresses);
        }
    }
    for folder in host_local_folders(network, &names, host) {
        for (address, text) in host_local(&folder) {
            let mut lines = text.lines().map(str::trim);
            let container = lines.next().unwrap_or_default().to_owned();
            let interface = lines.next().unwrap_or("eth0").to_owned();
            add(container, interface, vec![address]);
        }
    }
    let list = found.into_iter();
    list.map(|((container, interface), addresses)| Container { container, interface, addresses }).collect()
}

/// What containers are called by who started them, if libcni noted that: by their ids.
pub(super) fn names(host: &HostFacts) -> BTreeMap<String, String> {
    /// Kubernetes' word, which podman uses as well.
    const NAME: &str = "K8S_POD_NAME";
    let pair = |argument: &Value| {
        let text = |index: usize| argument.get(index).and_then(Value::as_str);
        text(1).filter(|name| text(0) == Some(NAME) && !name.is_empty()).map(str::to_owned)
    };
    let named = |note: Value| {
        let id = note.get("containerId")?.as_str()?.to_owned();
        Some((id, note.get("cniArgs")?.as_array()?.iter().find_map(pair)?))
    };
    notes(&host.cache_dir.join("results")).into_iter().filter_map(named).collect()
}

fn notes(folder: &Path) -> Vec<Value> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| serde_json::from_str(&read_small(&entry.path())?).ok()).collect()
}

fn read_small(path: &Path) -> Option<String> {
    let octets = file::open(path).and_then(|file| file::read_bounded(&file, MAX_NOTE + 1)).ok()?;
    let text = std::str::from_utf8(octets.expose()).ok()?;
    (text.len() <= MAX_NOTE).then(|| text.to_owned())
}

/// What libcni notes of an attachment, if it is to one of these networks.
fn attachment(note: &Value, names: &[String]) -> Option<(String, String, Vec<IpAddr>)> {
    let text = |key: &str| note.get(key).and_then(Value::as_str);
    if text("kind")? != "cniCacheV1" || !names.iter().any(|name| Some(name.as_str()) == text("networkName")) {
        return None;
    }
    let address = |value: &Value| value.as_str().and_then(|text| text.parse::<IpNet>().ok()).map(|net| net.addr());
    let result = note.get("result");
    let listed = result.and_then(|result| result.get("ips")).and_then(Value::as_array).into_iter().flatten();
    let mut addresses: Vec<IpAddr> = listed.filter_map(|ip| address(ip.get("address")?)).collect();
    let old = ["ip4", "ip6"].into_iter().filter_map(|family| result?.get(family)?.get("ip"));
    addresses.extend(old.filter_map(address));
    Some((text("containerId")?.to_owned(), text("ifName")?.to_owned(), addresses))
}

/// Where `host-local` keeps what it gave to this network.
fn host_local_folders(network: &Network, names: &[String], host: &HostFacts) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for file in &network.spec.cni_config {
        let Some(ipam) = file.netconf.get("ipam").filter(|ipam| ipam.get("type") == Some(&"host-local".into())) else {
            continue;
        };
        let data = ipam.get("dataDir").and_then(Value::as_str).map(PathBuf::from);
        let data = data.unwrap_or_else(|| host.cache_dir.join("networks"));
        let own = file.netconf.get("name").and_then(Value::as_str).map(str::to_owned);
        folders.extend(names.iter().cloned().chain(own).map(|name| data.join(name)));
    }
    folders.sort();
    folders.dedup();
    folders
}

/// Files whose names are addresses, and what is in them.
fn host_local(folder: &Path) -> Vec<(IpAddr, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let entry = |entry: fs::DirEntry| {
        let address = entry.file_name().to_str()?.replace('_', ":").parse().ok()?;
        Some((address, read_small(&entry.path())?))
    };
    entries.filter_map(entry).collect()
}
