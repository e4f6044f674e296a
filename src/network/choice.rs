//! Which network a container gets: from what Docker and its labels say of it to a typed choice.
//!
//! ```text
//! io.rancher.cni.network: NAME            that network, whatever else is said
//! mode managed, or a network's name       that network
//! mode none, bridge or default,
//!   and io.rancher.container.network      the managed network
//! everything else                         Docker's own business: the container is left alone
//! ```
//!
//! The labels are Rancher's. There a label that made no sense was ignored, and a wished address that was taken became another
//! one; here both are errors, as nobody finds out otherwise.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Labels;
use crate::config::scalar;
use crate::config::section::shortened;
use crate::model::{MANAGED, MacAddress, listed};

/// The label by which a container of Docker asks for the managed network.
pub const LABEL_NETWORK: &str = "io.rancher.container.network";

/// The label that names a network.
pub const LABEL_CNI_NETWORK: &str = "io.rancher.cni.network";

/// The label with the address that the container has.
pub const LABEL_IP: &str = "io.rancher.container.ip";

/// The label with addresses of which the container wants one.
pub const LABEL_REQUESTED_IP: &str = "io.rancher.container.requested_ip";

/// The label with the container's MAC address.
pub const LABEL_MAC: &str = "io.rancher.container.mac_address";

/// The label with the octets that the network takes off the MTU.
pub const LABEL_MTU_OVERHEAD: &str = "io.rancher.cni.link_mtu_overhead";

/// The label that turns our resolver on or off.
pub const LABEL_DNS: &str = "io.rancher.container.dns";

/// Labels of the original that do nothing here: names of hosts and resolvers' orders were its own servers' work, and the process of a
/// container does not wait for its address.
const IDLE: [&str; 3] =
    ["io.rancher.container.hostname_override", "io.rancher.container.dns.priority", "io.rancher.cni.wait"];

/// Addresses in one label.
const MAX_ADDRESSES: usize = 64;

/// What there is to choose from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choices<'n> {
    /// Our networks.
    pub networks: &'n [KnownNetwork<'n>],
    /// The name of the managed one, if there is one.
    pub managed: Option<&'n str>,
    /// Docker's own networks besides the built-in ones: whoever is in one of these is left alone.
    pub docker: &'n [&'n str],
}

/// A network of ours.
#[derive(Clone, Copy, Debug)]
pub struct KnownNetwork<'n> {
    /// Its name.
    pub name: &'n str,
    /// Its subnets; none if some other plugin decides.
    pub subnets: &'n [IpNet],
}

/// Where a container belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// On which network.
    pub place: Place,
    /// Whether it wants our resolver: by default who is on a network of ours does.
    pub dns: Option<bool>,
    /// What was asked for and has no effect, in words.
    pub remarks: Vec<String>,
}

/// On which network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Docker's own: the container is left alone.
    Docker(DockerMode),
    /// One of ours.
    Network(Attachment),
}

/// Docker's own network modes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DockerMode {
    /// `host`: no namespace of its own.
    Host,
    /// `none`: a namespace with nothing in it.
    None,
    /// `bridge`, which is what `default` and nothing mean.
    Bridge,
    /// `container:<x>`: another container's namespace.
    Container(String),
    /// A network that somebody made with Docker.
    Network(String),
}

/// How a container is on a network of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The network's own name, never `managed`.
    pub network: String,
    /// Whether Docker gives the container an address as well: then ours stands beside it.
    pub beside_docker: bool,
    /// Which address it gets.
    pub address: AddressWish,
    /// Its MAC address, if it must be this one.
    pub mac: Option<MacAddress>,
    /// Octets that the network takes off the MTU, instead of what its driver says.
    pub link_mtu_overhead: Option<u16>,
    /// Whether it asks the name servers that the network's driver names.
    pub dns: bool,
}

/// Which address a container gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AddressWish {
    /// Any free one.
    Any,
    /// This one, with the prefix length that it sees if that was said.
    This(IpAddr, Option<u8>),
    /// One of these, the first that is free. Never empty.
    OneOf(Vec<IpAddr>),
}

/// Why there is no choice.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChoiceError {
    /// No network has that name.
    #[error("no network is called {name:?}{}; there are {}", meant(.name, .known), listed(.known))]
    Unknown {
        /// The name.
        name: String,
        /// Names that there are.
        known: Vec<String>,
    },
    /// There is no default network.
    #[error("there is no managed network: no driver has brought one")]
    NoManaged,
    /// A label makes no sense.
    #[error("label {label}: expected {expected}, got \"{got}\"")]
    Label {
        /// Its name.
        label: &'static str,
        /// What would have made sense.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// The address is none of the network's.
    #[error("label {label}: {address} is in none of the subnets of network {network} ({})", listed(.subnets))]
    Outside {
        /// The label.
        label: &'static str,
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// Its subnets.
        subnets: Vec<IpNet>,
    },
    /// The container shares somebody else's namespace.
    #[error(
        "label {LABEL_CNI_NETWORK} asks for network {network}, but with mode {mode} the container has no network namespace of its own"
    )]
    Shared {
        /// The network.
        network: String,
        /// The mode.
        mode: String,
    },
}

fn meant(name: &str, known: &[String]) -> String {
    let words: Vec<&str> = known.iter().map(String::as_str).collect();
    scalar::closest(name, &words).map_or_else(String::new, |word| format!(" (did you mean {word:?}?)"))
}

/// Chooses. `mode` is Docker's network mode (`HostConfig.NetworkMode`), or `network_mode` of a compose file.
///
/// # Errors
/// [`ChoiceError`]. Labels are read only as far as they have an effect: those of a container that is left alone are not, but for
/// the one that asks for a network and the resolver's.
pub fn choose(mode: &str, labels: &Labels, choices: &Choices<'_>) -> Result<Choice, ChoiceError> {
    let dns = truth(labels, LABEL_DNS)?;
    let wants_managed = truth(labels, LABEL_NETWORK)?.unwrap_or(false);
    let named = label(labels, LABEL_CNI_NETWORK).filter(|name| !name.is_empty());
    let docker = docker_mode(mode, choices);
    let mut remarks = Vec::new();
    let network = match (named, &docker) {
        (Some(name), Some(DockerMode::Host | DockerMode::Container(_))) => {
            return Err(ChoiceError::Shared { network: name.to_owned(), mode: mode.to_owned() });
        }
        (Some(name), _) if is_dockers_word(name) => {
            let expected = format!("the name of a network ({})", listed(&choices.names()));
            return Err(ChoiceError::Label { label: LABEL_CNI_NETWORK, expected, got: shortened(name) });
        }
        (Some(name), _) => choices.find(name)?,
        (None, None) => choices.find(mode)?,
        (None, Some(DockerMode::None | DockerMode::Bridge)) if wants_managed => choices.find(MANAGED)?,
        (None, Some(docker)) => {
            if wants_managed {
                remarks.push(format!("label {LABEL_NETWORK} has no effect with mode {mode}"));
            }
            return Ok(Choice { place: Place::Docker(docker.clone()), dns, remarks });
        }
    };
    let attachment = Attachment {
        network: network.name.to_owned(),
        beside_docker: matches!(docker, Some(DockerMode::Bridge | DockerMode::Network(_))),
        address: address(labels, &network)?,
        mac: mac(labels)?,
        link_mtu_overhead: overhead(labels)?,
        dns: dns.unwrap_or(true),
    };
    Ok(Choice { place: Place::Network(attachment), dns, remarks })
}

/// Labels of a container on a network of ours that do nothing, in words: some of the original's, and misspelt ones. Others are somebody
/// else's.
#[must_use]
pub fn idle_labels(labels: &Labels) -> Vec<String> {
    let known = [LABEL_NETWORK, LABEL_CNI_NETWORK, LABEL_IP, LABEL_REQUESTED_IP, LABEL_MAC, LABEL_MTU_OVERHEAD, LABEL_DNS];
    let one = |label: &String| {
        let name = label.strip_prefix("annotation.").unwrap_or(label);
        if known.contains(&name) {
            return None;
        }
        if IDLE.contains(&name) {
            return Some(format!("label {name} has no effect here"));
        }
        // Only the last word may be misspelt: the original has many labels that look alike.
        let (start, last) = name.rsplit_once('.')?;
        let words: Vec<&str> = known.iter().filter_map(|it| it.strip_prefix(start)?.strip_prefix('.')).collect();
        let meant = scalar::closest(last, &words)?;
        Some(format!("label {} has no effect: did you mean {start}.{meant}?", shortened(name)))
    };
    labels.keys().filter_map(one).collect()
}

impl<'n> Choices<'n> {
    /// Every name that can be chosen.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let managed = self.managed.map(|_| MANAGED);
        managed.into_iter().chain(self.networks.iter().map(|network| network.name)).map(str::to_owned).collect()
    }

    fn find(&self, name: &str) -> Result<KnownNetwork<'n>, ChoiceError> {
        let own = match name {
            MANAGED => self.managed.ok_or(ChoiceError::NoManaged)?,
            _ => name,
        };
        let found = self.networks.iter().find(|network| network.name == own).copied();
        found.ok_or_else(|| {
            let docker = ["host", "none", "bridge", "container:<x>"].into_iter().chain(self.docker.iter().copied());
            let known = self.names().into_iter().chain(docker.map(str::to_owned)).collect();
            ChoiceError::Unknown { name: shortened(own), known }
        })
    }
}

/// What Docker makes of a mode; none if it is a name of ours, or nobody's.
fn docker_mode(mode: &str, choices: &Choices<'_>) -> Option<DockerMode> {
    match mode {
        "" | "default" | "bridge" => Some(DockerMode::Bridge),
        "host" => Some(DockerMode::Host),
        "none" => Some(DockerMode::None),
        _ => match mode.strip_prefix("container:") {
            Some(other) => Some(DockerMode::Container(other.to_owned())),
            None if choices.docker.contains(&mode) => Some(DockerMode::Network(mode.to_owned())),
            None => None,
        },
    }
}

fn is_dockers_word(name: &str) -> bool {
    matches!(name, "host" | "none" | "bridge" | "default") || name.starts_with("container:")
}

/// A label's value, without blanks around it. Orchestrators put `annotation.` before the names of some.
fn label<'l>(labels: &'l Labels, name: &str) -> Option<&'l str> {
    labels.get(name).or_else(|| labels.get(&format!("annotation.{name}"))).map(|value| value.trim())
}

fn wrong(label: &'static str, expected: &str, got: &str) -> ChoiceError {
    ChoiceError::Label { label, expected: expected.to_owned(), got: shortened(got) }
}

fn truth(labels: &Labels, name: &'static str) -> Result<Option<bool>, ChoiceError> {
    let Some(text) = label(labels, name) else { return Ok(None) };
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        _ => Err(wrong(name, "true or false", text)),
    }
}

/// The address that it has counts more than those that it wishes.
fn address(labels: &Labels, network: &KnownNetwork<'_>) -> Result<AddressWish, ChoiceError> {
    if let Some(text) = label(labels, LABEL_IP).filter(|text| !text.is_empty()) {
        let parsed = text.parse().map(|address: IpAddr| (address, None));
        let parsed = parsed.or_else(|_| text.parse().map(|net: IpNet| (net.addr(), Some(net.prefix_len()))));
        let (address, length) = parsed.map_err(|_| wrong(LABEL_IP, "an address such as 10.42.1.7 or 10.42.1.7/16", text))?;
        inside(LABEL_IP, address, network)?;
        return Ok(AddressWish::This(address, length));
    }
    let Some(text) = label(labels, LABEL_REQUESTED_IP).filter(|text| !text.is_empty()) else {
        return Ok(AddressWish::Any);
    };
    let expected = "an address such as 10.42.1.7, or several with commas between them";
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    if parts.len() > MAX_ADDRESSES {
        return Err(wrong(LABEL_REQUESTED_IP, &format!("at most {MAX_ADDRESSES} addresses"), text));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in parts {
        let address = part.parse().map_err(|_| wrong(LABEL_REQUESTED_IP, expected, text))?;
        inside(LABEL_REQUESTED_IP, address, network)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(AddressWish::OneOf(addresses))
}

/// Whether the network can have it. Subnets of IPv4 alone say nothing of IPv6.
fn inside(label: &'static str, address: IpAddr, network: &KnownNetwork<'_>) -> Result<(), ChoiceError> {
    let speaks = |subnet: &&IpNet| address.is_ipv4() || subnet.addr().is_ipv6();
    let mut subnets = network.subnets.iter().filter(speaks).peekable();
    if subnets.peek().is_none() || subnets.any(|subnet| subnet.contains(&address)) {
        return Ok(());
    }
    Err(ChoiceError::Outside { label, address, network: network.name.to_owned(), subnets: network.subnets.to_vec() })
}

fn mac(labels: &Labels) -> Result<Option<MacAddress>, ChoiceError> {
    let Some(text) = label(labels, LABEL_MAC).filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = || wrong(LABEL_MAC, "the address of one interface such as 02:42:0a:2a:01:07", text);
    MacAddress::parse(text).map(Some).ok_or_else(wrong)
}

fn overhead(labels: &Labels) -> Result<Option<u16>, ChoiceError> {
    let Some(text) = label(labels, LABEL_MTU_OVERHEAD).filter(|text| !text.is_empty()) else { return Ok(None) };
    match scalar::number(text, 0, u64::from(u16::MAX)) {
        Ok(octets) => Ok(Some(octets as u16)),
        Err(expected) => Err(wrong(LABEL_MTU_OVERHEAD, &expected.what, text)),
    }
}

#[cfg(test)]
mod tests;
