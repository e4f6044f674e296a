//! What a `network_driver` block says, checked and with every default filled in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::Serialize;
use serde_json::{Map, Value};

/// A host's labels.
pub type Labels = BTreeMap<String, String>;

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
    /// `cni_config`, in the order in which the files run. Labels are not put in yet: [`Driver::cni_files`] does that.
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
    /// `subnets`, in the order in which addresses are taken from them. They do not overlap.
    pub subnets: Vec<Subnet>,
    /// `dns`: name servers of the containers.
    pub dns: Vec<IpAddr>,
    /// `dns_search`.
    pub dns_search: Vec<String>,
    /// `metadata`.
    pub metadata: Map<String, Value>,
}

/// One of `subnets`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Subnet {
    /// `network_address` and `cidr_size`.
    pub network: Ipv4Net,
    /// `gateway`: the bridge's address on every host. The subnet's first address unless the file says otherwise.
    pub gateway: Ipv4Addr,
    /// `start_address`: the first that a container can get.
    pub start: Ipv4Addr,
    /// `end_address`: the last.
    pub end: Ipv4Addr,
}

/// A file of `cni_config`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CniFile {
    /// Its name, such as `10-rancher.conf`.
    pub name: String,
    /// What a CNI plugin gets.
    pub netconf: Value,
}

impl Driver {
    /// The CNI configuration files of a host with these labels: each text `__host_label__: NAME` is the value of that label, or
    /// nothing if the host does not have it.
    #[must_use]
    pub fn cni_files(&self, labels: &Labels) -> Vec<CniFile> {
        let with_labels = |file: &CniFile| {
            let mut netconf = file.netconf.clone();
            put_in_labels(&mut netconf, labels);
            CniFile { name: file.name.clone(), netconf }
        };
        self.cni_config.iter().map(with_labels).collect()
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
