//! What a call means for the bridge's plugin: the keys of its configuration, and what the runtime says besides.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::Plugin;
use super::request::{Request, argument};
use super::result::{Address, Fault};
use crate::attach::{self, HostNetwork};
use crate::network::{BridgeConf, first_address};

/// The argument by which one container has another overhead (`io.rancher.cni.link_mtu_overhead`).
const OVERHEAD_ARGUMENT: &str = "LinkMTUOverhead";

/// What the configuration says.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Conf {
    plugin: Plugin,
    has_ipam: bool,
    pub keys: BridgeConf,
    pub dns: Map<String, Value>,
}

impl Conf {
    pub(super) fn of(plugin: Plugin, request: &Request) -> Result<Self, Fault> {
        Ok(Self {
            plugin,
            has_ipam: request.netconf.get("ipam").is_some_and(|ipam| !ipam.is_null()),
            keys: BridgeConf::of(plugin.name(), &request.netconf).map_err(Fault::configuration)?,
            dns: request.netconf.get("dns").and_then(Value::as_object).cloned().unwrap_or_default(),
        })
    }

    /// What stands for `ipam` where it may be left out.
    pub(super) fn default_ipam(&self) -> Option<Value> {
        let wanted = self.plugin == Plugin::Underpass && !self.has_ipam;
        wanted.then(|| json!({"type": Plugin::Ipam.name()}))
    }

    /// By which address containers leave the network.
    pub(super) fn gateway(&self, network: &HostNetwork, addresses: &[Address]) -> Result<Option<IpAddr>, Fault> {
        if !self.keys.bridge_as_gateway {
            let of_address = |it: &Address| it.gateway.or_else(|| first_address(it.address));
            return Ok(addresses.iter().find_map(of_address));
        }
        let prepared = attach::prepare(network)?;
        let found = prepared.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
        let missing = || Fault::configuration(format!("useBridgeIPAsGateway: {} has no IPv4 address", network.bridge));
        found.map(Some).ok_or_else(missing)
    }

    /// What one container takes off the MTU, if it says that.
    pub(super) fn own_overhead(&self, request: &Request) -> Result<Option<u32>, Fault> {
        let wrong = |text: &str| Fault::environment(format!("CNI_ARGS: {OVERHEAD_ARGUMENT}: {text:?} is no number"));
        argument(&request.args, &[OVERHEAD_ARGUMENT]).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }

    /// The MTU of a container's interface; none for what the tunnel's device says.
    pub(super) fn mtu(&self, request: &Request) -> Result<Option<u32>, Fault> {
        let overhead = self.own_overhead(request)?.unwrap_or(self.keys.overhead);
        Ok(self.keys.mtu.map(|mtu| BridgeConf::reduced(mtu, overhead)))
    }
}
