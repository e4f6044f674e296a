//! What a `network_driver` block says, checked and with every default filled in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A host's labels, or a container's.
pub type Labels = BTreeMap<String, String>;

/// The bridge's address as the gateway of IPv6, on every host: link-local, so it is in nobody's block and there is nothing to reserve.
pub const IPV6_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How a value begins that stands for a label of the host.
const HOST_LABEL: &str = "__host_label__:";

/// One `network_driver`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Driver {
    /// Line of the block, from 1.
    pub line: usize,
    /// The service that it stands in; empty if it stands by itself.
    pub service: String,
    /// `name`: what people call the driver.
    pub name: String,
    /// `description`.
    pub description: String,
    /// `default_network`: the network that comes with the driver.
    pub default_network: Option<DefaultNetwork>,
    /// `cni_config`, in the order in which the files run. Labels are not put in yet: who reads them for a host does that.
    pub cni_config: Vec<CniFile>,
    /// `network_metadata`.
    pub network_metadata: Map<String, Value>,
}

/// `default_network`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DefaultNetwork {
    /// `name`: by which containers choose the network.
    pub name: String,
    /// `description`.
    pub description: String,
    /// `host_ports`: whether containers may publish ports of the host.
    pub host_ports: bool,
    /// `subnets`, in the order in which addresses are taken from them. They do not overlap, and at most one is of IPv6.
    pub subnets: Vec<Subnet>,
    /// `dns`: name servers of the containers.
    pub dns: Vec<IpAddr>,
    /// `dns_search`.
    pub dns_search: Vec<String>,
    /// `metadata`.
    pub metadata: Map<String, Value>,
}

/// One of `subnets`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subnet {
    /// `network_address` and `cidr_size`.
    pub network: IpNet,
    /// `gateway`: the bridge's address on every host. The subnet's first address unless the file says otherwise; of IPv6 always
    /// [`IPV6_GATEWAY`].
    pub gateway: IpAddr,
    /// `start_address`: the first that a container can get.
    pub start: IpAddr,
    /// `end_address`: the last.
    pub end: IpAddr,
}

/// A file of `cni_config`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CniFile {
    /// Its name, such as `10-rancher.conf`.
    pub name: String,
    /// What a CNI plugin gets.
    pub netconf: Value,
}

impl CniFile {
    /// The plugins that it names: its own, and the one for addresses.
    pub fn plugins(&self) -> impl Iterator<Item = &str> {
        let both = [Some(&self.netconf), self.netconf.get("ipam")];
        both.into_iter().flatten().filter_map(|it| it.get("type").and_then(Value::as_str))
    }
}

impl Subnet {
    /// Addresses at the end of a subnet that no container gets unless `end_address` says otherwise: as many were always left.
    const LEFT_AT_END: u32 = 6;

    /// A subnet with every default: the first address is the gateway.
    #[must_use]
    pub fn whole(network: IpNet) -> Self {
        match network {
            IpNet::V4(ipv4) => {
                let first = u32::from(ipv4.network());
                let beyond = u32::from(ipv4.broadcast()).wrapping_add(1);
                let at = |number: u32| IpAddr::V4(Ipv4Addr::from(number));
                let end = at(beyond.wrapping_sub(Self::LEFT_AT_END));
                Self { network, gateway: at(first + 1), start: at(first + 2), end }
            }
            IpNet::V6(ipv6) => {
                let start = Ipv6Addr::from(u128::from(ipv6.network()) + 1);
                Self { network, gateway: IPV6_GATEWAY.into(), start: start.into(), end: ipv6.broadcast().into() }
            }
        }
    }

    /// Whether it is of IPv6.
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        matches!(self.network, IpNet::V6(_))
    }

    /// As a block, without what goes without saying.
    fn as_block(&self) -> Value {
        let whole = Self::whole(self.network);
        let mut block = Map::from_iter([("network_address".to_owned(), self.network.to_string().into())]);
        for (key, address, default) in [
            ("gateway", self.gateway, whole.gateway),
            ("start_address", self.start, whole.start),
            ("end_address", self.end, whole.end),
        ] {
            if address != default {
                block.insert(key.to_owned(), address.to_string().into());
            }
        }
        Value::Object(block)
    }
}

impl Driver {
    /// The CNI configuration files of a host with these labels: each text `__host_label__: NAME` is the value of that label, or
    /// nothing if the host does not have it.
    pub(super) fn cni_files(&self, labels: &Labels) -> Vec<CniFile> {
        let with_labels = |file: &CniFile| {
            let mut netconf = file.netconf.clone();
            put_in_labels(&mut netconf, labels);
            CniFile { name: file.name.clone(), netconf }
        };
        self.cni_config.iter().map(with_labels).collect()
    }

    /// The driver as a block of the agent's configuration, which says the same.
    #[must_use]
    pub fn as_block(&self) -> Value {
        let mut block = Map::from_iter([("name".to_owned(), self.name.clone().into())]);
        let texts = |items: Vec<String>| Value::from(items);
        if !self.description.is_empty() {
            block.insert("description".to_owned(), self.description.clone().into());
        }
        if let Some(network) = &self.default_network {
            let mut inner = Map::from_iter([("name".to_owned(), network.name.clone().into())]);
            if !network.description.is_empty() {
                inner.insert("description".to_owned(), network.description.clone().into());
            }
            inner.insert("host_ports".to_owned(), network.host_ports.into());
            if !network.subnets.is_empty() {
                inner.insert("subnets".to_owned(), network.subnets.iter().map(Subnet::as_block).collect());
            }
            if !network.dns.is_empty() {
                inner.insert("dns".to_owned(), texts(network.dns.iter().map(ToString::to_string).collect()));
            }
            if !network.dns_search.is_empty() {
                inner.insert("dns_search".to_owned(), texts(network.dns_search.clone()));
            }
            if !network.metadata.is_empty() {
                inner.insert("metadata".to_owned(), Value::Object(network.metadata.clone()));
            }
            block.insert("default_network".to_owned(), Value::Object(inner));
        }
        if !self.cni_config.is_empty() {
            let files = self.cni_config.iter().map(|file| (file.name.clone(), file.netconf.clone()));
            block.insert("cni_config".to_owned(), Value::Object(files.collect()));
        }
        if !self.network_metadata.is_empty() {
            block.insert("network_metadata".to_owned(), Value::Object(self.network_metadata.clone()));
        }
        Value::Object(block)
    }

    /// What the network tells about itself: the network's metadata, the driver's, and the CNI configuration.
    #[must_use]
    pub fn metadata(&self) -> Map<String, Value> {
        let mut all = self.default_network.as_ref().map(|network| network.metadata.clone()).unwrap_or_default();
        all.extend(self.network_metadata.clone());
        if !self.cni_config.is_empty() {
            let files = self.cni_config.iter().map(|file| (file.name.clone(), file.netconf.clone()));
            all.insert("cniConfig".to_owned(), Value::Object(files.collect()));
        }
        all
    }
}

fn put_in_labels(value: &mut Value, labels: &Labels) {
    match value {
        Value::String(text) => {
            if let Some(label) = text.strip_prefix(HOST_LABEL) {
                *text = labels.get(label.trim()).cloned().unwrap_or_default();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| put_in_labels(item, labels)),
        Value::Object(members) => members.values_mut().for_each(|member| put_in_labels(member, labels)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
