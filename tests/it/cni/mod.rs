//! CNI plugins as container runtimes call them: the same list of demands for Debian's reference plugin, which proves the list, and
//! for ours, which proves us.

mod bridge;
mod harness;
mod list;

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use serde_json::{Value, json};
use underpass::sys::netlink::Netlink;

use harness::{Answer, Runtime, Target, Who, address_in};

/// The reference plugin for addresses, from the Debian package containernetworking-plugins. It knows nothing newer than 1.0.0.
fn reference() -> Target {
    Target {
        program: harness::REFERENCE.join("host-local"),
        versions: &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"],
        newest: "1.0.0",
        conf: |folder| {
            let ranges = json!([[{"subnet": "10.42.1.0/29"}]]);
            json!({"ipam": {"type": "host-local", "dataDir": folder, "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}})
        },
    }
}

/// Ours. No agent has run: the configuration names the block.
fn ours() -> Target {
    Target {
        program: "rancher-cni-ipam".into(),
        versions: &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        newest: "1.1.0",
        conf: |folder| {
            json!({
                "ipam": {"type": "rancher-cni-ipam", "subnetPrefixSize": "/29", "routes": [{"dst": "0.0.0.0/0"}]},
                "underpass": {"stateDir": folder, "blocks": ["10.42.1.0/29"]},
            })
        },
    }
}

/// What the specification demands of every plugin that gives addresses, and what runtimes rely on besides.
fn conforms(target: &Target) {
    versions(target);
    shapes(target);
    bad_requests(target);
    owners(target);
    wishes(target);
    deletion(target);
    checks(target);
    exhaustion(target);
}

fn versions(target: &Target) {
    let runtime = Runtime::new(target);
    let answer = runtime.bare(&[("CNI_COMMAND", "VERSION")], "");
    assert_eq!(answer.code, 0, "{answer:?}");
    let told: Vec<&str> = answer.json["supportedVersions"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(told, target.versions);
    assert!(answer.json["cniVersion"].is_string());
    let answer = runtime.bare(&[], "");
    assert!(answer.err.contains("CNI"), "what it is, for people: {answer:?}");
}

fn shapes(target: &Target) {
    for version in target.versions {
        let runtime = Runtime::new(target);
        let answer = runtime.call("ADD", &Who::new("c1"), "", &runtime.conf(version));
        assert_eq!(answer.code, 0, "{version}: {answer:?}");
        let result = &answer.json;
        assert_eq!(result["cniVersion"], *version);
        assert!(result["dns"].is_object(), "{version}: {result}");
        assert!(result.get("interfaces").is_none(), "{version}: it made none: {result}");
        let address = if ["0.1.0", "0.2.0"].contains(version) {
            assert!(result.get("ips").is_none(), "{version}: {result}");
            assert_eq!(result["ip4"]["gateway"], "10.42.1.1", "{version}");
            assert_eq!(result["ip4"]["routes"][0]["dst"], "0.0.0.0/0", "{version}");
            result["ip4"]["ip"].as_str().unwrap()
        } else {
            assert!(result.get("ip4").is_none(), "{version}: {result}");
            let first = &result["ips"][0];
            let family = if *version < "1" { json!("4") } else { Value::Null };
            assert_eq!(first.get("version").unwrap_or(&Value::Null), &family, "{version}");
            assert_eq!(first["gateway"], "10.42.1.1", "{version}");
            assert!(first.get("interface").is_none(), "{version}");
            assert_eq!(result["routes"][0]["dst"], "0.0.0.0/0", "{version}");
            first["address"].as_str().unwrap()
        };
        assert!(address.starts_with("10.42.1.") && address.ends_with("/29"), "{version}: {address}");
        let answer = runtime.call("DEL", &Who::new("c1"), "", &runtime.conf(version));
        assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{version}: {answer:?}");
    }
}

/// An error object with this code, on standard output.
fn refused(answer: &Answer, code: u64) {
    assert_ne!(answer.code, 0, "{answer:?}");
    assert_eq!(answer.json["code"], code, "{answer:?}");
    assert!(answer.json["msg"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
}

fn bad_requests(target: &Target) {
    let runtime = Runtime::new(target);
    let conf = runtime.conf(target.newest);
    for command in ["ADD", "DEL", "CHECK"] {
        for missing in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            if (command, missing) == ("DEL", "CNI_NETNS") {
                continue;
            }
            let answer = runtime.call_without(missing, command, &Who::new("c1"), &conf);
            refused(&answer, 4);
            assert!(answer.json["msg"].as_str().unwrap().contains(missing), "{command}: {answer:?}");
        }
    }
    refused(&runtime.call("BOOT", &Who::new("c1"), "", &conf), 4);
    for container in ["a/b", ".a", "a b"] {
        refused(&runtime.call("ADD", &Who::new(container), "", &conf), 4);
    }
    for interface in ["sixteen-letters-", "a/b", "a:b", "a b", ".", ".."] {
        refused(&runtime.call("ADD", &Who { interface, ..Who::new("c1") }, "", &conf), 4);
    }
    for name in [Value::Null, json!(""), json!("a/b"), json!("_a")] {
        let mut bad = conf.clone();
        bad["name"] = name;
        refused(&runtime.call("ADD", &Who::new("c1"), "", &bad), 7);
    }
    refused(&runtime.call("ADD", &Who::new("c1"), "", &runtime.conf("7.0.0")), 1);
    refused(&runtime.call("CHECK", &Who::new("c1"), "", &runtime.conf("0.3.1")), 1);
    let deep = "[".repeat(100_000);
    for stdin in ["", "{", "[]", "nonsense", "123", "\0", "{\"name\": \"net\"} {", "{\"name\": \"net\",}", &deep] {
        refused(&runtime.call_text("ADD", &Who::new("c1"), stdin), 6);
    }
    // After all that a good request finds every address free.
    assert_eq!(runtime.call("ADD", &Who::new("c1"), "", &conf).code, 0);
}

fn owners(target: &Target) {
    let runtime = Runtime::new(target);
    let conf = runtime.conf(target.newest);
    let first = runtime.add(&Who::new("c1"), "", &conf);
    let second = runtime.add(&Who { interface: "eth1", ..Who::new("c1") }, "", &conf);
    let other = runtime.add(&Who::new("c2"), "", &conf);
    assert_eq!(BTreeSet::from([&first, &second, &other]).len(), 3, "{first} {second} {other}");
    let again = runtime.call("ADD", &Who::new("c1"), "", &conf);
    assert_ne!(again.code, 0, "an interface that has an address: {again:?}");
    // The first interface is deleted, the second stays.
    assert_eq!(runtime.call("DEL", &Who::new("c1"), "", &conf).code, 0);
    let again = runtime.call("ADD", &Who { interface: "eth1", ..Who::new("c1") }, "", &conf);
    assert_ne!(again.code, 0, "{again:?}");
}

fn wishes(target: &Target) {
    let runtime = Runtime::new(target);
    let conf = runtime.conf(target.newest);
    assert_eq!(runtime.add(&Who::new("c1"), "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.42.1.5", &conf), "10.42.1.5");
    for taken in ["10.42.1.5", "10.42.2.5", "10.42.1.1"] {
        let answer = runtime.call("ADD", &Who::new("c2"), &format!("IgnoreUnknown=1;IP={taken}"), &conf);
        assert_ne!(answer.code, 0, "{taken}: {answer:?}");
        assert!(answer.json["msg"].as_str().unwrap().contains(taken), "{answer:?}");
    }
    let mut with = conf.clone();
    with["runtimeConfig"] = json!({"ips": ["10.42.1.6/29"]});
    assert_eq!(runtime.add(&Who::new("c3"), "", &with), "10.42.1.6");
    let mut with = conf.clone();
    with["args"] = json!({"cni": {"ips": ["10.42.1.4"]}});
    assert_eq!(runtime.add(&Who::new("c4"), "", &with), "10.42.1.4");
}

fn deletion(target: &Target) {
    let runtime = Runtime::new(target);
    let conf = runtime.conf(target.newest);
    let fine = |who: &Who<'_>| {
        let answer = runtime.call("DEL", who, "", &conf);
        assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{who:?}: {answer:?}");
    };
    fine(&Who::new("nobody"));
    let address = runtime.add(&Who::new("c1"), "", &conf);
    fine(&Who { netns: Some(""), ..Who::new("c1") });
    fine(&Who::new("c1"));
    assert_eq!(runtime.add(&Who::new("c2"), &format!("IP={address}"), &conf), address, "it was given back");
    fine(&Who { netns: Some("/nonexistent/netns"), ..Who::new("c2") });
    assert_eq!(runtime.add(&Who::new("c3"), &format!("IP={address}"), &conf), address, "and again");
}

fn checks(target: &Target) {
    for version in target.versions.iter().filter(|version| **version >= "0.4.0") {
        let runtime = Runtime::new(target);
        let mut conf = runtime.conf(version);
        let added = runtime.call("ADD", &Who::new("c1"), "", &conf);
        assert_eq!(added.code, 0, "{added:?}");
        conf["prevResult"] = added.json;
        let answer = runtime.call("CHECK", &Who::new("c1"), "", &conf);
        assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{version}: {answer:?}");
        assert_ne!(runtime.call("CHECK", &Who::new("c2"), "", &conf).code, 0, "{version}: it has none");
        assert_eq!(runtime.call("DEL", &Who::new("c1"), "", &conf).code, 0);
        assert_ne!(runtime.call("CHECK", &Who::new("c1"), "", &conf).code, 0, "{version}: it has none any more");
    }
}

fn exhaustion(target: &Target) {
    let runtime = Runtime::new(target);
    let conf = runtime.conf(target.newest);
    // .1 is the gateway.
    let all: BTreeSet<String> = (2..=6).map(|n| runtime.add(&Who::new(&format!("c{n}")), "", &conf)).collect();
    assert_eq!(all, (2..=6).map(|last| format!("10.42.1.{last}")).collect());
    let answer = runtime.call("ADD", &Who::new("c7"), "", &conf);
    assert_ne!(answer.code, 0, "{answer:?}");
    assert!(answer.json["code"].as_u64().is_some_and(|code| code > 0), "{answer:?}");
}

#[test]
fn the_reference_plugin_does_what_the_list_demands() {
    conforms(&reference());
}

#[test]
fn rancher_cni_ipam_does_what_the_list_demands() {
    conforms(&ours());
}

#[test]
fn rancher_cni_ipam_says_why() {
    let target = ours();
    let runtime = Runtime::new(&target);
    let conf = runtime.conf("1.1.0");
    runtime.add(&Who::new("c2"), "IP=10.42.1.5", &conf);
    let answer = runtime.call("ADD", &Who::new("c3"), "IP=10.42.1.5", &conf);
    refused(&answer, 102);
    assert_eq!(answer.json["cniVersion"], "1.1.0");
    assert!(answer.json["msg"].as_str().unwrap().contains("10.42.1.5 is held by container c2 (eth0) since"), "{answer:?}");
    refused(&runtime.call("ADD", &Who::new("c2"), "", &conf), 100);
    refused(&runtime.call("ADD", &Who { netns: Some("/proc/self/ns/net"), ..Who::new("c3") }, "", &conf), 8);
    for n in 0..4 {
        assert_eq!(runtime.call("STATUS", &Who::new("c3"), "", &conf).code, 0, "not full yet");
        runtime.add(&Who::new(&format!("f{n}")), "", &conf);
    }
    let full = runtime.call("ADD", &Who::new("c3"), "", &conf);
    refused(&full, 101);
    let counts = "no free IPv4 address in 10.42.1.0/29: 5 of 6 leased, 1 reserved, 0 at rest";
    assert!(full.json["msg"].as_str().unwrap().contains(counts), "{full:?}");
    refused(&runtime.call("STATUS", &Who::new("c3"), "", &conf), 50);
    assert_eq!(runtime.call("DEL", &Who::new("f0"), "", &conf).code, 0);
    let rests = runtime.call("ADD", &Who::new("c3"), "", &conf);
    refused(&rests, 11);
    assert!(rests.json["msg"].as_str().unwrap().contains("1 at rest (the next is free in "), "{rests:?}");
    for (key, value, message) in [
        ("underpass", json!({"statedir": "/x"}), "underpass.statedir: unknown key"),
        ("underpass", json!({"stateDir": "x"}), "expected an absolute path"),
        ("underpass", json!({"blocks": ["10.1.0.1/24"]}), "expected a list of prefixes"),
        ("ipam", json!({"subnetPrefixSize": "16"}), "expected /1 to /32"),
        ("ipam", json!({"routes": [{"dst": "x"}]}), "expected {dst, gw}"),
        ("ipam", json!([]), "expected an object"),
    ] {
        let mut bad = conf.clone();
        bad[key] = value;
        let answer = runtime.call("ADD", &Who::new("c9"), "", &bad);
        refused(&answer, 7);
        assert!(answer.json["msg"].as_str().unwrap().contains(message), "{answer:?}");
    }
    let mut unknown = conf.clone();
    unknown["underpass"] = json!({"stateDir": runtime.folder(), "network": "blue"});
    refused(&runtime.call("ADD", &Who::new("c9"), "", &unknown), 7);
    refused(&runtime.call("STATUS", &Who::new("c9"), "", &unknown), 50);
}

#[test]
fn rancher_cni_ipam_collects_what_is_not_listed() {
    let target = ours();
    let runtime = Runtime::new(&target);
    let conf = runtime.conf("1.1.0");
    assert_eq!(runtime.call("STATUS", &Who::new("x"), "", &conf).code, 0, "before anybody asked for an address");
    let mut other = conf.clone();
    other["name"] = json!("other");
    for (who, conf) in [("c1", &conf), ("c2", &conf), ("c3", &other)] {
        runtime.add(&Who::new(who), "", conf);
    }
    runtime.add(&Who { interface: "eth1", ..Who::new("c1") }, "", &conf);
    for listed in [Value::Null, json!("c1"), json!([{"containerID": "c1"}])] {
        let mut bad = conf.clone();
        bad["cni.dev/valid-attachments"] = listed;
        refused(&runtime.call("GC", &Who::new("x"), "", &bad), 7);
    }
    refused(&runtime.call("GC", &Who::new("x"), "", &conf), 7);
    assert_eq!(runtime.leases(), ["c1 eth0", "c1 eth1", "c2 eth0", "c3 eth0"]);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth1"}]);
    assert_eq!(runtime.call("GC", &Who::new("x"), "", &gc).code, 0);
    assert_eq!(runtime.leases(), ["c1 eth1", "c3 eth0"], "another network's are not touched");
    gc["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(runtime.call("GC", &Who::new("x"), "", &gc).code, 0);
    assert_eq!(runtime.leases(), ["c3 eth0"]);
    // A DEL for the wrong network does not take another's address.
    assert_eq!(runtime.call("DEL", &Who::new("c3"), "", &conf).code, 0);
    assert_eq!(runtime.leases(), ["c3 eth0"]);
}

#[test]
fn many_at_once_get_different_addresses() {
    for target in [reference(), ours()] {
        let runtime = Runtime::new(&target);
        let mut conf = runtime.conf(target.newest);
        if target.program.ends_with("host-local") {
            conf["ipam"]["ranges"] = json!([[{"subnet": "10.42.1.0/26"}]]);
        } else {
            conf["underpass"]["blocks"] = json!(["10.42.1.0/26"]);
        }
        let (runtime, conf) = (&runtime, &conf);
        let got: Vec<String> = thread::scope(|scope| {
            let add = |n: usize| scope.spawn(move || runtime.add(&Who::new(&format!("c{n}")), "", conf));
            let threads: Vec<_> = (0..24).map(add).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 24, "{got:?}");
    }
}

/// The reference plugin for bridges makes the interfaces, and asks whichever plugin is named for addresses.
#[test]
fn behind_the_reference_bridge_containers_reach_each_other() {
    for target in [reference(), ours()] {
        for version in reference().versions {
            behind_the_reference_bridge(&target, version);
        }
    }
}

fn behind_the_reference_bridge(target: &Target, version: &str) {
    let runtime = Runtime::new(target);
    let mut conf = runtime.conf(version);
    conf["type"] = json!("bridge");
    conf["bridge"] = json!("up-test0");
    conf["isGateway"] = json!(true);
    let containers = ["c1", "c2"].map(|container| {
        let answer = runtime.call_program(&harness::REFERENCE.join("bridge"), "ADD", &Who::new(container), "", &conf);
        assert_eq!(answer.code, 0, "{version}: {answer:?}");
        (container, answer.json)
    });
    let [(_, first), (_, second)] = &containers;
    let (here, there) = (address_in(first), address_in(second));
    assert_ne!(here, there);
    let seen = runtime.container("c1").run(|| Netlink::open().unwrap().addresses_of("eth0").unwrap()).unwrap();
    assert!(seen.iter().any(|seen| seen.address.to_string() == format!("{here}/29")), "{seen:?}");
    runtime.ping("c1", &there);
    runtime.ping("c2", "10.42.1.1");
    for (container, result) in &containers {
        let mut with = conf.clone();
        with["prevResult"] = result.clone();
        let call =
            |command, who: &Who<'_>| runtime.call_program(&harness::REFERENCE.join("bridge"), command, who, "", &with);
        let has_check = version >= "0.4.0";
        if has_check {
            let answer = call("CHECK", &Who::new(container));
            assert_eq!(answer.code, 0, "{version}: {answer:?}");
        }
        assert_eq!(call("DEL", &Who::new(container)).code, 0, "{version}");
        let again = call("DEL", &Who { netns: Some(""), ..Who::new(container) });
        assert_eq!(again.code, 0, "{version}: again, and the namespace gone");
        if has_check {
            assert_ne!(call("CHECK", &Who::new(container)).code, 0, "{version}");
        }
    }
}

#[test]
fn the_log_is_where_the_configuration_says() {
    let target = ours();
    let runtime = Runtime::new(&target);
    let mut conf = runtime.conf("0.3.1");
    let log = runtime.folder().join("ipam.log");
    conf["ipam"]["logToFile"] = json!(log);
    runtime.add(&Who::new("c1"), "", &conf);
    conf["ipam"]["isDebugLevel"] = json!("true");
    runtime.call("ADD", &Who::new("c1"), "", &conf);
    let lines: Vec<String> = fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains(" rancher-cni-ipam ADD c1 eth0: answered {"), "{}", lines[0]);
    assert!(lines[1].contains("asked {\"cniVersion\":\"0.3.1\"") && lines[1].contains("failed: "), "{}", lines[1]);
    conf["ipam"]["logToFile"] = json!("/nonexistent/folder/log");
    runtime.add(&Who::new("c2"), "", &conf);

    // Within our own plugin for interfaces it logs no less, each plugin into its own file.
    fs::remove_file(&log).unwrap();
    conf["ipam"] = json!({"type": "rancher-cni-ipam", "logToFile": log, "isDebugLevel": "true"});
    conf["logToFile"] = json!(runtime.folder().join("bridge.log"));
    conf["bridge"] = json!("up-test0");
    let bridge = |command: &str| {
        let answer = runtime.call_program(
            "rancher-bridge".as_ref(),
            command,
            &Who { interface: "eth7", ..Who::new("c1") },
            "",
            &conf,
        );
        assert_eq!(answer.code, 0, "{answer:?}");
    };
    bridge("ADD");
    bridge("DEL");
    let lines: Vec<String> = fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains(" rancher-cni-ipam ADD c1 eth7: asked {") && lines[0].contains(": answered {"),
        "{}",
        lines[0]
    );
    assert!(lines[1].contains(" rancher-cni-ipam DEL c1 eth7: asked {") && lines[1].ends_with("done"), "{}", lines[1]);
    let own = fs::read_to_string(runtime.folder().join("bridge.log")).unwrap();
    assert_eq!(own.lines().filter(|line| line.contains(" rancher-bridge ")).count(), 2, "{own}");
}
