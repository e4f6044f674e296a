//! A network as a host keeps it: what its driver said, and the CNI configuration that follows.
//!
//! A driver's files are one thing for whoever runs them one by one, as Rancher's agent did, and another for container runtimes,
//! which want one list of plugins per network. Both are made here, of the same [`Spec`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::bridge::BRIDGES;
use super::{BridgeConf, CniFile, Driver, Labels, Subnet};

/// The version of the lists: the newest that Debian's runtimes take.
const CNI_VERSION: &str = "1.0.0";

/// Our plugins for interfaces.
pub const BRIDGE_PLUGINS: [&str; 2] = ["rancher-bridge", "underpass-cni"];

/// The bridge of the reference plugin `bridge` if its configuration names none.
const REFERENCE_BRIDGE: &str = "cni0";

/// Our plugin for addresses.
pub const IPAM_PLUGIN: &str = "rancher-cni-ipam";

/// Addresses outside of `start_address` to `end_address` that are listed one by one for the journal: a block of 4096.
const MAX_RESERVED: usize = 4096;

/// A network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// By which containers choose it.
    pub name: String,
    /// What people call its driver.
    pub driver: String,
    /// What people should know of it.
    pub description: String,
    /// Whether containers may publish ports of the host.
    pub host_ports: bool,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Name servers of its containers.
    pub dns: Vec<IpAddr>,
    /// Domains that they search.
    pub dns_search: Vec<String>,
    /// What it tells about itself.
    pub metadata: Map<String, Value>,
    /// Files of CNI configuration, in the order in which they run.
    pub cni_config: Vec<CniFile>,
}

/// What a host adds to a network's CNI configuration.
#[derive(Clone, Copy, Debug)]
pub struct OnHost<'h> {
    /// Where the agent's socket is.
    pub run_dir: &'h Path,
    /// The agent's TUN device.
    pub tun: &'h str,
    /// Where the journal of addresses is.
    pub state_dir: &'h Path,
    /// By which name the journal knows the network; none if some other plugin gives its addresses.
    pub pool: Option<&'h str>,
    /// This host's blocks.
    pub blocks: &'h [IpNet],
}

impl Spec {
    /// The network that comes with a driver, on a host with these labels; none if it brings none.
    #[must_use]
    pub fn of(driver: &Driver, labels: &Labels) -> Option<Self> {
        let network = driver.default_network.as_ref()?;
        let mut metadata = network.metadata.clone();
        metadata.extend(driver.network_metadata.clone());
        Some(Self {
            name: network.name.clone(),
            driver: driver.name.clone(),
            description: network.description.clone(),
            host_ports: network.host_ports,
            subnets: network.subnets.clone(),
            dns: network.dns.clone(),
            dns_search: network.dns_search.clone(),
            metadata,
            cni_config: driver.cni_files(labels),
        })
    }

    /// A network that somebody makes by hand, on a bridge of its own.
    #[must_use]
    pub fn by_hand(name: &str, subnet: Ipv4Net, bridge: &str, host_ports: bool) -> Self {
        let netconf = json!({
            "name": name,
            "type": BRIDGE_PLUGINS[0],
            "bridge": bridge,
            "bridgeSubnet": subnet.to_string(),
            "isDefaultGateway": true,
            "hostNat": true,
            "hairpinMode": true,
            "ipam": {"type": IPAM_PLUGIN, "subnetPrefixSize": format!("/{}", subnet.prefix_len())},
        });
        Self {
            name: name.to_owned(),
            driver: String::new(),
            description: String::new(),
            host_ports,
            subnets: vec![Subnet::whole(subnet)],
            dns: Vec::new(),
            dns_search: Vec::new(),
            metadata: Map::new(),
            cni_config: vec![CniFile { name: format!("10-{name}.conf"), netconf }],
        }
    }

    /// Every plugin that runs for it.
    #[must_use]
    pub fn plugins(&self) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for file in &self.cni_config {
            found.extend(file.plugins());
            found.extend(asks_us(&file.netconf).then_some(IPAM_PLUGIN));
        }
        found
    }

    /// Whether its addresses come out of our journal.
    #[must_use]
    pub fn has_our_addresses(&self) -> bool {
        self.plugins().contains(IPAM_PLUGIN)
    }

    /// The MTU of its containers by our plugin, of which one takes so much off by its own configuration; none if only the tunnel says it.
    #[must_use]
    pub fn mtu(&self, own_overhead: Option<u32>) -> Option<u32> {
        let netconf = self.cni_config.iter().find(|file| is_our_bridge(file))?.netconf.as_object()?;
        let conf = BridgeConf::of(netconf.get("type")?.as_str()?, netconf).ok()?;
        Some(BridgeConf::reduced(conf.mtu?, own_overhead.unwrap_or(conf.overhead)))
    }

    /// The bridges of plugins that are not ours.
    pub fn foreign_bridges(&self) -> impl Iterator<Item = &str> {
        self.cni_config.iter().filter(|file| !is_our_bridge(file)).filter_map(bridge_of)
    }

    /// The bridges of our own plugins.
    pub fn our_bridges(&self) -> impl Iterator<Item = &str> {
        self.cni_config.iter().filter(|file| is_our_bridge(file)).filter_map(bridge_of)
    }

    /// This host's interfaces that its plugins connect containers to.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        let masters = self.cni_config.iter().filter_map(|file| text(&file.netconf, "master"));
        self.bridges().chain(masters)
    }

    /// The bridges among them.
    pub fn bridges(&self) -> impl Iterator<Item = &str> {
        self.cni_config.iter().filter_map(bridge_of)
    }

    /// Its subnets as prefixes.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Ipv4Net> {
        self.subnets.iter().map(|subnet| subnet.network).collect()
    }

    /// The subnet of ours and the one of theirs that share addresses.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<(Ipv4Net, Ipv4Net)> {
        super::overlap(&self.subnets, &other.subnets)
    }

    /// Those of this host's blocks that are in its subnets.
    #[must_use]
    pub fn blocks(&self, blocks: &[IpNet]) -> Vec<IpNet> {
        let inside = |block: &&IpNet| self.subnets.iter().any(|subnet| IpNet::V4(subnet.network).contains(*block));
        blocks.iter().filter(inside).copied().collect()
    }

    /// Addresses in these blocks that no container gets: gateways, and what is outside of `start_address` to `end_address`. None
    /// if they are too many to be listed.
    #[must_use]
    pub fn reserved(&self, blocks: &[IpNet]) -> Option<Vec<IpAddr>> {
        let mut reserved: BTreeSet<Ipv4Addr> = BTreeSet::new();
        for block in blocks {
            let IpNet::V4(block) = block else { continue };
            let Some(subnet) = self.subnets.iter().find(|subnet| subnet.network.contains(block)) else { continue };
            let (first, last) = (u32::from(block.network()), u32::from(block.broadcast()));
            let before = first..u32::from(subnet.start).clamp(first, last);
            let behind = u32::from(subnet.end).saturating_add(1).clamp(first, last)..last;
            // An end below the block leaves nothing of it, its last address included, which nobody gets anyway.
            if before.len() + behind.len() > MAX_RESERVED {
                return None;
            }
            reserved.extend(before.chain(behind).map(Ipv4Addr::from));
            if block.contains(&subnet.gateway) {
                reserved.insert(subnet.gateway);
            }
            // Its network address is never given out.
            reserved.remove(&block.network());
        }
        Some(reserved.into_iter().map(IpAddr::V4).collect())
    }

    /// The files as whoever runs them one by one gets them.
    #[must_use]
    pub fn files(&self, host: &OnHost<'_>) -> Vec<CniFile> {
        let file = |file: &CniFile| CniFile { name: file.name.clone(), netconf: self.completed(&file.netconf, host) };
        self.cni_config.iter().map(file).collect()
    }

    /// The list of plugins that a runtime gets, under this name.
    #[must_use]
    pub fn conflist(&self, name: &str, host: &OnHost<'_>) -> Value {
        let plugin = |file: CniFile| {
            let mut netconf = file.netconf;
            if let Value::Object(members) = &mut netconf {
                // The list has both.
                members.shift_remove("name");
                members.shift_remove("cniVersion");
            }
            netconf
        };
        let plugins: Vec<Value> = self.files(host).into_iter().map(plugin).collect();
        json!({
            "cniVersion": CNI_VERSION,
            "name": name,
            "underpass": {"network": self.name, "driver": self.driver, "stateDir": host.state_dir},
            "plugins": plugins,
        })
    }

    /// A plugin's configuration with what the network and the host add. What stands there already stays.
    fn completed(&self, netconf: &Value, host: &OnHost<'_>) -> Value {
        let mut netconf = netconf.clone();
        let asks_us = asks_us(&netconf);
        let Value::Object(members) = &mut netconf else { return netconf };
        if asks_us {
            members.insert("ipam".to_owned(), json!({"type": IPAM_PLUGIN}));
        }
        let kind = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let (plugin, ipam) = (kind(members.get("type")), kind(members.get("ipam").and_then(|ipam| ipam.get("type"))));
        let has_ours = BRIDGE_PLUGINS.contains(&plugin.as_str());
        let has_dns = !self.dns.is_empty() || !self.dns_search.is_empty();
        if has_dns && !ipam.is_empty() {
            let dns = json!({"nameservers": self.dns, "search": self.dns_search});
            members.entry("dns").or_insert(dns);
        }
        if has_ours {
            let all = json!({"portMappings": true, "ips": true, "mac": true, "aliases": true});
            let without_ports = json!({"ips": true, "mac": true, "aliases": true});
            members.entry("capabilities").or_insert(if self.host_ports { all } else { without_ports });
        }
        if ipam == IPAM_PLUGIN {
            let length = self.prefix_len(host.blocks);
            if let (Some(length), Some(Value::Object(ipam))) = (length, members.get_mut("ipam")) {
                ipam.entry("subnetPrefixSize").or_insert_with(|| format!("/{length}").into());
            }
            if let Some(gateway) = self.own_gateway(host.blocks).filter(|_| has_ours) {
                members.entry("bridgeIP").or_insert_with(|| gateway.to_string().into());
            }
        }
        if has_ours || ipam == IPAM_PLUGIN {
            let own = members.entry("underpass").or_insert_with(|| json!({}));
            if let Value::Object(own) = own {
                own.entry("runDir").or_insert_with(|| json!(host.run_dir));
                own.entry("stateDir").or_insert_with(|| json!(host.state_dir));
                own.entry("tun").or_insert_with(|| host.tun.into());
                if let Some(pool) = host.pool {
                    own.entry("network").or_insert_with(|| pool.into());
                }
            }
        }
        netconf
    }

    /// The length of the subnet that this host's addresses are in: the whole network looks like one link.
    fn prefix_len(&self, blocks: &[IpNet]) -> Option<u8> {
        self.own_subnet(blocks).map(|subnet| subnet.network.prefix_len())
    }

    /// Its gateway, if that is another than the first address, which plugins take by themselves.
    fn own_gateway(&self, blocks: &[IpNet]) -> Option<Ipv4Addr> {
        let subnet = self.own_subnet(blocks)?;
        Some(subnet.gateway).filter(|gateway| *gateway != Subnet::whole(subnet.network).gateway)
    }

    fn own_subnet(&self, blocks: &[IpNet]) -> Option<&Subnet> {
        let own = self.blocks(blocks);
        let holds = |subnet: &&Subnet| own.iter().any(|block| IpNet::V4(subnet.network).contains(block));
        self.subnets.iter().find(holds).or(self.subnets.first())
    }
}

/// A text of a plugin's configuration; an empty one says nothing.
fn text<'n>(netconf: &'n Value, key: &str) -> Option<&'n str> {
    netconf.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn bridge_of(file: &CniFile) -> Option<&str> {
    let usual = || {
        let kind = text(&file.netconf, "type")?;
        let ours = BRIDGE_PLUGINS.iter().position(|name| *name == kind).map(|index| BRIDGES[index]);
        ours.or((kind == "bridge").then_some(REFERENCE_BRIDGE))
    };
    text(&file.netconf, "bridge").or_else(usual)
}

fn is_our_bridge(file: &CniFile) -> bool {
    text(&file.netconf, "type").is_some_and(|name| BRIDGE_PLUGINS.contains(&name))
}

/// Whether a plugin takes our addresses although its configuration does not say so.
fn asks_us(netconf: &Value) -> bool {
    netconf.get("type") == Some(&BRIDGE_PLUGINS[1].into()) && netconf.get("ipam").is_none_or(Value::is_null)
}

#[cfg(test)]
mod tests;
