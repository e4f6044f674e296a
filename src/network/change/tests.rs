//! Each key of a driver, changed under its containers.

use std::path::Path;

use super::*;
use crate::network::{Labels, parse};

const EXAMPLE: &str = include_str!("../testdata/rancher-ipsec.yml");

fn spec_of(text: &str) -> Spec {
    let (drivers, report) = parse(Path::new("r.yml"), text.as_bytes(), &|_| None, false);
    Spec::of(drivers.first().unwrap_or_else(|| panic!("{report}")), &Labels::new()).unwrap()
}

/// The keys in place and those refused, when `from` becomes `to`; and the network that there is then.
fn change(from: &str, to: &str) -> (String, String, Spec, Spec) {
    assert!(EXAMPLE.contains(from), "{from}");
    let (old, new) = (spec_of(EXAMPLE), spec_of(&EXAMPLE.replacen(from, to, 1)));
    let change = Change::between(&old, &new);
    (change.in_place.join(" "), change.refused.join(" "), change.spec, new)
}

#[test]
fn some_keys_change_in_place_and_some_do_not() {
    for (from, to, in_place, refused) in [
        ("name: ipsec", "name: ipsec", "", ""),
        ("Rancher IPsec", "Another", "name", ""),
        ("host_ports: true", "host_ports: false", "default_network.host_ports", ""),
        ("- 169.254.169.250", "- 192.0.2.53", "default_network.dns", ""),
        ("- rancher.internal", "- example.org", "default_network.dns_search", ""),
        ("linkMTUOverhead: 98", "linkMTUOverhead: 50", "cni_config.10-rancher.conf.linkMTUOverhead", ""),
        (
            "linkMTUOverhead: 98",
            "mtu: 1400",
            "cni_config.10-rancher.conf.linkMTUOverhead cni_config.10-rancher.conf.mtu",
            "",
        ),
        ("/var/log/rancher-ipam.log", "/var/log/other.log", "cni_config.10-rancher.conf.ipam.logToFile", ""),
        ("bridge: docker0", "bridge: br7", "", "cni_config.10-rancher.conf.bridge"),
        ("hostNat: true", "hostNat: false", "", "cni_config.10-rancher.conf.hostNat"),
        ("type: rancher-cni-ipam", "type: host-local", "", "cni_config.10-rancher.conf.ipam.type"),
        ("network_address: '10.42.0.0/16'", "network_address: '10.43.0.0/16'", "", "default_network.subnets"),
        ("10-rancher.conf", "20-rancher.conf", "", "cni_config"),
    ] {
        let (now, later, spec, new) = change(from, to);
        assert_eq!((now.as_str(), later.as_str()), (in_place, refused), "{from} -> {to}");
        assert_eq!(spec == new, refused.is_empty(), "{from} -> {to}: what can be changed is, and nothing else");
    }
}

#[test]
fn what_is_refused_does_not_hold_up_the_rest() {
    let text = EXAMPLE.replace("bridge: docker0", "bridge: br7").replace("- 169.254.169.250", "- 192.0.2.53");
    let (old, new) = (spec_of(EXAMPLE), spec_of(&text.replace("host_ports: true", "host_ports: false")));
    let change = Change::between(&old, &new);
    assert_eq!(change.in_place, ["default_network.host_ports", "default_network.dns"]);
    assert_eq!(change.refused, ["cni_config.10-rancher.conf.bridge"]);
    assert_eq!(change.spec.dns, new.dns);
    assert_eq!(change.spec.cni_config, old.cni_config);
}
