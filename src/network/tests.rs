//! Golden tests: a block, what it says, and the exact messages that it earns.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The example of the documents that describe the original network, as it was published.
const EXAMPLE: &str = include_str!("testdata/rancher-ipsec.yml");

fn read_with(text: &str, variables: &[(&str, &str)], strict: bool) -> (Vec<Driver>, String) {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    let look_up = |name: &str| variables.get(name).map(|value| (*value).to_owned());
    let (drivers, report) = parse(Path::new("r.yml"), text.as_bytes(), &look_up, strict);
    assert_eq!(drivers.is_empty(), report.has_errors(), "drivers or an error: {report}");
    (drivers, report.to_string())
}

fn read(text: &str) -> (Vec<Driver>, String) {
    read_with(text, &[], false)
}

/// The one driver of a file that earns no message.
fn good(text: &str) -> Driver {
    let (drivers, messages) = read(text);
    assert_eq!((drivers.len(), messages.as_str()), (1, ""));
    drivers.into_iter().next().unwrap()
}

/// The messages of the example with `from` replaced. Its own warning stands on line 21 and is left out.
fn spoiled(from: &str, to: &str) -> String {
    assert!(EXAMPLE.contains(from), "{from}");
    let (_, messages) = read(&EXAMPLE.replacen(from, to, 1));
    messages.lines().filter(|line| !line.contains("hairpinMode\\\"")).map(|line| format!("{line}\n")).collect()
}

/// A block with a network of these lines (at eight columns; they begin on line 6).
fn network_with(lines: &str) -> (Vec<Driver>, String) {
    read(&format!(
        "s:\n  network_driver:\n    name: d\n    default_network:\n      name: n\n{lines}    cni_config: {{a.conf: {{type: x}}}}\n"
    ))
}

#[test]
fn the_documents_example_loads_with_one_warning() {
    let (drivers, messages) = read(EXAMPLE);
    assert_eq!(
        messages,
        "r.yml:21: warning: ipsec.network_driver.cni_config.10-rancher.conf.hairpinMode\\\": malformed key; did you mean \
         \"hairpinMode\"? (it is ignored)\n"
    );
    let driver = &drivers[0];
    assert_eq!((driver.service.as_str(), driver.name.as_str(), driver.line), ("ipsec", "Rancher IPsec", 3));
    let network = driver.default_network.as_ref().unwrap();
    assert_eq!((network.name.as_str(), network.host_ports), ("ipsec", true));
    assert_eq!(
        network.subnets,
        [Subnet {
            network: "10.42.0.0/16".parse().unwrap(),
            gateway: "10.42.0.1".parse().unwrap(),
            start: "10.42.0.2".parse().unwrap(),
            end: "10.42.255.250".parse().unwrap(),
        }]
    );
    assert_eq!(network.dns, ["169.254.169.250".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(network.dns_search, ["rancher.internal"]);
    let netconf = json!({
        "name": "rancher-cni-network",
        "type": "rancher-bridge",
        "bridge": "docker0",
        "bridgeSubnet": "10.42.0.0/16",
        "isDefaultGateway": true,
        "hostNat": true,
        "hairpinMode": true,
        "linkMTUOverhead": 98,
        "ipam": {"type": "rancher-cni-ipam", "logToFile": "/var/log/rancher-ipam.log"},
    });
    assert_eq!(driver.cni_files(&Labels::new()), [CniFile { name: "10-rancher.conf".into(), netconf: netconf.clone() }]);
    assert_eq!(serde_json::Value::Object(driver.metadata()), json!({"cniConfig": {"10-rancher.conf": netconf}}));
}

#[test]
fn a_strict_reader_refuses_what_others_are_warned_of() {
    let (drivers, messages) = read_with(EXAMPLE, &[], true);
    assert!(drivers.is_empty());
    assert!(messages.starts_with("r.yml:21: ipsec.network_driver.cni_config"), "{messages}");
    let sound = EXAMPLE.replace("        hairpinMode\": true\n", "");
    assert_eq!(read_with(&sound, &[], true).1, "");
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let driver = good(
        "
services:
  net:
    scale: 1
    network_driver:
      name: Routed
      description: one subnet per host
      default_network:
        name: routed
        description: a network
        host_ports: no
        subnets:
        - {name: first, network_address: 10.43.0.0, cidr_size: 16, gateway: 10.43.0.9, start_address: 10.43.1.0, end_address: 10.43.1.9}
        - {network_address: 10.44.1.0}
        dns: [192.0.2.53, 'fd00::53']
        dns_search: [a.example, b.example.]
        metadata: {mtu: 1400, colour: blue, deep: {list: [1, x]}}
      cni_config:
        20-tune.conf: {type: tuning, sysctl: {net.core.somaxconn: '500'}}
        10-bridge.conf: {type: bridge, name: mine, isGateway: yes, ipam: {type: host-local, subnet: '__host_label__: our.subnet', ranges: [[1.5, -3]]}}
      network_metadata: {colour: green}
",
    );
    assert_eq!((driver.service.as_str(), driver.description.as_str()), ("net", "one subnet per host"));
    let network = driver.default_network.as_ref().unwrap();
    assert!(!network.host_ports);
    let shown: Vec<_> =
        network.subnets.iter().map(|it| format!("{} {} {}-{}", it.network, it.gateway, it.start, it.end)).collect();
    assert_eq!(shown, ["10.43.0.0/16 10.43.0.9 10.43.1.0-10.43.1.9", "10.44.1.0/24 10.44.1.1 10.44.1.2-10.44.1.250"]);
    assert_eq!(network.dns.len(), 2);
    assert_eq!(network.dns_search, ["a.example", "b.example."]);
    let metadata = driver.metadata();
    assert_eq!(metadata["colour"], "green", "the driver's word counts more");
    assert_eq!(metadata["deep"], json!({"list": [1, "x"]}));
    let labels = Labels::from([("our.subnet".to_owned(), "10.43.7.0/24".to_owned())]);
    let files = driver.cni_files(&labels);
    assert_eq!(
        json!(files),
        json!([
            {"name": "10-bridge.conf", "netconf": {
                "type": "bridge", "name": "mine", "isGateway": true,
                "ipam": {"type": "host-local", "subnet": "10.43.7.0/24", "ranges": [[1.5, -3]]},
            }},
            {"name": "20-tune.conf", "netconf": {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "name": "routed"}},
        ])
    );
    assert_eq!(driver.cni_files(&Labels::new())[0].netconf["ipam"]["subnet"], "", "a label that the host does not have");
}

#[test]
fn keys_that_nobody_asked_for_are_warned_of() {
    for (from, to, message) in [
        (
            "host_ports",
            "host_port",
            "r.yml:7: warning: ipsec.network_driver.default_network.host_port: unknown key; did you mean \"host_ports\"? (it is ignored)\n",
        ),
        (
            "- network_address",
            "- cidrsize: 9\n        network_address",
            "r.yml:9: warning: ipsec.network_driver.default_network.subnets[0].cidrsize: unknown key; did you mean \"cidr_size\"? (it is ignored)\n",
        ),
        (
            "bridge: docker0",
            "Bridge: docker0",
            "r.yml:18: warning: ipsec.network_driver.cni_config.10-rancher.conf.Bridge: this key is written bridge\n",
        ),
        (
            "hostNat",
            "hostnatt",
            "r.yml:22: warning: ipsec.network_driver.cni_config.10-rancher.conf.hostnatt: unknown key; did you mean \"hostNat\"? (it is ignored)\n",
        ),
        (
            "hostNat",
            "colour",
            "r.yml:22: warning: ipsec.network_driver.cni_config.10-rancher.conf.colour: unknown key (it is ignored)\n",
        ),
        (
            "hostNat: true",
            "hairpinMode: false",
            "r.yml:23: warning: hairpinMode: this key stands twice; it was first on line 22, and this one counts\n",
        ),
        (
            "          logToFile",
            "          subnet",
            "r.yml:27: warning: ipsec.network_driver.cni_config.10-rancher.conf.ipam.subnet: unknown key (it is ignored)\n",
        ),
    ] {
        assert_eq!(spoiled(from, to), message);
    }
    let (drivers, _) = read(&EXAMPLE.replace("hostNat: true", "hairpinMode: false"));
    assert_eq!(drivers[0].cni_config[0].netconf["hairpinMode"], true, "the last one counts");
    let (drivers, _) = read(&EXAMPLE.replace("bridge: docker0", "BRIDGE: br7"));
    assert_eq!(drivers[0].cni_config[0].netconf["bridge"], "br7", "other letters, the same key");
    let foreign = "s: {network_driver: {name: d, cni_config: {a.conf: {type: other, 'any key': 1, any.key: 2}}}}";
    let (drivers, messages) = read(foreign);
    assert!(messages.ends_with("no plugin has a key with such letters (it is passed on as it is)\n"), "{messages}");
    assert_eq!(drivers[0].cni_config[0].netconf["any key"], 1);
}

#[test]
fn what_cannot_work_is_an_error() {
    for (from, to, line, part) in [
        ("name: Rancher IPsec", "description: x", 3, "expected a name for the driver"),
        ("name: ipsec", "name: managed", 6, "a name that has no other meaning"),
        ("name: ipsec", "name: a/b", 6, "a name of at most 63"),
        ("host_ports: true", "host_ports: maybe", 7, "expected true or false, got \"maybe\""),
        ("10.42.0.0/16'\n      dns", "10.42.0.0/30'\n      dns", 9, "of a length from 8 to 28"),
        ("169.254.169.250", "localhost", 11, "expected an address such as"),
        ("10-rancher.conf", "../10.conf", 15, "expected the name of a file"),
        ("type: rancher-bridge", "typ: rancher-bridge", 15, "expected the name of a CNI plugin; it is missing"),
        ("type: rancher-bridge", "type: ../sh", 17, "expected the name of a CNI plugin, got \"../sh\""),
        ("isDefaultGateway: true", "isDefaultGateway: 1", 20, "expected true or false"),
        ("linkMTUOverhead: 98", "linkMTUOverhead: -1", 24, "expected a whole number"),
        ("hostNat: true", "promiscMode: true", 22, "exclude each other"),
        ("hostNat: true", "bridgeIP: 10.43.0.1", 22, "expected an address in bridgeSubnet 10.42.0.0/16"),
    ] {
        let messages = spoiled(from, to);
        assert!(messages.contains(part), "{from} -> {to}: {messages}");
        let place = messages.lines().find(|message| message.contains(part)).unwrap();
        let found: usize = place.split(':').nth(1).unwrap().parse().unwrap();
        assert!(found == line && !place.contains(" warning:"), "{from} -> {to}: {place}");
    }
    assert_eq!(read("web: {image: x}").1, "r.yml: expected a service with a `network_driver` block; there is none\n");
    assert!(read("a: [").1.contains("not valid YAML"));
    let twice = format!("{EXAMPLE}\n{}", EXAMPLE.replacen("ipsec:", "other:", 1));
    assert!(read(&twice).1.contains("a network of this name comes with the driver on line 3 already"));
}

#[test]
fn a_subnet_of_ipv6_is_read_like_one_of_ipv4() {
    let with = |subnets: &str| network_with(&format!("      subnets: {subnets}\n"));
    let (drivers, messages) = with("[{network_address: 10.42.0.0/16}, {network_address: 'fd00:42::', cidr_size: 48}]");
    assert_eq!(messages, "");
    let subnets = |drivers: &[Driver]| drivers[0].default_network.clone().unwrap().subnets;
    let shown = |subnet: &Subnet| format!("{} {} {}-{}", subnet.network, subnet.gateway, subnet.start, subnet.end);
    assert_eq!(shown(&subnets(&drivers)[1]), "fd00:42::/48 fe80::1 fd00:42::1-fd00:42:0:ffff:ffff:ffff:ffff:ffff");
    let (drivers, messages) = with(
        "[{network_address: 'fd00:42::/48', gateway: 'fe80::1', start_address: 'fd00:42::1:0', end_address: 'fd00:42::1:ff'}]",
    );
    assert_eq!(messages, "");
    assert_eq!(shown(&subnets(&drivers)[0]), "fd00:42::/48 fe80::1 fd00:42::1:0-fd00:42::1:ff");
    for (bad, expected) in [
        (
            "[{network_address: 'fd00:42::/48', gateway: 'fd00:42::1'}]",
            "fe80::1 on every host: leave this key out, got fd00:42::1",
        ),
        ("[{network_address: 'fd00:42::/48', start_address: 10.42.0.2}]", "start_address: expected an IPv6 address"),
        ("[{network_address: 10.42.0.0/16, end_address: 'fd00::1'}]", "end_address: expected an IPv4 address"),
        (
            "[{network_address: 'fd00:42::/48', end_address: 'fd00:43::1'}]",
            "an address of a container in fd00:42::/48, got fd00:43::1",
        ),
        (
            "[{network_address: 'fd00:42::/48', start_address: 'fd00:42::'}]",
            "an address of a container in fd00:42::/48, got fd00:42::",
        ),
        (
            "[{network_address: 'fd00:42::/48', start_address: 'fd00:42::2', end_address: 'fd00:42::1'}]",
            "start_address before end_address",
        ),
        ("[{network_address: 'fd00:42::/127'}]", "an IPv6 prefix such as fd00:42::/48, of a length from 16 to 124"),
        ("[{network_address: 'fd00:42:::'}]", "an IPv6 prefix such as fd00:42::/48"),
        ("[{network_address: 'fd00:42::', cidr_size: 8}]", "from 16 to 124"),
        (
            "[{network_address: 'fd00:42::/48'}, {network_address: 'fd00:43::/48'}]",
            "expected one IPv6 subnet that holds all blocks, got fd00:43::/48 beside fd00:42::/48",
        ),
        ("[{network_address: 'fd00:42::/48'}, {network_address: 'fd00:42::/64'}]", "fd00:42::/64 overlaps fd00:42::/48"),
    ] {
        let (_, messages) = with(bad);
        assert!(messages.contains(expected) && messages.starts_with("r.yml:"), "{bad}: {messages}");
    }
    let plugin = |prefix: &str| {
        let text = format!(
            "s: {{network_driver: {{name: D, default_network: {{name: d, subnets: [{{network_address: 'fd00:42::/48'}}]}}, cni_config: {{
              a.conf: {{type: rancher-bridge, bridgeSubnet6: '{prefix}', ipam: {{type: rancher-cni-ipam}}}}}}}}}}"
        );
        read(&text).1
    };
    assert_eq!(plugin("fd00:42::/48"), "");
    let other = plugin("fd00:43::/48");
    assert!(
        other.contains("r.yml:2: ")
            && other.contains("the network's IPv6 subnet fd00:42::/48, or leave this key out; got fd00:43::/48"),
        "{other}"
    );
}

#[test]
fn subnets_are_held_against_themselves() {
    let with = |subnets: &str| network_with(&format!("      subnets: {subnets}\n")).1;
    assert_eq!(with("[]"), "");
    assert_eq!(with("[{network_address: 10.1.0.0/16, cidr_size: 16}]"), "");
    assert!(
        with("[{network_address: 10.1.0.0/16, cidr_size: 24}]")
            .contains("warning: s.network_driver.default_network.subnets[0].cidr_size: the length /16")
    );
    assert!(with("[{network_address: 10.1.0.7/16}]").contains("warning: s.network_driver.default_network.subnets[0].network_address: 10.1.0.7 is an address in the network 10.1.0.0/16"));
    assert!(with("[{}]").contains("10.44.0.0/16 stands in"));
    for bad in [
        "[{network_address: 10.1.0.0/16, gateway: 10.2.0.1}]",
        "[{network_address: 10.1.0.0/16, start_address: 10.1.0.0}]",
        "[{network_address: 10.1.0.0/16, end_address: 10.1.255.255}]",
    ] {
        assert!(with(bad).contains("expected an address of a container in 10.1.0.0/16"), "{bad}");
    }
    assert!(
        with("[{network_address: 10.1.0.0/16, start_address: 10.1.0.9, end_address: 10.1.0.8}]")
            .contains("start_address before end_address")
    );
    assert!(
        with("[{network_address: 10.1.0.0/16}, {network_address: 10.1.7.0/24}]")
            .contains("10.1.7.0/24 overlaps 10.1.0.0/16 (line 6)")
    );
    assert!(spoiled("bridgeSubnet: '10.42.0.0/16'", "bridgeSubnet: 10.43.0.0/16").contains("both must be changed together"));
}

#[test]
fn networks_of_one_file_do_not_share_addresses() {
    let other = EXAMPLE.replacen("ipsec:", "other:", 1).replace("name: ipsec", "name: other");
    let (_, messages) = read(&format!("{EXAMPLE}\n{}", other.replace("10.42.0.0/16", "10.42.9.0/24")));
    let message = "other.network_driver.default_network.subnets: 10.42.9.0/24 of network other overlaps 10.42.0.0/16 of network \
        ipsec (line 3): on one host they cannot be told apart";
    assert!(messages.contains(message), "{messages}");
    assert_eq!(read(&format!("{EXAMPLE}\n{}", other.replace("10.42.0.0/16", "10.43.0.0/16"))).0.len(), 2);
}

#[test]
fn variables_are_put_in() {
    let text = EXAMPLE
        .replace("'10.42.0.0/16'", "${SUBNET:-10.42.0.0/16}")
        .replace(
            "linkMTUOverhead: 98",
            "linkMTUOverhead: ${OVERHEAD}\n        mtu: ${MTU:-1500}\n        isDebugLevel: ${DEBUG:-false}",
        )
        .replace("name: Rancher IPsec", "name: $WHO at $$5 ${UNSET-}")
        .replace("        hairpinMode\": true\n", "")
        .replace("hostNat: true", "hostNat: ${NAT}");
    let variables = [("OVERHEAD", "50"), ("MTU", ""), ("WHO", "we"), ("NAT", "false")];
    let (drivers, messages) = read_with(&text, &variables, false);
    assert_eq!(messages, "");
    assert_eq!(drivers[0].name, "we at $5 ");
    let netconf = &drivers[0].cni_config[0].netconf;
    assert_eq!((&netconf["linkMTUOverhead"], &netconf["mtu"]), (&json!(50), &json!(1500)));
    assert_eq!((&netconf["isDebugLevel"], &netconf["hostNat"]), (&json!("false"), &json!(false)));
    assert_eq!(netconf["bridgeSubnet"], "10.42.0.0/16");
    let (drivers, _) = read_with(&text, &[("SUBNET", "10.9.0.0/16"), ("OVERHEAD", "1")], false);
    assert!(drivers.is_empty(), "NAT is not set, and nothing is neither true nor false");

    let foreign = |value: &str| {
        read_with(
            &format!(
                "s:\n  network_driver:\n    name: d\n    cni_config:\n      a.conf:\n        type: other\n        it: {value}\n"
            ),
            &[("N", "12"), ("T", "true")],
            false,
        )
    };
    for (value, expected) in [
        ("${N}", json!(12)),
        ("'012'", json!("012")),
        ("'12'", json!("12")),
        ("12", json!(12)),
        ("-12", json!(-12)),
        ("1.5", json!(1.5)),
        ("'${N}'", json!(12)),
        ("${T}", json!("true")),
        ("true", json!(true)),
        ("'true'", json!("true")),
        ("x${N}", json!("x12")),
    ] {
        let (drivers, messages) = foreign(value);
        assert_eq!((&drivers[0].cni_config[0].netconf["it"], messages.as_str()), (&expected, ""), "{value}");
    }
    for (value, part) in [
        ("'${N'", "`${` without its `}`"),
        ("'${}'", "expected the name of a variable"),
        ("'${N:?gone}'", "is not supported"),
        ("'5$'", "a `$` without a name"),
    ] {
        assert!(foreign(value).1.contains(part), "{value}: {}", foreign(value).1);
    }
    assert!(foreign("${GONE}").1.contains("warning: s.network_driver.cni_config.a.conf.it: the variable GONE is not set"));
}

#[test]
fn a_prefix_size_that_is_not_the_bridges_is_told() {
    let messages = spoiled("type: rancher-cni-ipam", "type: rancher-cni-ipam\n          subnetPrefixSize: /24");
    assert!(messages.contains("/24 is not the length of bridgeSubnet 10.42.0.0/16"), "{messages}");
}

#[test]
fn drivers_of_several_files_are_held_together() {
    let together = |other: &str| {
        let of = |file: &str, text: &str| (PathBuf::from(file), read(text).0.remove(0));
        let mut report = Report::new(Path::new("u.yaml"));
        check_together(&[of("a.yml", EXAMPLE), of("b.yml", other)], &mut report);
        report.to_string()
    };
    let name = "b.yml:3: default_network.name: a network called ipsec comes with the driver at a.yml:3 already";
    let messages = together(&EXAMPLE.replace("10.42.", "10.43."));
    assert!(messages.contains(name), "{messages}");
    let messages = together(&EXAMPLE.replace("name: ipsec", "name: blue"));
    assert!(
        messages.contains("10.42.0.0/16 of network blue overlaps 10.42.0.0/16 of network ipsec (a.yml:3)"),
        "{messages}"
    );
    assert_eq!(together(&EXAMPLE.replace("name: ipsec", "name: blue").replace("10.42.", "10.43.")), "");
}

#[test]
fn labels_stand_in_within_lists_too() {
    let (drivers, messages) =
        read("s: {network_driver: {name: d, cni_config: {a.conf: {type: other, it: [x, '__host_label__: rack']}}}}");
    assert_eq!(messages, "");
    let labels = Labels::from([("rack".to_owned(), "r7".to_owned())]);
    assert_eq!(drivers[0].cni_files(&labels)[0].netconf["it"], json!(["x", "r7"]));
}

#[test]
fn a_catalogs_questions_have_defaults() {
    let text = EXAMPLE.replace("'10.42.0.0/16'", "${SUBNET}").replace("        hairpinMode\": true\n", "");
    let text = format!(
        ".catalog:\n  name: IPsec\n  questions:\n  - variable: SUBNET\n    label: x\n    default: 10.77.0.0/16\n{text}"
    );
    let (drivers, messages) = read(&text);
    assert_eq!(messages, "");
    assert_eq!(drivers[0].cni_config[0].netconf["bridgeSubnet"], "10.77.0.0/16");
    let (drivers, _) = read_with(&text, &[("SUBNET", "10.78.0.0/16")], false);
    assert_eq!(drivers[0].cni_config[0].netconf["bridgeSubnet"], "10.78.0.0/16", "who answered is heard");
}

#[test]
fn compose_files_are_told_from_configurations() {
    for (name, text, expected) in [
        ("rancher-compose.yml", "web: {}", true),
        ("/etc/docker-compose.yaml", "", true),
        ("compose.yml", "[", true),
        ("net.yml", EXAMPLE, true),
        ("net.yml", "services: {a: {network_driver: {}}}", true),
        ("underpass.yaml", "overlay: {blocks: [10.42.1.0/24]}", false),
        ("decompose.yaml", "overlay: {}", false),
        ("underpass.yaml", "[", false),
    ] {
        let read = parse_if_compose(Path::new(name), text.as_bytes(), &|_| None, false);
        assert_eq!(read.is_some(), expected, "{name}: {text}");
        if let Some((drivers, report)) = read {
            let (same, told) = parse(Path::new(name), text.as_bytes(), &|_| None, false);
            assert_eq!((drivers, report.to_string()), (same, told.to_string()));
        }
    }
}

proptest! {
    /// Whatever stands in the place of a value or key: an answer, never a panic, and drivers exactly if there is no error.
    #[test]
    fn nothing_makes_it_panic(from in 0usize..EXAMPLE.len(), len in 0usize..40, to in "[ -~\n]{0,20}") {
        let end = (from + len).min(EXAMPLE.len());
        if EXAMPLE.is_char_boundary(from) && EXAMPLE.is_char_boundary(end) {
            read(&format!("{}{to}{}", &EXAMPLE[..from], &EXAMPLE[end..]));
        }
    }
}
