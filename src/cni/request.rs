//! What a runtime asks, checked.
//!
//! The rules are those of the specification (1.1.0, "CNI operations" and "Appendix: Examples") and what the reference implementation
//! enforces besides: a plugin that took more would teach configurations that no other takes.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::result::{Fault, Version};
use crate::ipam::About;
use crate::model::{PortMapping, Protocol};

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// Connect a container.
    Add,
    /// Disconnect it; what is gone already is no error.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Disconnect everybody but those listed.
    Gc,
    /// Could an ADD work?
    Status,
}

impl Command {
    const ALL: [Self; 5] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }

    /// The version that brought it.
    const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// Whether plugins from before 1.1.0 do not know it.
    pub(super) fn is_new(self) -> bool {
        self.since() >= Version::V1_1_0
    }

    /// Which variables it must have.
    const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            // The namespace may be gone.
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status => &[],
        }
    }
}

/// An address that somebody asked for, with the prefix length if one was said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub address: IpAddr,
    pub prefix_len: Option<u8>,
}

/// One call.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Request {
    pub command: Command,
    pub version: Version,
    /// Empty for GC and STATUS.
    pub container: String,
    /// May be empty for DEL.
    pub netns: String,
    pub interface: String,
    /// The name of the CNI network.
    pub network: String,
    /// The addresses that were asked for.
    pub wanted: Vec<Wanted>,
    /// The link-layer address that was asked for.
    pub mac: Option<[u8; 6]>,
    /// The pairs in `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// `CNI_PATH`: where other plugins are.
    pub path: String,
    /// `UNDERPASS_STATE_DIR`, for callers that pass an environment.
    pub state_dir: Option<String>,
    /// `UNDERPASS_RUN_DIR`, likewise.
    pub run_dir: Option<String>,
    pub netconf: Map<String, Value>,
}

type Variable<'v> = &'v dyn Fn(&str) -> Option<String>;

/// The version in a configuration, whatever else is wrong with it.
pub(super) fn stated_version(stdin: &[u8]) -> Option<Version> {
    let netconf: Value = serde_json::from_slice(stdin).ok()?;
    match netconf.get("cniVersion") {
        Some(version) => Version::parse(version.as_str()?),
        None => Some(Version::V0_1_0),
    }
}

impl Request {
    pub(super) fn parse(command: &str, variable: Variable<'_>, stdin: &[u8]) -> Result<Self, Fault> {
        let Some(command) = Command::ALL.into_iter().find(|known| known.name() == command) else {
            return Err(Fault::environment(format!("unknown CNI_COMMAND: {command}")));
        };
        let value = |name: &str| variable(name).unwrap_or_default();
        let missing: Vec<&str> = command.needs().iter().copied().filter(|name| value(name).is_empty()).collect();
        if !missing.is_empty() {
            return Err(Fault::environment(format!("required env variables [{}] missing", missing.join(","))));
        }
        let netconf: Map<String, Value> = serde_json::from_slice(stdin)
            .map_err(|error| Fault::decode(format!("the configuration is no JSON object: {error}")))?;
        let version = version(&netconf)?;
        if version < command.since() {
            let message = format!(
                "{} needs CNI {}, and the configuration is of {}",
                command.name(),
                command.since().text(),
                version.text()
            );
            return Err(Fault::incompatible(message));
        }
        let network = network_name(&netconf)?;
        let (container, interface, netns) = (value("CNI_CONTAINERID"), value("CNI_IFNAME"), value("CNI_NETNS"));
        if !command.needs().is_empty() {
            check_container(&container)?;
            check_interface(&interface)?;
        }
        if command == Command::Add && !overridden(&value("CNI_NETNS_OVERRIDE")) && is_own_namespace(&netns) {
            let message = format!("CNI_NETNS {netns} is the host's own network namespace");
            return Err(Fault::namespace(message));
        }
        let args = pairs(&value("CNI_ARGS"))?;
        let (wanted, mac) = (wanted(&netconf, &args)?, mac(&netconf, &args)?);
        let path = value("CNI_PATH");
        let folder = |name: &str| variable(name).filter(|path| !path.is_empty());
        let (state_dir, run_dir) = (folder("UNDERPASS_STATE_DIR"), folder("UNDERPASS_RUN_DIR"));
        let asked = Self {
            command,
            version,
            container,
            netns,
            interface,
            network,
            wanted,
            mac,
            args,
            path,
            state_dir,
            run_dir,
            netconf,
        };
        Ok(asked)
    }

    /// `portMappings`: the container's ports that are published at its host.
    pub(super) fn port_mappings(&self) -> Result<Vec<PortMapping>, Fault> {
        let wrong = |item: &Value| {
            let expected = "expected {hostPort, containerPort, protocol, hostIP}";
            Fault::configuration(format!("runtimeConfig.portMappings: {expected}, got {item}"))
        };
        let items = match self.capability("portMappings") {
            Value::Null => return Ok(Vec::new()),
            Value::Array(items) => items,
            other => return Err(wrong(other)),
        };
        items.iter().map(|item| port_mapping(item).ok_or_else(|| wrong(item))).collect()
    }

    /// What the runtime says of the container besides: its name, which podman says as the name of a pod, its aliases on this network, and
    /// its ports.
    pub(super) fn about(&self) -> Result<About, Fault> {
        let wrong = |found: &Value| {
            Fault::configuration(format!("runtimeConfig.aliases: expected {{network: [names]}}, got {found}"))
        };
        let aliases = match self.capability("aliases") {
            Value::Null => &Value::Null,
            Value::Object(networks) => networks.get(&self.network).unwrap_or(&Value::Null),
            other => return Err(wrong(other)),
        };
        let aliases: Vec<&str> = match aliases {
            Value::Null => Vec::new(),
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().ok_or_else(|| wrong(aliases))).collect::<Result<_, _>>()?
            }
            other => return Err(wrong(other)),
        };
        let name = argument(&self.args, &["K8S_POD_NAME"]);
        Ok(About::new(&self.container, name, aliases, &self.port_mappings()?))
    }

    fn capability(&self, key: &str) -> &Value {
        self.netconf.get("runtimeConfig").and_then(|config| config.get(key)).unwrap_or(&Value::Null)
    }
}

fn port_mapping(item: &Value) -> Option<PortMapping> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let protocol = item.get("protocol").and_then(Value::as_str).unwrap_or("tcp");
    let address = item.get("hostIP").and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(PortMapping {
        protocol: Protocol::of_name(protocol)?,
        address: address.map(str::parse).transpose().ok()?,
        container: port(item.get("containerPort")?).filter(|port| *port != 0)?,
        host: item.get("hostPort").and_then(port).filter(|port| *port != 0),
    })
}

fn version(netconf: &Map<String, Value>) -> Result<Version, Fault> {
    let text = match netconf.get("cniVersion") {
        None => return Ok(Version::V0_1_0),
        Some(Value::String(text)) => text.as_str(),
        Some(_) => return Err(Fault::decode("cniVersion is no text")),
    };
    if text.is_empty() {
        return Ok(Version::V0_1_0);
    }
    let known = || Version::ALL.iter().map(|version| version.text()).collect::<Vec<_>>().join(", ");
    Version::parse(text).ok_or_else(|| Fault::incompatible(format!("CNI version {text:?}; this plugin knows {}", known())))
}

/// Letters, digits, `_`, `.` and `-`, of which the first is a letter or digit.
fn is_name(text: &str) -> bool {
    let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
    text.bytes().all(fine) && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

fn network_name(netconf: &Map<String, Value>) -> Result<String, Fault> {
    match netconf.get("name") {
        None => Err(Fault::configuration("missing network name")),
        Some(Value::String(name)) if is_name(name) => Ok(name.clone()),
        Some(name) => {
            Err(Fault::configuration(format!("invalid network name {name}: expected letters, digits, '_', '.' and '-'")))
        }
    }
}

fn check_container(id: &str) -> Result<(), Fault> {
    if is_name(id) {
        return Ok(());
    }
    Err(Fault::environment(format!("invalid CNI_CONTAINERID {id:?}: expected letters, digits, '_', '.' and '-'")))
}

fn check_interface(name: &str) -> Result<(), Fault> {
    /// IFNAMSIZ without the NUL.
    const MAX: usize = 15;
    let fine = name.len() <= MAX
        && name != "."
        && name != ".."
        && !name.chars().any(|character| matches!(character, '/' | ':') || character.is_whitespace());
    if fine { Ok(()) } else { Err(Fault::environment(format!("invalid CNI_IFNAME {name:?}"))) }
}

fn overridden(value: &str) -> bool {
    matches!(value, "1" | "true" | "TRUE" | "True")
}

/// Whether the path leads to the namespace that we are in. One that leads nowhere does not.
fn is_own_namespace(path: &str) -> bool {
    let id = |path: &str| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let own = id("/proc/self/ns/net");
    own.is_some() && own == id(path)
}

/// The addresses that were asked for, in the order of precedence of the conventions: `runtimeConfig.ips`, `args.cni.ips`, then the
/// variable's `IP`, and `IPAddress`, which is how Rancher said it.
fn wanted(netconf: &Map<String, Value>, args: &[(String, String)]) -> Result<Vec<Wanted>, Fault> {
    for (place, found) in in_config(netconf, "ips") {
        match found {
            Value::Null => {}
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                let text = |item: &Value| item.as_str().map(str::to_owned);
                let texts: Option<Vec<String>> = items.iter().map(text).collect();
                let texts = texts.ok_or_else(|| Fault::configuration(format!("{place} is no list of texts")))?;
                return texts.iter().map(|text| one_wanted(text)).collect::<Result<_, _>>().map_err(Fault::configuration);
            }
            _ => return Err(Fault::configuration(format!("{place} is no list of addresses"))),
        }
    }
    let texts = argument(args, &["IP", "IPAddress"]).into_iter().flat_map(|text| text.split(',').map(str::trim));
    texts.map(one_wanted).collect::<Result<_, _>>().map_err(|why| Fault::environment(format!("CNI_ARGS: {why}")))
}

/// What `runtimeConfig` and `args.cni` say of a key, in the order in which they count.
fn in_config<'n>(netconf: &'n Map<String, Value>, key: &str) -> [(String, &'n Value); 2] {
    let runtime = netconf.get("runtimeConfig").and_then(|config| config.get(key));
    let args = netconf.get("args").and_then(|args| args.get("cni")?.get(key));
    [("runtimeConfig", runtime), ("args.cni", args)]
        .map(|(place, found)| (format!("{place}.{key}"), found.unwrap_or(&Value::Null)))
}

/// What `CNI_ARGS` say by the first of these keys that says anything.
pub(super) fn argument<'a>(args: &'a [(String, String)], keys: &[&str]) -> Option<&'a str> {
    let said = |key: &&str| args.iter().find(|(name, value)| name == key && !value.is_empty());
    keys.iter().find_map(said).map(|(_, value)| value.as_str())
}

/// `CNI_ARGS`.
fn pairs(args: &str) -> Result<Vec<(String, String)>, Fault> {
    let wrong = |pair: &str| Fault::environment(format!("CNI_ARGS: {pair:?} is no KEY=VALUE"));
    let pairs = args.split(';').filter(|pair| !pair.is_empty());
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    pairs.map(|pair| pair.split_once('=').map(owned).ok_or_else(|| wrong(pair))).collect()
}

/// The link-layer address that was asked for, by the same ways: `MACAddress` is how Rancher said it.
fn mac(netconf: &Map<String, Value>, args: &[(String, String)]) -> Result<Option<[u8; 6]>, Fault> {
    for (place, found) in in_config(netconf, "mac") {
        match found {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => return one_mac(text).map(Some).map_err(Fault::configuration),
            _ => return Err(Fault::configuration(format!("{place} is no text"))),
        }
    }
    argument(args, &["MAC", "MACAddress"])
        .map(|text| one_mac(text).map_err(|why| Fault::environment(format!("CNI_ARGS: {why}"))))
        .transpose()
}

/// A unicast address in six groups.
pub(super) fn one_mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("{text:?} is no link-layer address");
    let mut octets = [0; 6];
    let mut groups = text.split(':');
    for octet in &mut octets {
        let group = groups.next().filter(|group| matches!(group.len(), 1 | 2)).ok_or_else(wrong)?;
        *octet = u8::from_str_radix(group, 16).map_err(|_| wrong())?;
    }
    let is_unicast = octets[0] & 1 == 0 && octets != [0; 6];
    if groups.next().is_none() && is_unicast { Ok(octets) } else { Err(wrong()) }
}

fn one_wanted(text: &str) -> Result<Wanted, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Wanted { address, prefix_len: None });
    }
    let net: IpNet = text.parse().map_err(|_| format!("{text:?} is no address"))?;
    Ok(Wanted { address: net.addr(), prefix_len: Some(net.prefix_len()) })
}
