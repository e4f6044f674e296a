//! What a network's driver says, as a host's runtimes get it.

use serde_json::json;

use super::*;
use crate::network;

const EXAMPLE: &str = include_str!("../testdata/rancher-ipsec.yml");

fn spec_of(text: &str) -> Spec {
    let (drivers, report) = network::parse(Path::new("r.yml"), text.as_bytes(), &|_| None, false);
    Spec::of(drivers.first().unwrap_or_else(|| panic!("{report}")), &Labels::new()).unwrap()
}

fn host<'h>(blocks: &'h [IpNet], pool: Option<&'h str>) -> OnHost<'h> {
    OnHost {
        run_dir: Path::new("/run/underpass"),
        tun: "underpass0",
        state_dir: Path::new("/var/lib/underpass"),
        pool,
        blocks,
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The documents' example, whole.
#[test]
fn the_example_is_a_list_of_plugins() {
    let spec = spec_of(EXAMPLE);
    let blocks = nets(&["10.42.1.0/24"]);
    assert_eq!(
        spec.conflist("managed", &host(&blocks, Some("managed"))),
        json!({
            "cniVersion": "1.0.0",
            "name": "managed",
            "underpass": {"network": "ipsec", "driver": "Rancher IPsec", "stateDir": "/var/lib/underpass"},
            "plugins": [{
                "type": "rancher-bridge",
                "bridge": "docker0",
                "bridgeSubnet": "10.42.0.0/16",
                "isDefaultGateway": true,
                "hostNat": true,
                "hairpinMode": true,
                "linkMTUOverhead": 98,
                "ipam": {"type": "rancher-cni-ipam", "logToFile": "/var/log/rancher-ipam.log", "subnetPrefixSize": "/16"},
                "dns": {"nameservers": ["169.254.169.250"], "search": ["rancher.internal"]},
                "capabilities": {"portMappings": true, "ips": true, "mac": true, "aliases": true},
                "underpass": {
                    "runDir": "/run/underpass", "stateDir": "/var/lib/underpass", "tun": "underpass0", "network": "managed"
                },
            }],
        })
    );
    let files = spec.files(&host(&blocks, Some("managed")));
    assert_eq!((files.len(), files[0].name.as_str()), (1, "10-rancher.conf"));
    assert_eq!(files[0].netconf["name"], "rancher-cni-network", "alone it has its own name");
    assert!(spec.has_our_addresses());
    assert_eq!(spec.plugins().into_iter().collect::<Vec<_>>(), ["rancher-bridge", "rancher-cni-ipam"]);
    assert_eq!(spec.interfaces().collect::<Vec<_>>(), ["docker0"]);
}

#[test]
fn a_gateway_of_its_own_is_the_bridges_address() {
    let bridge_ip = |subnet: &str| {
        let spec = spec_of(&format!(
            "s: {{network_driver: {{name: D, default_network: {{name: n, subnets: [{{network_address: 10.42.0.0/16{subnet}}}]}}, \
             cni_config: {{a.conf: {{type: underpass-cni}}, b.conf: {{type: bridge, ipam: {{type: rancher-cni-ipam}}}}}}}}}}"
        ));
        let list = spec.conflist("n", &host(&["10.42.1.0/24".parse().unwrap()], Some("managed")));
        [0, 1].map(|index| list["plugins"][index].get("bridgeIP").cloned())
    };
    assert_eq!(bridge_ip(""), [None, None], "the first one is taken by itself");
    assert_eq!(bridge_ip(", gateway: 10.42.0.1"), [None, None]);
    assert_eq!(bridge_ip(", gateway: 10.42.0.254"), [Some(json!("10.42.0.254")), None], "Debian's plugin has no such key");
}

#[test]
fn others_plugins_get_what_their_driver_says_and_no_more() {
    let spec = spec_of(
        "s: {network_driver: {name: Plain, default_network: {name: plain, host_ports: false}, cni_config: {
          20-tune.conf: {type: tuning, mtu: 1400},
          10-bridge.conf: {name: other, type: bridge, bridge: br7, ipam: {type: host-local, subnet: 10.88.0.0/24}}}}}",
    );
    let list = spec.conflist("plain", &host(&[], None));
    assert_eq!(
        list["plugins"],
        json!([
            {"type": "bridge", "bridge": "br7", "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"}},
            {"type": "tuning", "mtu": 1400},
        ])
    );
    assert!(!spec.has_our_addresses());
    // Their interfaces with our addresses: the plugin for addresses must know where the journal is.
    let spec = spec_of(
        "s: {network_driver: {name: Mixed, default_network: {name: mixed, subnets: [{network_address: 10.50.0.0/20}]},
          cni_config: {a.conf: {type: bridge, ipam: {type: rancher-cni-ipam}, underpass: {network: mine}}}}}",
    );
    let plugin = &spec.conflist("mixed", &host(&[], Some("mixed")))["plugins"][0];
    assert_eq!(plugin["ipam"]["subnetPrefixSize"], "/20");
    let own = json!({
        "network": "mine", "runDir": "/run/underpass", "stateDir": "/var/lib/underpass", "tun": "underpass0"
    });
    assert_eq!(plugin["underpass"], own, "what the file says stays");
    assert!(plugin.get("capabilities").is_none());
    // Our own plugin needs to be told nothing.
    let spec = spec_of(
        "s: {network_driver: {name: Short, default_network: {name: short, subnets: [{network_address: 10.50.0.0/20}]},
          cni_config: {a.conf: {type: underpass-cni}}}}",
    );
    assert!(spec.has_our_addresses());
    let plugin = &spec.conflist("short", &host(&[], Some("short")))["plugins"][0];
    assert_eq!(plugin["ipam"], json!({"type": "rancher-cni-ipam", "subnetPrefixSize": "/20"}));
}

#[test]
fn blocks_and_what_is_left_out_of_them() {
    let mut spec = spec_of(EXAMPLE);
    let blocks = spec.blocks(&nets(&["10.42.1.0/24", "10.43.0.0/24", "10.42.0.0/24", "fd00:42::/64"]));
    assert_eq!(blocks, nets(&["10.42.1.0/24", "10.42.0.0/24"]));
    let reserved = |spec: &Spec, blocks: &[&str]| {
        let reserved = spec.reserved(&nets(blocks)).unwrap();
        reserved.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(reserved(&spec, &["10.42.1.0/24"]), Vec::<String>::new());
    assert_eq!(reserved(&spec, &["10.42.0.0/24"]), ["10.42.0.1"], "every host's gateway");
    let last = ["10.42.255.251", "10.42.255.252", "10.42.255.253", "10.42.255.254"];
    assert_eq!(reserved(&spec, &["10.42.255.0/24"]), last);
    spec.subnets[0].start = "10.42.1.250".parse().unwrap();
    spec.subnets[0].end = "10.42.2.3".parse().unwrap();
    assert_eq!(reserved(&spec, &["10.42.1.248/29"]), ["10.42.1.249"]);
    assert_eq!(reserved(&spec, &["10.42.2.0/29"]), ["10.42.2.4", "10.42.2.5", "10.42.2.6"]);
    assert_eq!(reserved(&spec, &["10.42.3.0/30"]), ["10.42.3.1", "10.42.3.2"]);
    assert_eq!(reserved(&spec, &["10.42.0.0/30"]), ["10.42.0.1", "10.42.0.2"]);
    assert_eq!(spec.reserved(&nets(&["10.42.0.0/16"])), None, "too many to be listed");
}

#[test]
fn a_network_made_by_hand_is_whole() {
    let spec = Spec::by_hand("blue", "10.50.0.0/16".parse().unwrap(), "up-blue", false);
    let list = spec.conflist("blue", &host(&[], Some("blue")));
    let plugin = &list["plugins"][0];
    assert_eq!((&plugin["bridge"], &plugin["bridgeSubnet"]), (&json!("up-blue"), &json!("10.50.0.0/16")));
    assert_eq!(plugin["capabilities"], json!({"ips": true, "mac": true, "aliases": true}), "no host ports");
    assert_eq!(spec.subnets[0].gateway.to_string(), "10.50.0.1");
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}

/// The length that containers see is that of the subnet in which this host's blocks are, and a gateway may be anywhere.
#[test]
fn a_second_subnet_and_a_gateway_in_the_middle_count() {
    let mut spec = spec_of(EXAMPLE);
    spec.subnets[0].gateway = "10.42.1.100".parse().unwrap();
    assert_eq!(spec.reserved(&nets(&["10.42.1.0/24"])), Some(vec!["10.42.1.100".parse().unwrap()]));
    spec.subnets.push(Subnet::whole("10.60.0.0/20".parse().unwrap()));
    let length = |blocks: &[&str]| {
        let list = spec.conflist("x", &host(&nets(blocks), Some("x")));
        list["plugins"][0]["ipam"]["subnetPrefixSize"].as_str().unwrap().to_owned()
    };
    assert_eq!([&["10.42.1.0/24"][..], &["10.60.1.0/24"], &[]].map(length), ["/16", "/20", "/16"]);
}

#[test]
fn a_plugins_own_name_servers_stay() {
    let spec = spec_of(
        "s: {network_driver: {name: D, default_network: {name: d, dns: [192.0.2.53]}, cni_config: {
          a.conf: {type: underpass-cni, dns: {nameservers: [192.0.2.1]}}, b.conf: {type: underpass-cni}}}}",
    );
    let list = spec.conflist("d", &host(&[], None));
    let servers = |index: usize| list["plugins"][index]["dns"]["nameservers"].clone();
    assert_eq!((servers(0), servers(1)), (json!(["192.0.2.1"]), json!(["192.0.2.53"])));
}
