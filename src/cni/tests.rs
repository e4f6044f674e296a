//! Requests and answers, without a runtime; the plugins as runtimes call them are tested in `tests/it`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::request::{Command, Request, Wanted};
use super::result::{Address, Fault, Route, Success, Version, addresses_in};
use super::*;

fn parse(command: &str, variables: &[(&str, &str)], netconf: &Value) -> Result<Request, Fault> {
    let mut all = BTreeMap::from([("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/x"), ("CNI_IFNAME", "eth0")]);
    all.extend(variables.iter().copied());
    let variable = |name: &str| all.get(name).filter(|value| **value != "unset").map(|value| (*value).to_owned());
    Request::parse(command, &variable, netconf.to_string().as_bytes())
}

fn conf(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net", "type": "rancher-cni-ipam", "ipam": {"type": "rancher-cni-ipam"}})
}

fn wanted(args: &str, more: Value) -> Result<Vec<Wanted>, (u32, String)> {
    let mut netconf = conf("1.0.0");
    netconf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let request = parse("ADD", &[("CNI_ARGS", args)], &netconf);
    request.map(|request| request.wanted).map_err(|fault| (fault.code, fault.message))
}

#[test]
fn a_request_is_what_the_runtime_said() {
    let request = parse("ADD", &[], &conf("0.3.1")).unwrap();
    assert_eq!((request.command, request.version), (Command::Add, Version::V0_3_1));
    assert_eq!((request.container.as_str(), request.interface.as_str()), ("c1", "eth0"));
    assert_eq!((request.netns.as_str(), request.network.as_str()), ("/run/netns/x", "net"));
    let mut old = conf("");
    assert_eq!(parse("ADD", &[], &old).unwrap().version, Version::V0_1_0, "no text");
    old.as_object_mut().unwrap().remove("cniVersion");
    assert_eq!(parse("ADD", &[], &old).unwrap().version, Version::V0_1_0, "no key");
    assert_eq!(parse("DEL", &[("CNI_NETNS", "")], &conf("1.0.0")).unwrap().netns, "");
    for command in ["GC", "STATUS"] {
        let bare = [("CNI_CONTAINERID", "unset"), ("CNI_NETNS", "unset"), ("CNI_IFNAME", "unset")];
        assert!(parse(command, &bare, &conf("1.1.0")).is_ok(), "{command}");
    }
}

/// A command, its variables, its configuration; the code that it earns, and a part of the message.
type Case<'c> = (&'c str, &'c [(&'c str, &'c str)], Value, u32, &'c str);

#[test]
fn what_makes_no_sense_has_its_code() {
    let own = "/proc/self/ns/net";
    let cases: &[Case<'_>] = &[
        ("ADD", &[("CNI_IFNAME", "unset"), ("CNI_NETNS", "")], conf("1.0.0"), 4, "[CNI_NETNS,CNI_IFNAME] missing"),
        ("DEL", &[("CNI_CONTAINERID", "unset")], conf("1.0.0"), 4, "[CNI_CONTAINERID] missing"),
        ("BOOT", &[], conf("1.0.0"), 4, "unknown CNI_COMMAND: BOOT"),
        ("ADD", &[("CNI_CONTAINERID", "a/b")], conf("1.0.0"), 4, "invalid CNI_CONTAINERID"),
        ("ADD", &[("CNI_CONTAINERID", "-a")], conf("1.0.0"), 4, "invalid CNI_CONTAINERID"),
        ("ADD", &[("CNI_IFNAME", "sixteen-letters-")], conf("1.0.0"), 4, "invalid CNI_IFNAME"),
        ("ADD", &[("CNI_IFNAME", "a b")], conf("1.0.0"), 4, "invalid CNI_IFNAME"),
        ("ADD", &[("CNI_IFNAME", "..")], conf("1.0.0"), 4, "invalid CNI_IFNAME"),
        ("ADD", &[("CNI_ARGS", "IP")], conf("1.0.0"), 4, "is no KEY=VALUE"),
        ("ADD", &[("CNI_NETNS", own)], conf("1.0.0"), 8, "the host's own network namespace"),
        ("ADD", &[], conf("2.0.0"), 1, "CNI version \"2.0.0\""),
        ("CHECK", &[], conf("0.3.1"), 1, "CHECK needs CNI 0.4.0"),
        ("GC", &[], conf("1.0.0"), 1, "GC needs CNI 1.1.0"),
        ("ADD", &[], json!([]), 6, "no JSON object"),
        ("ADD", &[], json!({"cniVersion": 1, "name": "n"}), 6, "cniVersion is no text"),
        ("ADD", &[], json!({"cniVersion": "1.0.0"}), 7, "missing network name"),
        ("ADD", &[], json!({"cniVersion": "1.0.0", "name": "../n"}), 7, "invalid network name"),
    ];
    for (command, variables, netconf, code, message) in cases {
        let fault = parse(command, variables, netconf).unwrap_err();
        assert_eq!(fault.code, *code, "{command} {variables:?}: {}", fault.message);
        assert!(fault.message.contains(message), "{command} {variables:?}: {}", fault.message);
    }
    assert!(parse("ADD", &[("CNI_NETNS", own), ("CNI_NETNS_OVERRIDE", "1")], &conf("1.0.0")).is_ok());
    assert!(parse("DEL", &[("CNI_NETNS", own)], &conf("1.0.0")).is_ok(), "nothing is done in it");
    let fault = Fault::configuration("why").as_json(Version::V0_4_0);
    assert_eq!(fault, json!({"cniVersion": "0.4.0", "code": 7, "msg": "why"}));
}

#[test]
fn wishes_come_by_four_ways() {
    let one = |text: &str, prefix_len| Ok(vec![Wanted { address: text.parse().unwrap(), prefix_len }]);
    let runtime = json!({"runtimeConfig": {"ips": ["10.1.0.1/24"]}});
    let args = json!({"args": {"cni": {"ips": ["10.1.0.2"]}}});
    let both = json!({"runtimeConfig": {"ips": ["10.1.0.1/24"]}, "args": {"cni": {"ips": ["10.1.0.2"]}}});
    assert_eq!(wanted("IP=10.1.0.3", both), one("10.1.0.1", Some(24)));
    assert_eq!(wanted("", runtime), one("10.1.0.1", Some(24)));
    assert_eq!(wanted("IgnoreUnknown=1;IP=10.1.0.3", args), one("10.1.0.2", None));
    assert_eq!(wanted("IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.1.0.3", json!({})), one("10.1.0.3", None));
    assert_eq!(wanted("IPAddress=10.42.7.7/16;MACAddress=02:00:00:00:00:01", json!({})), one("10.42.7.7", Some(16)));
    assert_eq!(wanted("IP=10.1.0.3,fd00::3", json!({})).unwrap().len(), 2);
    assert_eq!(wanted("IP=;;", json!({"runtimeConfig": {"ips": []}, "args": null})), Ok(vec![]));
    assert_eq!(wanted("IP=x", json!({})).unwrap_err(), (4, "CNI_ARGS: \"x\" is no address".to_owned()));
    assert_eq!(wanted("", json!({"runtimeConfig": {"ips": "10.1.0.1"}})).unwrap_err().0, 7);
    assert_eq!(wanted("", json!({"args": {"cni": {"ips": [1]}}})).unwrap_err().0, 7);
}

#[test]
fn an_answer_has_the_shape_of_its_version() {
    let success = Success {
        addresses: vec![
            Address {
                address: "10.42.1.2/16".parse().unwrap(),
                gateway: Some("10.42.0.1".parse().unwrap()),
                interface: None,
            },
            Address { address: "fd00::2/64".parse().unwrap(), gateway: None, interface: None },
        ],
        routes: vec![Route { dst: "0.0.0.0/0".parse().unwrap(), gw: None }],
        ..Success::default()
    };
    for version in Version::ALL {
        let told = success.as_json(version);
        assert_eq!((&told["cniVersion"], &told["dns"]), (&json!(version.text()), &json!({})));
        let expected = match version {
            Version::V0_1_0 | Version::V0_2_0 => json!({
                "cniVersion": version.text(),
                "ip4": {"ip": "10.42.1.2/16", "gateway": "10.42.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
                "ip6": {"ip": "fd00::2/64"},
                "dns": {},
            }),
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => json!({
                "cniVersion": version.text(),
                "ips": [
                    {"version": "4", "address": "10.42.1.2/16", "gateway": "10.42.0.1"},
                    {"version": "6", "address": "fd00::2/64"},
                ],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dns": {},
            }),
            Version::V1_0_0 | Version::V1_1_0 => json!({
                "cniVersion": version.text(),
                "ips": [{"address": "10.42.1.2/16", "gateway": "10.42.0.1"}, {"address": "fd00::2/64"}],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dns": {},
            }),
        };
        assert_eq!(told, expected);
        assert_eq!(Success::parse(&told).unwrap(), success, "{}", version.text());
        let read: Vec<String> = addresses_in(&told).iter().map(ToString::to_string).collect();
        assert_eq!(read, ["10.42.1.2", "fd00::2"], "{}", version.text());
    }
}

#[test]
fn a_program_is_known_by_the_end_of_its_path() {
    let of = |path: &str| Plugin::of_program(OsStr::new(path));
    assert_eq!(of("/opt/cni/bin/rancher-cni-ipam"), Some(Plugin::Ipam));
    assert_eq!(of("rancher-cni-ipam"), Some(Plugin::Ipam));
    assert_eq!(of("/opt/cni/bin/rancher-bridge"), Some(Plugin::RancherBridge));
    assert_eq!(of("underpass-cni"), Some(Plugin::Underpass));
    assert_eq!(of("/usr/bin/underpass"), None);
    assert_eq!(of("rancher-cni-ipam-2"), None);
    assert_eq!(of(""), None);
}

#[test]
fn what_a_runtime_says_of_a_container_is_heard() {
    let about = |args: &str, runtime: Value| {
        let mut netconf = conf("1.0.0");
        netconf["runtimeConfig"] = runtime;
        let id = "3914054c7b15cdc6a80ff1e666dc5fbb8de0b1f65dcf4bdf8638b772816028ea";
        let request = parse("ADD", &[("CNI_ARGS", args), ("CNI_CONTAINERID", id)], &netconf).unwrap();
        request.about().map_err(|fault| (fault.code, fault.message))
    };
    // Octet by octet as podman 4.3.1 sends it for `--name web --network net --network-alias x --network-alias web.local -p 8080:80
    // -p 127.0.0.1:5353:53/udp`; on a second network the other's aliases are not this one's.
    let podman = json!({
        "aliases": {"net": ["x", "web.local", "3914054c7b15"], "two": ["y", "3914054c7b15"]},
        "portMappings": [
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        ],
    });
    let said = about("IgnoreUnknown=1;K8S_POD_NAME=web", podman).unwrap();
    assert_eq!(said.name.as_deref(), Some("web"));
    assert_eq!(said.aliases, ["x", "web.local"]);
    assert_eq!(said.ports, ["8080->80/tcp", "127.0.0.1:5353->53/udp"]);
    let plain = json!({"aliases": {"net": ["3914054c7b15"]}});
    assert_eq!(about("", plain), Ok(crate::ipam::About::default()), "an id is no name");
    let many: Vec<String> = (0..1000).map(|number| format!("a{}", number % 500)).collect();
    let many = about("K8S_POD_NAME=a0", json!({"aliases": {"net": many}})).unwrap().aliases;
    assert_eq!((many.len(), many[0].as_str(), many[63].as_str()), (64, "a1", "a64"), "each once, and not the name again");
    let long = "a".repeat(254);
    assert_eq!(about(&format!("K8S_POD_NAME={long}"), json!({"aliases": {"net": [long, ""]}})), Ok(Default::default()));
    for wrong in [json!(["x"]), json!({"net": "x"}), json!({"net": [7]})] {
        let (code, message) = about("", json!({"aliases": wrong})).unwrap_err();
        assert_eq!(code, 7);
        assert!(message.starts_with("runtimeConfig.aliases: expected {network: [names]}, got "), "{message}");
    }
}
