//! What the configuration of one of our bridge plugins says, for whoever connects containers by it: the plugin itself, and the watcher
//! of Docker. The keys are Rancher's; `netconf.rs` lists them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::{BRIDGE_PLUGINS, netconf};

/// The bridges of configurations that name none, in the order of [`BRIDGE_PLUGINS`].
pub(super) const BRIDGES: [&str; 2] = ["cni0", "managed0"];

/// A plugin's configuration, checked and with its defaults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BridgeConf {
    /// `bridge`: the bridge's name.
    pub bridge: String,
    /// `bridgeSubnet`.
    pub subnet: Option<IpNet>,
    /// `bridgeSubnet6`: the network's IPv6 prefix.
    pub subnet6: Option<IpNet>,
    /// The address that the bridge gets by `bridgeSubnet` and `bridgeIP`, unless `skipBridgeConfigureIP` makes it somebody else's
    /// business.
    pub address: Option<IpNet>,
    /// `bridgeIP`: the bridge's address is the gateway, instead of the first one.
    pub said_address: Option<IpAddr>,
    /// `useBridgeIPAsGateway`: what the bridge has is the gateway, whatever it is.
    pub bridge_as_gateway: bool,
    /// `isGateway`, or `isDefaultGateway`.
    pub is_gateway: bool,
    /// `isDefaultGateway`.
    pub is_default_gateway: bool,
    /// `hostNat`, or `ipMasq`: Rancher left the one to another program, and the other to one chain for each container.
    pub host_nat: bool,
    /// `hairpinMode`.
    pub hairpin: bool,
    /// `promiscMode`.
    pub promiscuous: bool,
    /// `mtu`.
    pub mtu: Option<u32>,
    /// `linkMTUOverhead`.
    pub overhead: u32,
    /// `underpass.tun`: the tunnel's device.
    pub tun: Option<String>,
}

impl BridgeConf {
    /// Reads the configuration of this plugin.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn of(plugin: &str, netconf: &Map<String, Value>) -> Result<Self, String> {
        let keys = Keys(netconf);
        // The second plugin has defaults that make a managed network.
        let managed = plugin == BRIDGE_PLUGINS[1];
        let is_default_gateway = keys.truth("isDefaultGateway")?.unwrap_or(managed);
        let subnet = keys.parsed("bridgeSubnet", "a prefix such as 10.42.0.0/16", |text| text.parse::<IpNet>().ok())?;
        let ipv6 = |text: &str| text.parse::<IpNet>().ok().filter(|net| net.addr().is_ipv6());
        let subnet6 = keys.parsed("bridgeSubnet6", "an IPv6 prefix such as fd00:42::/48", ipv6)?;
        let bridge_ip = keys.parsed("bridgeIP", "an address", |text| netconf::address(text).ok())?;
        let skips_address = keys.truth("skipBridgeConfigureIP")?.unwrap_or(false);
        // Known and of no meaning here.
        keys.truth("skipFastPath")?;
        let conf = Self {
            bridge: keys.text("bridge")?.unwrap_or(BRIDGES[usize::from(managed)]).to_owned(),
            subnet: subnet.map(|subnet| subnet.trunc()),
            subnet6: subnet6.map(|subnet| subnet.trunc()),
            address: subnet.filter(|_| !skips_address).and_then(|subnet| {
                let address = bridge_ip.or_else(|| first_address(subnet))?;
                IpNet::new(address, subnet.prefix_len()).ok()
            }),
            said_address: bridge_ip,
            bridge_as_gateway: keys.truth("useBridgeIPAsGateway")?.unwrap_or(false),
            is_gateway: keys.truth("isGateway")?.unwrap_or(false) || is_default_gateway,
            is_default_gateway,
            host_nat: keys.truth("hostNat")?.unwrap_or(managed) || keys.truth("ipMasq")?.unwrap_or(false),
            hairpin: keys.truth("hairpinMode")?.unwrap_or(false),
            promiscuous: keys.truth("promiscMode")?.unwrap_or(false),
            mtu: keys.number("mtu")?.filter(|mtu| *mtu > 0),
            overhead: keys.number("linkMTUOverhead")?.unwrap_or(0),
            tun: keys.tun()?,
        };
        if let (Some(subnet), Some(address)) = (conf.subnet, bridge_ip)
            && !subnet.contains(&address)
        {
            return Err(format!("bridgeIP: {address} is not in bridgeSubnet {subnet}"));
        }
        conf.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let name = self.bridge.as_str();
        if name.len() > 15 || name.contains(['/', ' ']) || [".", ".."].contains(&name) {
            return Err(format!("bridge: {name:?} cannot name an interface"));
        }
        if self.hairpin && self.promiscuous {
            return Err("hairpinMode and promiscMode exclude each other".to_owned());
        }
        Ok(self)
    }

    /// What a container has of an MTU if the network takes so much of it. Less than nothing says nothing.
    #[must_use]
    pub fn reduced(mtu: u32, overhead: u32) -> u32 {
        mtu.checked_sub(overhead).filter(|mtu| *mtu > 0).unwrap_or(mtu)
    }
}

/// The first address of the network that whoever has this address sees: every host's bridge has it. IPv6 has no such habit.
#[must_use]
pub fn first_address(address: IpNet) -> Option<IpAddr> {
    Some(address).filter(|net| net.prefix_len() < 31 && net.addr().is_ipv4())?.hosts().next()
}

/// A configuration's keys. Their letters may be large or small: plugins of that time took any.
struct Keys<'c>(&'c Map<String, Value>);

impl<'c> Keys<'c> {
    fn value(&self, key: &str) -> Option<&'c Value> {
        let found = self.0.get(key).or_else(|| Some(self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?.1));
        found.filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'c str>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(format!("{key}: expected a text, got {other}")),
        }
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(other) => Err(format!("{key}: expected true or false, got {other}")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u32>, String> {
        /// The largest IP packet.
        const MAX: u64 = 65_535;
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|number| *number <= MAX) {
                Some(number) => Ok(Some(number as u32)),
                None => Err(format!("{key}: expected a number up to {MAX}, got {value}")),
            },
        }
    }

    fn parsed<T>(&self, key: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, String> {
        let wrong = |text: &str| format!("{key}: expected {expected}, got {text:?}");
        self.text(key)?.map(|text| parse(text).ok_or_else(|| wrong(text))).transpose()
    }

    fn tun(&self) -> Result<Option<String>, String> {
        match self.value("underpass").and_then(|own| own.get("tun")) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) if (1..=15).contains(&name.len()) => Ok(Some(name.clone())),
            Some(other) => Err(format!("underpass.tun: expected an interface, got {other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(plugin: usize, netconf: Value) -> Result<BridgeConf, String> {
        BridgeConf::of(BRIDGE_PLUGINS[plugin], netconf.as_object().unwrap())
    }

    #[test]
    fn each_plugin_has_its_defaults() {
        let [rancher, ours] = [0, 1].map(|plugin| read(plugin, json!({})).unwrap());
        assert_eq!((rancher.bridge.as_str(), ours.bridge.as_str()), ("cni0", "managed0"));
        assert!(!rancher.is_default_gateway && !rancher.is_gateway && !rancher.host_nat);
        assert!(ours.is_default_gateway && ours.is_gateway && ours.host_nat);
        let plain = read(1, json!({"isDefaultGateway": false, "hostNat": false, "bridge": "", "mtu": 0})).unwrap();
        assert_eq!(plain, BridgeConf { bridge: "managed0".to_owned(), ..rancher });
    }

    #[test]
    fn keys_mean_what_they_always_meant() {
        let conf = read(
            0,
            json!({
                "Bridge": "docker0", "bridgesubnet": "10.42.7.7/16", "isDefaultGateway": true, "ipMasq": true, "mtu": 1500,
                "linkMTUOverhead": 98, "hairpinMode": true, "promiscMode": null, "underpass": {"tun": "u1"},
                "bridgeSubnet6": "fd00:42::7/48",
            }),
        );
        let expected = BridgeConf {
            bridge: "docker0".to_owned(),
            subnet: Some("10.42.0.0/16".parse().unwrap()),
            subnet6: Some("fd00:42::/48".parse().unwrap()),
            address: Some("10.42.0.1/16".parse().unwrap()),
            said_address: None,
            bridge_as_gateway: false,
            is_gateway: true,
            is_default_gateway: true,
            host_nat: true,
            hairpin: true,
            promiscuous: false,
            mtu: Some(1500),
            overhead: 98,
            tun: Some("u1".to_owned()),
        };
        assert_eq!(conf, Ok(expected));
    }

    #[test]
    fn the_bridge_has_the_address_that_is_said_or_the_first_one() {
        let address = |netconf: Value| read(0, netconf).unwrap().address.map(|address| address.to_string());
        let said = |text: &str| Some(text.to_owned());
        assert_eq!(address(json!({"bridgeSubnet": "10.42.0.0/16"})), said("10.42.0.1/16"));
        assert_eq!(address(json!({"bridgeSubnet": "10.42.0.0/16", "bridgeIP": "10.42.0.9"})), said("10.42.0.9/16"));
        assert_eq!(address(json!({"bridgeSubnet": "10.42.0.0/16", "bridgeIP": "10.42.0.9/24"})), said("10.42.0.9/16"));
        assert_eq!(address(json!({"bridgeSubnet": "fd00::/64", "bridgeIP": "fd00::1"})), said("fd00::1/64"));
        for none in [
            json!({"bridgeSubnet": "fd00::/64"}),
            json!({"bridgeSubnet": "10.42.0.0/31"}),
            json!({"bridgeSubnet": "10.42.0.0/16", "skipBridgeConfigureIP": true}),
            json!({"bridgeIP": "10.42.0.9"}),
        ] {
            assert_eq!(address(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (netconf, message) in [
            (json!({"bridge": 7}), "bridge: expected a text, got 7"),
            (json!({"bridge": "sixteen-letters-"}), "bridge: \"sixteen-letters-\" cannot name an interface"),
            (json!({"hostNat": "true"}), "hostNat: expected true or false, got \"true\""),
            (json!({"skipFastPath": 1}), "skipFastPath: expected true or false, got 1"),
            (json!({"mtu": "1400"}), "mtu: expected a number up to 65535, got \"1400\""),
            (json!({"mtu": 65536}), "mtu: expected a number up to 65535, got 65536"),
            (json!({"bridgeSubnet": "10.42"}), "bridgeSubnet: expected a prefix such as 10.42.0.0/16, got \"10.42\""),
            (
                json!({"bridgeSubnet6": "10.42.0.0/16"}),
                "bridgeSubnet6: expected an IPv6 prefix such as fd00:42::/48, got \"10.42.0.0/16\"",
            ),
            (json!({"bridgeIP": "x"}), "bridgeIP: expected an address, got \"x\""),
            (
                json!({"bridgeSubnet": "10.42.0.0/16", "bridgeIP": "10.43.0.1"}),
                "bridgeIP: 10.43.0.1 is not in bridgeSubnet 10.42.0.0/16",
            ),
            (json!({"hairpinMode": true, "promiscMode": true}), "hairpinMode and promiscMode exclude each other"),
            (json!({"underpass": {"tun": ""}}), "underpass.tun: expected an interface, got \"\""),
        ] {
            assert_eq!(read(0, netconf).unwrap_err(), message);
        }
    }

    #[test]
    fn an_overhead_is_never_the_whole() {
        assert_eq!((BridgeConf::reduced(1500, 98), BridgeConf::reduced(1500, 1500)), (1402, 1500));
        assert_eq!(BridgeConf::reduced(1500, u32::MAX), 1500);
    }
}
