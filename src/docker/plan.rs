//! What a network's driver says, in the words of `attach`: the bridge, its gateways, and what a container gets besides its addresses.

use std::net::IpAddr;

use ipnet::IpNet;

use super::table::Refusal;
use crate::attach::{HostNetwork, Route};
use crate::network::{BRIDGE_PLUGINS, BridgeConf, Spec};

/// The MTU of a bridge that nobody gave another one.
const ETHERNET_MTU: u32 = 1500;

/// A network as this host has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub network: HostNetwork,
    /// Where containers without another way out send everything else.
    pub default_gateway: Option<IpAddr>,
    pub hairpin: bool,
    /// `mtu`.
    mtu: Option<u32>,
    /// `linkMTUOverhead`.
    overhead: u32,
}

impl Plan {
    /// The network by our own plugin; others' networks are made by their plugins alone.
    pub(super) fn of(spec: &Spec, tun: &str) -> Result<Self, Refusal> {
        let ours = spec.cni_config.iter().find_map(|file| {
            let netconf = file.netconf.as_object()?;
            let plugin = netconf.get("type")?.as_str().filter(|name| BRIDGE_PLUGINS.contains(name))?;
            Some((plugin, netconf))
        });
        let Some((plugin, netconf)) = ours else {
            let plugins = spec.plugins().into_iter().collect::<Vec<_>>().join(", ");
            return Err(Refusal::Wish(format!(
                "network {} is made by other plugins ({plugins}): labels work with those of {}",
                spec.name, BRIDGE_PLUGINS[0]
            )));
        };
        let wrong = |why| Refusal::Wish(format!("network {}: {why}", spec.name));
        let conf = BridgeConf::of(plugin, netconf).map_err(wrong)?;
        let mut subnets = spec.subnets.iter().filter_map(|it| IpNet::new(it.gateway.into(), it.network.prefix_len()).ok());
        let gateways: Vec<IpNet> = match conf.address {
            // What nobody said is what the driver says of the subnet.
            Some(first) if conf.said_address.is_none() => {
                vec![subnets.find(|said| said.trunc() == first.trunc()).unwrap_or(first)]
            }
            Some(own) => vec![own],
            None if conf.is_gateway => subnets.collect(),
            None => Vec::new(),
        };
        Ok(Self {
            default_gateway: gateways.first().filter(|_| conf.is_default_gateway).map(IpNet::addr),
            hairpin: conf.hairpin,
            mtu: conf.mtu,
            overhead: conf.overhead,
            network: HostNetwork {
                bridge: conf.bridge,
                gateways,
                subnets: spec.prefixes().into_iter().map(IpNet::V4).collect(),
                on_link: Vec::new(),
                tun: tun.to_owned(),
                host_nat: conf.host_nat,
                promiscuous: conf.promiscuous,
            },
        })
    }

    /// Addresses of the network that are gateways.
    pub(super) fn gateways(&self) -> Vec<IpAddr> {
        self.network.gateways.iter().map(IpNet::addr).collect()
    }

    /// An address as a container sees it: the whole network looks like one link.
    pub(super) fn seen(&self, address: IpAddr, blocks: &[IpNet], said: Option<u8>) -> Option<IpNet> {
        let holds = |net: &&IpNet| net.contains(&address);
        let length = self.network.subnets.iter().find(holds).or_else(|| blocks.iter().find(holds)).map(IpNet::prefix_len);
        IpNet::new(address, said.or(length)?).ok()
    }

    /// The largest packet of a container: what the driver says less what it (or the container's label) says that the network takes, and
    /// never more than the tunnel takes.
    pub(super) fn mtu(&self, label: Option<u16>, tun: Option<u32>) -> Option<u32> {
        let overhead = label.map_or(self.overhead, u32::from);
        let said = match (self.mtu, overhead) {
            (None, 0) => None,
            (mtu, overhead) => Some(BridgeConf::reduced(mtu.unwrap_or(ETHERNET_MTU), overhead)),
        };
        match (said, tun) {
            (Some(said), Some(tun)) => Some(said.min(tun)),
            (said, tun) => said.or(tun),
        }
    }

    /// The routes of a container with these addresses that has no other network. A gateway that is on none of its links is one hop away
    /// all the same.
    pub(super) fn routes(&self, addresses: &[IpNet]) -> Vec<Route> {
        let Some(gateway) = self.default_gateway else { return Vec::new() };
        let unspecified = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let everywhere = IpNet::new(unspecified, 0).ok();
        let off_link = !addresses.iter().any(|net| net.contains(&gateway));
        let hop = off_link.then(|| Route { destination: gateway.into(), gateway: None });
        let everywhere = everywhere.map(|destination| Route { destination, gateway: Some(gateway) });
        hop.into_iter().chain(everywhere).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::network::CniFile;

    fn spec(netconf: Value) -> Spec {
        let mut spec = Spec::by_hand("ipsec", "10.42.0.0/16".parse().unwrap(), "x", true);
        spec.cni_config = vec![CniFile { name: "10-rancher.conf".to_owned(), netconf }];
        spec
    }

    fn plan(netconf: Value) -> Plan {
        Plan::of(&spec(netconf), "tun7").unwrap()
    }

    #[test]
    fn the_documents_example_is_docker0_with_a_second_address() {
        let plan = plan(json!({
            "type": "rancher-bridge", "bridge": "docker0", "bridgeSubnet": "10.42.0.0/16", "isDefaultGateway": true, "hostNat": true,
            "hairpinMode": true, "mtu": 1500, "linkMTUOverhead": 98, "ipam": {"type": "rancher-cni-ipam"},
        }));
        assert_eq!((plan.network.bridge.as_str(), plan.network.tun.as_str()), ("docker0", "tun7"));
        assert_eq!(plan.network.gateways, ["10.42.0.1/16".parse().unwrap()]);
        assert_eq!(plan.network.subnets, ["10.42.0.0/16".parse().unwrap()]);
        assert!(plan.hairpin && plan.network.host_nat && !plan.network.promiscuous);
        let routes = |address: &str| {
            let text = |route: &Route| format!("{} {:?}", route.destination, route.gateway);
            plan.routes(&[address.parse().unwrap()]).iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(routes("10.42.1.7/16"), ["0.0.0.0/0 Some(10.42.0.1)"]);
        assert_eq!(routes("10.42.1.7/24"), ["10.42.0.1/32 None", "0.0.0.0/0 Some(10.42.0.1)"]);
        assert_eq!(plan.seen("10.42.1.7".parse().unwrap(), &[], None), Some("10.42.1.7/16".parse().unwrap()));
        assert_eq!(plan.seen("10.42.1.7".parse().unwrap(), &[], Some(24)), Some("10.42.1.7/24".parse().unwrap()));
        assert_eq!(
            plan.seen("fd00::7".parse().unwrap(), &["fd00::/64".parse().unwrap()], None),
            Some("fd00::7/64".parse().unwrap())
        );
    }

    #[test]
    fn the_mtu_is_the_least_of_all_that_is_said() {
        let both = plan(json!({"type": "rancher-bridge", "mtu": 1500, "linkMTUOverhead": 98}));
        assert_eq!(both.mtu(None, None), Some(1402));
        assert_eq!(both.mtu(Some(0), None), Some(1500), "the label counts, not the driver");
        assert_eq!(both.mtu(Some(0), Some(1400)), Some(1400));
        assert_eq!(both.mtu(Some(u16::MAX), None), Some(1500), "less than nothing says nothing");
        let neither = plan(json!({"type": "rancher-bridge"}));
        assert_eq!((neither.mtu(None, Some(1400)), neither.mtu(None, None)), (Some(1400), None));
        assert_eq!(neither.mtu(Some(200), None), Some(1300));
    }

    #[test]
    fn gateways_are_where_the_configuration_says() {
        let gateways = |netconf| plan(netconf).network.gateways.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(gateways(json!({"type": "underpass-cni", "isGateway": true})), ["10.42.0.1/16"]);
        assert_eq!(gateways(json!({"type": "rancher-bridge"})), [""; 0]);
        assert_eq!(gateways(json!({"type": "underpass-cni"})), ["10.42.0.1/16"]);
        assert_eq!(plan(json!({"type": "underpass-cni"})).network.bridge, "managed0");
        let own = json!({"type": "rancher-bridge", "bridgeSubnet": "10.42.0.0/16", "bridgeIP": "10.42.0.9/16"});
        assert_eq!(gateways(own), ["10.42.0.9/16"]);
        let mut spec = spec(json!({"type": "rancher-bridge", "bridgeSubnet": "10.42.0.0/16"}));
        spec.subnets[0].gateway = "10.42.0.254".parse().unwrap();
        let said = Plan::of(&spec, "t").unwrap().network.gateways;
        assert_eq!(said, ["10.42.0.254/16".parse().unwrap()], "what the driver says of its subnet");
        let none = json!({"type": "rancher-bridge", "bridgeSubnet": "10.42.0.0/16", "skipBridgeConfigureIP": true});
        assert_eq!(gateways(none), [""; 0]);
    }

    #[test]
    fn other_plugins_are_named() {
        let refused = Plan::of(&spec(json!({"type": "macvlan"})), "t").unwrap_err();
        assert!(matches!(refused, Refusal::Wish(text) if text.contains("made by other plugins (macvlan)")));
    }
}
