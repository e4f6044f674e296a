//! Plugins that make interfaces: the same list for Debian's `bridge`, which proves it, and for ours; then what only ours do.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use underpass::sys::netlink::Netlink;

use super::harness::{self, Answer, Runtime, Target, Who, address_in};
use super::refused;

/// Gives out 10.42.1.2 to 10.42.1.6.
pub(super) fn own_ipam(folder: &Path) -> Value {
    json!({
        "ipam": {"type": "rancher-cni-ipam", "subnetPrefixSize": "/16"},
        "underpass": {"stateDir": folder, "blocks": ["10.42.1.0/29"]},
    })
}

pub(super) fn host_local(folder: &Path) -> Value {
    let ranges = json!([[{"subnet": "10.42.1.0/29"}]]);
    json!({"ipam": {"type": "host-local", "dataDir": folder, "ranges": ranges}})
}

pub(super) fn with(mut conf: Value, more: Value) -> Value {
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

pub(super) const ALL: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

pub(super) fn reference() -> Target {
    Target {
        program: harness::REFERENCE.join("bridge"),
        versions: &ALL[..6],
        newest: "1.0.0",
        conf: |folder| with(host_local(folder), json!({"bridge": "up-test0", "isDefaultGateway": true})),
    }
}

pub(super) fn rancher() -> Target {
    Target {
        program: "rancher-bridge".into(),
        versions: ALL,
        newest: "1.1.0",
        conf: |folder| with(own_ipam(folder), json!({"bridge": "up-test0", "isDefaultGateway": true, "hostNat": true})),
    }
}

/// Ours, with addresses from Debian's plugin.
fn rancher_with_host_local() -> Target {
    Target {
        program: "rancher-bridge".into(),
        versions: ALL,
        newest: "1.1.0",
        conf: |folder| with(host_local(folder), json!({"bridge": "up-test0", "isDefaultGateway": true})),
    }
}

/// With nothing but where the addresses are.
pub(super) fn underpass() -> Target {
    Target {
        program: "underpass-cni".into(),
        versions: ALL,
        newest: "1.1.0",
        conf: |folder| json!({"underpass": {"stateDir": folder, "blocks": ["10.42.1.0/29"]}}),
    }
}

/// The names of the interfaces in a container.
pub(super) fn links(runtime: &Runtime<'_>, container: &str) -> Vec<String> {
    let list = || Netlink::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect();
    runtime.container(container).run(list).unwrap()
}

pub(super) fn fine(answer: &Answer) {
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
}

fn conforms(target: &Target) {
    super::versions(target);
    super::bad_requests(target);
    for version in target.versions {
        let runtime = Runtime::new(target);
        let mut conf = runtime.conf(version);
        let added: Vec<Answer> =
            ["c1", "c2"].iter().map(|container| runtime.call("ADD", &Who::new(container), "", &conf)).collect();
        for (answer, container) in added.iter().zip(["c1", "c2"]) {
            assert_eq!(answer.code, 0, "{version}: {answer:?}");
            assert_eq!(answer.json["cniVersion"], *version);
            let result = &answer.json;
            if ["0.1.0", "0.2.0"].contains(version) {
                assert!(result.get("interfaces").is_none() && result["ip4"]["gateway"].is_string(), "{result}");
            } else {
                let interfaces = result["interfaces"].as_array().unwrap();
                let index = result["ips"][0]["interface"].as_u64().unwrap() as usize;
                assert_eq!(interfaces[index]["name"], "eth0", "{result}");
                assert_eq!(interfaces[index]["sandbox"], json!(runtime.netns(container)), "{result}");
                assert!(interfaces.iter().all(|it| it["mac"].as_str().unwrap().len() == 17), "{result}");
                assert!(interfaces.iter().filter(|it| it.get("sandbox").is_none()).count() == 2, "{result}");
            }
            assert_eq!(links(&runtime, container), ["lo", "eth0"], "{version}");
        }
        runtime.ping("c1", &address_in(&added[1].json));
        runtime.ping("c2", &address_in(&added[0].json));
        refused_somehow(&runtime.call("ADD", &Who::new("c1"), "", &conf));
        runtime.ping("c1", &address_in(&added[1].json));
        conf["prevResult"] = added[0].json.clone();
        if *version >= "0.4.0" {
            fine(&runtime.call("CHECK", &Who::new("c1"), "", &conf));
            let container = runtime.container("c1");
            container.run(|| Netlink::open().unwrap().set_down("eth0").unwrap()).unwrap();
            let strip = |netlink: &mut Netlink| {
                for address in netlink.addresses_of("eth0").unwrap() {
                    netlink.delete_address("eth0", address.address).unwrap();
                }
            };
            container.run(|| strip(&mut Netlink::open().unwrap())).unwrap();
            refused_somehow(&runtime.call("CHECK", &Who::new("c1"), "", &conf));
        }
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        assert_eq!(links(&runtime, "c1"), ["lo"], "{version}");
        fine(&runtime.call("DEL", &Who { netns: Some("/nonexistent/netns"), ..Who::new("c2") }, "", &conf));
        fine(&runtime.call("DEL", &Who { netns: Some(""), ..Who::new("c2") }, "", &conf));
        fine(&runtime.call("DEL", &Who { netns: Some(""), ..Who::new("nobody") }, "", &conf));
    }
    errors(target);
}

/// Some error, in the form that errors have.
pub(super) fn refused_somehow(answer: &Answer) {
    refused(answer, answer.json["code"].as_u64().expect("a code"));
}

fn errors(target: &Target) {
    let runtime = Runtime::new(target);
    let conf = runtime.conf(target.newest);
    refused_somehow(&runtime.call("ADD", &Who { netns: Some("/nonexistent/netns"), ..Who::new("c1") }, "", &conf));
    let mut bad = conf.clone();
    bad["ipam"] = json!({"type": "no-such-plugin"});
    refused_somehow(&runtime.call("ADD", &Who::new("c1"), "", &bad));
    let mut bad = conf.clone();
    bad["bridge"] = json!("lo");
    refused_somehow(&runtime.call("ADD", &Who::new("c1"), "", &bad));
    refused_somehow(&runtime.call("ADD", &Who::new("c1"), "IgnoreUnknown=1;MAC=nonsense", &conf));
    // The reference plugin leaves the interface behind.
    if target.newest == "1.1.0" {
        assert_eq!(links(&runtime, "c1"), ["lo"]);
    }
    assert_eq!(taken(&runtime), 0, "nothing that failed kept an address");
    runtime.add(&Who { interface: "eth1", ..Who::new("c1") }, "", &conf);
    assert_eq!(taken(&runtime), 1);
}

/// How many addresses are given out, as the plugin for addresses keeps it.
fn taken(runtime: &Runtime<'_>) -> usize {
    let of_host_local = fs::read_dir(runtime.folder().join("net")).into_iter().flatten().flatten();
    let is_address = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("10.42.");
    of_host_local.filter(is_address).count() + runtime.leases().len()
}

#[test]
fn the_reference_bridge_does_what_the_list_demands() {
    conforms(&reference());
}

#[test]
fn rancher_bridge_does_what_the_list_demands() {
    conforms(&rancher());
}

#[test]
fn rancher_bridge_with_host_local_does_what_the_list_demands() {
    conforms(&rancher_with_host_local());
}

#[test]
fn underpass_cni_does_what_the_list_demands() {
    conforms(&underpass());
}

#[test]
fn interfaces_are_as_they_were_asked_for() {
    let target = rancher();
    let runtime = Runtime::new(&target);
    let mut conf = runtime.conf("1.1.0");
    conf["mtu"] = json!(1500);
    conf["linkMTUOverhead"] = json!(98);
    conf["promiscMode"] = json!(true);
    conf["dns"] = json!({"nameservers": ["169.254.169.250"]});
    let result = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
    let last = &result["interfaces"][2];
    let address = address_in(&result);
    let [c, d] = address.rsplit('.').take(2).map(|part| part.parse::<u8>().unwrap()).collect::<Vec<_>>()[..] else {
        panic!()
    };
    assert_eq!((&last["mtu"], &last["mac"]), (&json!(1402), &json!(format!("02:00:0a:2a:{d:02x}:{c:02x}"))), "{result}");
    assert_eq!(result["dns"]["nameservers"][0], "169.254.169.250");
    assert_eq!(result["interfaces"][0], json!({"name": "up-test0", "mac": "02:00:0a:2a:00:01"}));
    assert!(result["interfaces"][1]["name"].as_str().unwrap().starts_with("vethr"), "{result}");
    assert_eq!(result["ips"][0]["gateway"], "10.42.0.1");
    let seen = runtime.container("c1").run(|| Netlink::open().unwrap().link("eth0").unwrap()).unwrap();
    assert_eq!(seen.mtu, 1402);
    assert!(runtime.on_host(&["ip", "link", "show", "up-test0"]).contains("PROMISC"));
    let more = "IgnoreUnknown=1;MAC=02:11:22:33:44:55;LinkMTUOverhead=0;IPAddress=10.42.1.6/16";
    let result = runtime.call("ADD", &Who::new("c2"), more, &conf).json;
    assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:55");
    assert_eq!((&result["interfaces"][2]["mtu"], &result["ips"][0]["address"]), (&json!(1500), &json!("10.42.1.6/16")));
    runtime.ping("c2", &address);
    for (key, value, message) in [
        ("promiscMode", json!(true), "exclude each other"),
        ("bridge", json!("a-very-long-name"), "cannot name an interface"),
        ("bridgeIP", json!("10.43.0.1"), "is not in bridgeSubnet"),
        ("mtu", json!("1500"), "expected a number"),
        ("hostNat", json!("true"), "expected true or false"),
        ("ipam", json!({"type": "../../bin/sh"}), "is no plugin's name"),
        ("ipam", json!({}), "ipam.type"),
        ("runtimeConfig", json!({"portMappings": [{"hostPort": 80}]}), "expected {hostPort, containerPort, protocol}"),
    ] {
        let mut bad = with(conf.clone(), json!({"hairpinMode": key == "promiscMode", "bridgeSubnet": "10.42.0.0/16"}));
        bad[key] = value;
        let answer = runtime.call("ADD", &Who { interface: "eth9", ..Who::new("c1") }, "", &bad);
        refused(&answer, 7);
        assert!(answer.json["msg"].as_str().unwrap().contains(message), "{answer:?}");
    }
    refused(&runtime.call("ADD", &Who { netns: Some("/nonexistent"), ..Who::new("c1") }, "", &conf), 8);
    assert_eq!(runtime.leases(), ["c1 eth0", "c2 eth0"]);
}

#[test]
fn the_address_that_is_said_for_the_bridge_is_the_gateway() {
    let target = rancher();
    let runtime = Runtime::new(&target);
    let own = json!({"bridgeSubnet": "10.42.0.0/16", "bridgeIP": "10.42.1.2", "isDefaultGateway": true});
    let mut conf = with(runtime.conf("1.0.0"), own);
    let results = ["c1", "c2"].map(|container| runtime.call("ADD", &Who::new(container), "", &conf).json);
    let given = results.each_ref().map(address_in);
    assert_eq!(given, ["10.42.1.1", "10.42.1.3"], "the bridge's is nobody else's: {results:?}");
    for result in &results {
        assert_eq!((&result["ips"][0]["gateway"], &result["routes"][0]["gw"]), (&json!("10.42.1.2"), &json!("10.42.1.2")));
    }
    runtime.ping("c1", "10.42.1.2");
    conf["prevResult"] = results[0].clone();
    fine(&runtime.call("CHECK", &Who::new("c1"), "", &conf));
}

#[test]
fn a_plugin_adds_to_what_was_made_before_it() {
    let target = rancher();
    let runtime = Runtime::new(&target);
    let mut conf = runtime.conf("1.0.0");
    conf["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "other0", "mac": "02:00:00:00:00:09", "sandbox": runtime.netns("c1")}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let result = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
    assert_eq!(result["ips"][0], json!({"address": "192.0.2.9/24", "interface": 0}), "{result}");
    assert_eq!((&result["ips"][1]["interface"], &result["interfaces"][3]["name"]), (&json!(3), &json!("eth0")), "{result}");
    assert_eq!(result["routes"].as_array().unwrap().len(), 2);
    assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.53"]));
}

#[test]
fn rancher_bridge_collects_what_is_not_listed() {
    for target in [rancher(), rancher_with_host_local(), underpass()] {
        let runtime = Runtime::new(&target);
        let conf = runtime.conf("1.1.0");
        fine(&runtime.call("STATUS", &Who::new("c1"), "", &conf));
        runtime.add(&Who::new("c1"), "", &conf);
        runtime.add(&Who::new("c2"), "", &conf);
        let mut gc = conf.clone();
        refused(&runtime.call("GC", &Who::new("c1"), "", &gc), 7);
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
        fine(&runtime.call("GC", &Who::new("c1"), "", &gc));
        assert_eq!(links(&runtime, "c1"), ["lo"]);
        assert_eq!(links(&runtime, "c2"), ["lo", "eth0"]);
        let gateway = if conf["ipam"]["type"] == "host-local" { "10.42.1.1" } else { "10.42.0.1" };
        runtime.ping("c2", gateway);
    }
}

/// Where an ADD can fail, or be killed; see `attach::step`.
const STEPS: [&str; 9] = ["bridge", "fence", "forwarding", "admit", "wire", "port", "address", "route", "announce"];

/// What there is on the host and in the container `c1`.
pub(super) fn state(runtime: &Runtime<'_>) -> [String; 5] {
    let nft = runtime.on_host(&["nft", "-s", "list", "ruleset"]);
    let nft: Vec<&str> = nft.lines().filter(|line| !line.contains("packets")).collect();
    let links = runtime.host_links().join(" ");
    let (routes, leases) = (runtime.on_host(&["ip", "route"]), runtime.leases().join(" "));
    [links, routes, nft.join("\n"), leases, self::links(runtime, "c1").join(" ")]
}

/// A host with one container, and room for many more.
pub(super) fn inhabited(target: &Target) -> (Runtime<'_>, Value) {
    let runtime = Runtime::new(target);
    let mut conf = runtime.conf("1.1.0");
    conf["underpass"]["blocks"] = json!(["10.42.1.0/24"]);
    runtime.add(&Who::new("c2"), "", &conf);
    (runtime, conf)
}

/// Each step that can fail is made to, and then there is nothing more than before, in any place.
#[test]
fn an_add_that_fails_leaves_nothing() {
    let target = rancher();
    let (runtime, conf) = inhabited(&target);
    let before = state(&runtime);
    for step in STEPS {
        fs::write(runtime.faults(), format!("attach-{step}")).unwrap();
        let answer = runtime.call("ADD", &Who::new("c1"), "", &conf);
        refused(&answer, 104);
        assert!(answer.json["msg"].as_str().unwrap().contains(step), "{answer:?}");
        assert_eq!(state(&runtime), before, "{step}");
    }
    fs::remove_file(runtime.faults()).unwrap();
    runtime.add(&Who::new("c1"), "", &conf);
    runtime.ping("c1", "10.42.0.1");
}

/// `kill -9` at each of them: then a DEL finds whatever there is, and the container can be connected again.
#[test]
fn what_an_add_leaves_that_is_killed_goes_with_del() {
    let target = rancher();
    let (runtime, conf) = inhabited(&target);
    let before = state(&runtime);
    for step in STEPS {
        fs::write(runtime.faults(), format!("attach-{step} die")).unwrap();
        let answer = runtime.call("ADD", &Who::new("c1"), "", &conf);
        assert_eq!((answer.code, answer.out.as_str()), (-1, ""), "{step}: {answer:?}");
        fs::remove_file(runtime.faults()).unwrap();
        assert_ne!(state(&runtime), before, "{step}: an address at least");
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        assert_eq!(state(&runtime), before, "{step}");
    }
    runtime.add(&Who::new("c1"), "", &conf);
    runtime.ping("c1", "10.42.0.1");
}

#[test]
fn many_at_once_are_connected() {
    let target = rancher();
    let (runtime, conf) = inhabited(&target);
    let before = state(&runtime);
    let (shared, conf) = (&runtime, &conf);
    let names: Vec<String> = (0..16).map(|n| format!("n{n}")).collect();
    let at_once = |work: &(dyn Fn(&str) + Sync)| {
        thread::scope(|scope| names.iter().for_each(|name| drop(scope.spawn(move || work(name)))));
    };
    at_once(&|name| drop(shared.add(&Who { interface: name, ..Who::new("c1") }, "", conf)));
    assert_eq!(links(shared, "c1").len(), 17);
    assert_eq!(shared.leases().len(), 17);
    at_once(&|name| fine(&shared.call("DEL", &Who { interface: name, ..Who::new("c1") }, "", conf)));
    assert_eq!(state(shared), before);
}

/// The example of the documents, on a bridge that is there already, as `docker0` would be.
#[test]
fn a_bridge_that_is_there_keeps_its_own_address() {
    let target = Target {
        conf: |folder| {
            json!({
                "bridge": "docker0", "bridgeSubnet": "10.42.0.0/16", "isDefaultGateway": true, "hairpinMode\"": true,
                "hostNat": true, "hairpinMode": true, "linkMTUOverhead": 98,
                "ipam": {"type": "rancher-cni-ipam", "logToFile": folder.join("log")},
                "underpass": {"stateDir": folder, "blocks": ["10.42.1.0/29"]},
            })
        },
        ..rancher()
    };
    let runtime = Runtime::new(&target);
    for command in [
        "ip link add docker0 address 02:42:00:00:00:01 type bridge",
        "ip address add 172.17.0.1/16 dev docker0",
        "ip link set docker0 up",
    ] {
        runtime.on_host(&command.split(' ').collect::<Vec<_>>());
    }
    let conf = runtime.conf("0.3.1");
    for container in ["c1", "c2"] {
        runtime.add(&Who::new(container), "", &conf);
    }
    let addresses = runtime.on_host(&["ip", "-4", "-o", "address", "show", "docker0"]);
    assert!(addresses.contains(" 172.17.0.1/16 ") && addresses.contains(" 10.42.0.1/16 "), "{addresses}");
    assert!(runtime.on_host(&["ip", "link", "show", "docker0"]).contains("02:42:00:00:00:01"));
    runtime.ping("c1", "172.17.0.1");
    runtime.ping("c1", "10.42.0.1");
    let hairpins = runtime.on_host(&["bridge", "-d", "link"]);
    assert_eq!(hairpins.matches("hairpin on").count(), 2, "{hairpins}");
    for container in ["c1", "c2"] {
        fine(&runtime.call("DEL", &Who::new(container), "", &conf));
    }
    assert!(runtime.on_host(&["ip", "-4", "-o", "address", "show", "docker0"]).contains(" 172.17.0.1/16 "));
    // The bridge's own address as the gateway, although it is on no link of the container.
    let mut own = conf.clone();
    own["useBridgeIPAsGateway"] = json!(true);
    runtime.add(&Who::new("c1"), "", &own);
    let default = runtime.container("c1").run(|| Netlink::open().unwrap().routes_to("0.0.0.0/0".parse().unwrap()).unwrap());
    assert_eq!(default.unwrap()[0].gateway, Some("172.17.0.1".parse().unwrap()));
    runtime.ping("c1", "172.17.0.1");
}

#[test]
fn an_add_is_soon_done() {
    let target = rancher();
    let runtime = Runtime::new(&target);
    let mut conf = runtime.conf("1.0.0");
    conf["underpass"]["blocks"] = json!(["10.42.1.0/24"]);
    let start = Instant::now();
    for n in 0..20 {
        runtime.add(&Who { interface: &format!("n{n}"), ..Who::new("c1") }, "", &conf);
    }
    // What it takes is printed, not judged: the machine has other things to do.
    eprintln!("20 times ADD: {:?} each", start.elapsed() / 20);
    assert_eq!(links(&runtime, "c1").len(), 21);
}
