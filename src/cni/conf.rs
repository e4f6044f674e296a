//! The keys of `rancher-bridge`, with what they always meant.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::Plugin;
use super::bridge::first_of;
use super::request::Request;
use super::result::{Address, Fault};
use crate::attach::{self, HostNetwork};

/// What a bridge is called if nobody says: by Rancher's plugin, and by ours.
const RANCHER_BRIDGE: &str = "cni0";
const OWN_BRIDGE: &str = "managed0";

/// The argument by which one container has another overhead (`io.rancher.cni.link_mtu_overhead`).
const OVERHEAD_ARGUMENT: &str = "LinkMTUOverhead";

/// What the configuration says.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Conf {
    plugin: Plugin,
    has_ipam: bool,
    pub bridge: String,
    pub bridge_subnet: Option<IpNet>,
    /// `bridgeSubnet6`: the network's IPv6 prefix.
    pub bridge_subnet6: Option<IpNet>,
    bridge_ip: Option<IpAddr>,
    /// `skipBridgeConfigureIP`: the bridge's own address is somebody else's business.
    skip_bridge_address: bool,
    /// `useBridgeIPAsGateway`: what the bridge has is the gateway, whatever it is.
    pub bridge_as_gateway: bool,
    pub is_gateway: bool,
    pub is_default_gateway: bool,
    pub host_nat: bool,
    pub hairpin: bool,
    pub promiscuous: bool,
    pub mtu: Option<u32>,
    overhead: u32,
    pub dns: Map<String, Value>,
    pub tun: String,
}

impl Conf {
    pub(super) fn of(plugin: Plugin, request: &Request) -> Result<Self, Fault> {
        let keys = Keys(&request.netconf);
        let ours = plugin == Plugin::Underpass;
        let is_default_gateway = keys.truth("isDefaultGateway")?.unwrap_or(ours);
        let bridge_subnet =
            keys.parsed("bridgeSubnet", "a prefix such as 10.42.0.0/16", |text| text.parse::<IpNet>().ok())?;
        let ipv6 = |text: &str| text.parse::<IpNet>().ok().filter(|net| net.addr().is_ipv6());
        let bridge_subnet6 = keys.parsed("bridgeSubnet6", "an IPv6 prefix such as fd00:42::/48", ipv6)?;
        let address = |text: &str| text.parse::<IpAddr>().ok().or_else(|| Some(text.parse::<IpNet>().ok()?.addr()));
        let conf = Self {
            plugin,
            has_ipam: request.netconf.get("ipam").is_some_and(|ipam| !ipam.is_null()),
            bridge: keys.text("bridge")?.unwrap_or(if ours { OWN_BRIDGE } else { RANCHER_BRIDGE }).to_owned(),
            bridge_subnet: bridge_subnet.map(|subnet| subnet.trunc()),
            bridge_subnet6: bridge_subnet6.map(|subnet| subnet.trunc()),
            bridge_ip: keys.parsed("bridgeIP", "an address", address)?,
            skip_bridge_address: keys.truth("skipBridgeConfigureIP")?.unwrap_or(false),
            bridge_as_gateway: keys.truth("useBridgeIPAsGateway")?.unwrap_or(false),
            is_gateway: keys.truth("isGateway")?.unwrap_or(false) || is_default_gateway,
            is_default_gateway,
            // Rancher left hostNat to another program, and ipMasq to one chain for each container.
            host_nat: keys.truth("hostNat")?.unwrap_or(ours) || keys.truth("ipMasq")?.unwrap_or(false),
            hairpin: keys.truth("hairpinMode")?.unwrap_or(false),
            promiscuous: keys.truth("promiscMode")?.unwrap_or(false),
            mtu: keys.number("mtu")?.filter(|mtu| *mtu > 0),
            overhead: keys.number("linkMTUOverhead")?.unwrap_or(0),
            dns: request.netconf.get("dns").and_then(Value::as_object).cloned().unwrap_or_default(),
            tun: keys.tun()?,
        };
        // Known and of no meaning here: containers' labels are read by whoever asks for them.
        keys.truth("skipFastPath")?;
        conf.checked()
    }

    fn checked(self) -> Result<Self, Fault> {
        let long = |name: &str| name.len() > 15 || name.contains(['/', ' ']) || [".", ".."].contains(&name);
        if long(&self.bridge) {
            return Err(Fault::configuration(format!("bridge: {:?} cannot name an interface", self.bridge)));
        }
        if self.hairpin && self.promiscuous {
            return Err(Fault::configuration("hairpinMode and promiscMode exclude each other"));
        }
        if let (Some(subnet), Some(address)) = (self.bridge_subnet, self.bridge_ip)
            && !subnet.contains(&address)
        {
            return Err(Fault::configuration(format!("bridgeIP: {address} is not in bridgeSubnet {subnet}")));
        }
        Ok(self)
    }

    /// What stands for `ipam` where it may be left out.
    pub(super) fn default_ipam(&self) -> Option<Value> {
        let wanted = self.plugin == Plugin::Underpass && !self.has_ipam;
        wanted.then(|| json!({"type": Plugin::Ipam.name()}))
    }

    /// The address that the bridge gets by `bridgeSubnet`.
    pub(super) fn bridge_address(&self) -> Result<Option<IpNet>, Fault> {
        let Some(subnet) = self.bridge_subnet.filter(|_| !self.skip_bridge_address) else { return Ok(None) };
        let address = self.bridge_ip.or_else(|| first_of(subnet));
        Ok(address.and_then(|address| IpNet::new(address, subnet.prefix_len()).ok()))
    }

    /// By which address containers leave the network.
    pub(super) fn gateway(&self, network: &HostNetwork, addresses: &[Address]) -> Result<Option<IpAddr>, Fault> {
        if !self.bridge_as_gateway {
            let of_address = |it: &Address| it.gateway.or_else(|| first_of(it.address));
            return Ok(addresses.iter().find_map(of_address));
        }
        let prepared = attach::prepare(network)?;
        let found = prepared.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
        let missing = || Fault::configuration(format!("useBridgeIPAsGateway: {} has no IPv4 address", self.bridge));
        found.map(Some).ok_or_else(missing)
    }

    /// What one container takes off the MTU, if it says that.
    pub(super) fn own_overhead(&self, request: &Request) -> Result<Option<u32>, Fault> {
        let said = request.args.iter().find(|(key, value)| key == OVERHEAD_ARGUMENT && !value.is_empty());
        let wrong = |text: &str| Fault::environment(format!("CNI_ARGS: {OVERHEAD_ARGUMENT}: {text:?} is no number"));
        said.map(|(_, text)| text.parse().map_err(|_| wrong(text))).transpose()
    }

    /// The MTU of a container's interface; none for what the tunnel's device says.
    pub(super) fn mtu(&self, request: &Request) -> Result<Option<u32>, Fault> {
        let overhead = self.own_overhead(request)?.unwrap_or(self.overhead);
        Ok(self.mtu.map(|mtu| mtu.checked_sub(overhead).filter(|mtu| *mtu > 0).unwrap_or(mtu)))
    }
}

/// A configuration's keys. Their letters may be large or small: plugins of that time took any.
struct Keys<'c>(&'c Map<String, Value>);

impl<'c> Keys<'c> {
    fn value(&self, key: &str) -> Option<&'c Value> {
        let found = self.0.get(key).or_else(|| Some(self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?.1));
        found.filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'c str>, Fault> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(Fault::configuration(format!("{key}: expected a text, got {other}"))),
        }
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(other) => Err(Fault::configuration(format!("{key}: expected true or false, got {other}"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u32>, Fault> {
        /// The largest IP packet.
        const MAX: u64 = 65_535;
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|number| *number <= MAX) {
                Some(number) => Ok(Some(number as u32)),
                None => Err(Fault::configuration(format!("{key}: expected a number up to {MAX}, got {value}"))),
            },
        }
    }

    fn parsed<T>(&self, key: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Fault> {
        let wrong = |text: &str| Fault::configuration(format!("{key}: expected {expected}, got {text:?}"));
        self.text(key)?.map(|text| parse(text).ok_or_else(|| wrong(text))).transpose()
    }

    /// `underpass.tun`.
    fn tun(&self) -> Result<String, Fault> {
        match self.value("underpass").and_then(|own| own.get("tun")) {
            None | Some(Value::Null) => Ok(attach::TUN.to_owned()),
            Some(Value::String(name)) if (1..=15).contains(&name.len()) => Ok(name.clone()),
            Some(other) => Err(Fault::configuration(format!("underpass.tun: expected an interface, got {other}"))),
        }
    }
}
