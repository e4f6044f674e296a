//! What else the list demands, of plugins that make interfaces: what they pass on to others and what others add to it, what a runtime
//! may say, and what may be gone when it says DEL. `docs/testing.md` has the whole list, with the test for each line.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use underpass::model::{Rng, SeededRng};
use underpass::sys::netlink::Netlink;

use super::bridge::{ALL, fine, inhabited, links, rancher, reference, refused_somehow, state, underpass, with};
use super::harness::{self, Answer, Runtime, Who, address_in};
use super::{ours, refused};

/// What the plugin `script` was asked, in order; a call of VERSION does not count.
fn asked(runtime: &Runtime<'_>) -> Vec<String> {
    let log = fs::read_to_string(runtime.folder().join("asked")).unwrap_or_default();
    let _ = fs::remove_file(runtime.folder().join("asked"));
    log.lines().map(str::to_owned).collect()
}

/// A plugin for addresses that notes what it is asked, gives 10.42.1.9, and refuses what is listed with this error.
fn script(runtime: &Runtime<'_>, refuses: &str, code: u32) -> Value {
    let log = runtime.folder().join("asked");
    let error = json!({"cniVersion": "1.0.0", "code": code, "msg": "no luck", "details": "today"});
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.42.1.9/24", "gateway": "10.42.1.1"}], "dns": {}});
    runtime.plugin(
        "script",
        &format!(
            "cat >/dev/null\necho $CNI_COMMAND >>{}\ncase \" {refuses} \" in *\" $CNI_COMMAND \"*) echo '{error}'; exit 1;; esac\n\
             [ $CNI_COMMAND = ADD ] && echo '{result}'\nexit 0",
            log.display()
        ),
    );
    let mut conf = runtime.conf("1.0.0");
    conf["ipam"] = json!({"type": "script"});
    conf
}

/// With addresses of other plugins, in every version that both sides know.
#[test]
fn static_addresses_are_taken_as_they_are() {
    for target in [reference(), rancher(), underpass()] {
        for version in target.versions {
            let runtime = Runtime::new(&target);
            let mut conf = runtime.conf(version);
            conf["ipam"] = json!({"type": "static", "addresses": [{"address": "10.42.1.9/24", "gateway": "10.42.1.1"}]});
            conf["isDefaultGateway"] = json!(true);
            let result = runtime.call("ADD", &Who::new("c1"), "", &conf);
            assert_eq!(result.code, 0, "{version}: {result:?}");
            assert_eq!(
                (result.json["cniVersion"].as_str(), address_in(&result.json).as_str()),
                (Some(*version), "10.42.1.9")
            );
            runtime.ping("c1", "10.42.1.1");
            conf["prevResult"] = result.json;
            if *version >= "0.4.0" {
                fine(&runtime.call("CHECK", &Who::new("c1"), "", &conf));
            }
            fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
            assert_eq!(links(&runtime, "c1"), ["lo"]);
        }
    }
}

#[test]
fn who_gives_addresses_is_asked_to_take_them_back() {
    for target in [rancher(), underpass()] {
        let runtime = Runtime::new(&target);
        // It fails itself: what it did half is taken back, and its error is the runtime's.
        let conf = script(&runtime, "ADD", 42);
        let answer = runtime.call("ADD", &Who::new("c1"), "", &conf);
        refused(&answer, 42);
        assert_eq!(answer.json["msg"], "script: no luck; today");
        assert_eq!(asked(&runtime), ["ADD", "DEL"]);
        // We fail behind it.
        let conf = script(&runtime, "", 0);
        refused_somehow(&runtime.call("ADD", &Who::new("c1"), "", &with(conf.clone(), json!({"bridge": "lo"}))));
        assert_eq!(asked(&runtime), ["ADD", "DEL"]);
        // The container has the interface already: whoever has it keeps his address.
        runtime.add(&Who::new("c1"), "", &conf);
        refused_somehow(&runtime.call("ADD", &Who::new("c1"), "", &conf));
        assert_eq!(asked(&runtime), ["ADD"]);
        // DEL reaches it whatever is gone, and also if it fails.
        fine(&runtime.call("DEL", &Who { netns: Some(""), ..Who::new("c1") }, "", &conf));
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        assert_eq!(asked(&runtime), ["DEL", "DEL"]);
        let conf = script(&runtime, "DEL", 42);
        runtime.add(&Who::new("c1"), "", &conf);
        refused(&runtime.call("DEL", &Who::new("c1"), "", &conf), 42);
        assert_eq!(links(&runtime, "c1"), ["lo"], "the interface goes all the same");
    }
}

#[test]
fn check_gc_and_status_are_passed_on() {
    for target in [rancher(), underpass()] {
        let runtime = Runtime::new(&target);
        let mut conf = script(&runtime, "CHECK GC STATUS", 50);
        conf["cniVersion"] = json!("1.1.0");
        let added = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
        asked(&runtime);
        refused(&runtime.call("STATUS", &Who::new("c1"), "", &conf), 50);
        refused(&runtime.call("CHECK", &Who::new("c1"), "", &with(conf.clone(), json!({"prevResult": added}))), 50);
        assert_eq!(asked(&runtime), ["STATUS", "CHECK"]);
        // What can be collected is, and then the failure is told.
        let gc = with(conf.clone(), json!({"cni.dev/valid-attachments": []}));
        refused(&runtime.call("GC", &Who::new("c1"), "", &gc), 50);
        assert_eq!((asked(&runtime), links(&runtime, "c1")), (vec!["GC".to_owned()], vec!["lo".to_owned()]));
        // And an older plugin, which knows none of the two, is no failure.
        let mut conf = script(&runtime, "GC STATUS", 4);
        conf["cniVersion"] = json!("1.1.0");
        fine(&runtime.call("STATUS", &Who::new("c1"), "", &conf));
        fine(&runtime.call("GC", &Who::new("c1"), "", &with(conf, json!({"cni.dev/valid-attachments": []}))));
    }
}

/// Nobody is collected because a list is missing; and the key that libcni had first counts as well.
#[test]
fn gc_needs_its_list() {
    for target in [ours(), rancher()] {
        let runtime = Runtime::new(&target);
        let conf = runtime.conf("1.1.0");
        runtime.add(&Who::new("c1"), "", &conf);
        runtime.add(&Who::new("c2"), "", &conf);
        for list in [json!({}), json!({"cni.dev/valid-attachments": null}), json!({"cni.dev/valid-attachments": {}})] {
            refused(&runtime.call("GC", &Who::new("c1"), "", &with(conf.clone(), list)), 7);
        }
        assert_eq!(runtime.leases().len(), 2);
        let old = json!({"cni.dev/attachments": [{"containerID": "c1", "ifname": "eth0"}]});
        fine(&runtime.call("GC", &Who::new("c1"), "", &with(conf, old)));
        assert_eq!(runtime.leases(), ["c1 eth0"]);
    }
}

#[test]
fn status_says_when_the_addresses_are_used_up() {
    for target in [rancher(), underpass()] {
        let runtime = Runtime::new(&target);
        let conf = runtime.conf("1.1.0");
        fine(&runtime.call("STATUS", &Who::new("c1"), "", &conf));
        // The gateway is no address of this block.
        for n in 0..6 {
            runtime.add(&Who { interface: &format!("e{n}"), ..Who::new("c1") }, "", &conf);
        }
        refused(&runtime.call("STATUS", &Who::new("c1"), "", &conf), 50);
        refused(&runtime.call("ADD", &Who::new("c2"), "", &conf), 101);
    }
}

#[test]
fn check_sees_what_is_gone_and_lets_be_what_others_changed() {
    for target in [reference(), rancher(), underpass()] {
        let runtime = Runtime::new(&target);
        let conf = runtime.conf(target.newest);
        let added = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
        let check = |conf: &Value| runtime.call("CHECK", &Who::new("c1"), "", conf);
        refused_somehow(&check(&conf));
        let told = with(conf.clone(), json!({"prevResult": added}));
        fine(&check(&told));
        // Plugins behind it made these.
        let others = || {
            let mut netlink = Netlink::open().unwrap();
            netlink.set_mtu("eth0", 1300).unwrap();
            netlink.add_address("eth0", "192.0.2.9/24".parse().unwrap()).unwrap();
        };
        runtime.container("c1").run(others).unwrap();
        fine(&check(&told));
        if target.newest == "1.1.0" {
            // Our fence, then the reservation.
            runtime.on_host(&["nft", "flush", "set", "bridge", "underpass-net", "leases4"]);
            refused(&check(&told), 105);
            fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
            let again = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
            let told = with(conf.clone(), json!({"prevResult": again}));
            fine(&check(&told));
            let ipam = with(conf.clone(), json!({"ipam": {"type": "rancher-cni-ipam"}}));
            fine(&runtime.call_program("rancher-cni-ipam".as_ref(), "DEL", &Who::new("c1"), "", &ipam));
            refused(&check(&told), 100);
        }
    }
}

/// DEL where somebody was faster: the link inside, the port outside, the whole namespace, the bridge.
#[test]
fn del_works_with_anything_gone() {
    for target in [reference(), rancher(), underpass()] {
        let runtime = Runtime::new(&target);
        let conf = runtime.conf(target.newest);
        runtime.add(&Who::new("c1"), "", &conf);
        runtime.container("c1").run(|| Netlink::open().unwrap().delete_link("eth0").unwrap()).unwrap();
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        let added = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
        runtime.on_host(&["ip", "link", "del", added["interfaces"][1]["name"].as_str().unwrap()]);
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        let added = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
        runtime.on_host(&["ip", "link", "del", added["interfaces"][0]["name"].as_str().unwrap()]);
        fine(&runtime.call("DEL", &Who { netns: Some("/nonexistent/netns"), ..Who::new("c1") }, "", &conf));
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        runtime.add(&Who::new("c2"), "", &conf);
        runtime.ping(
            "c2",
            if target.newest == "1.1.0" && conf["ipam"]["type"] != "host-local" { "10.42.0.1" } else { "10.42.1.1" },
        );
    }
}

/// Capabilities that runtimes send, and some that mean nothing here.
#[test]
fn capabilities_are_heard() {
    for target in [rancher(), underpass()] {
        let runtime = Runtime::new(&target);
        let mut conf = runtime.conf("1.0.0");
        conf["runtimeConfig"] = json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                {"hostPort": 53, "containerPort": 53, "protocol": "UDP"},
                {"hostPort": 99, "containerPort": 99, "protocol": "sctp"},
            ],
            "ips": ["10.42.1.5/16"],
            "mac": "02:11:22:33:44:55",
            "aliases": {"net": ["web"]},
            "bandwidth": {"ingressRate": 1000},
            "ipRanges": [[{"subnet": "192.0.2.0/24"}]],
            "dns": {"servers": ["192.0.2.53"]},
            "cgroupPath": "/x",
        });
        let args = "IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.42.1.3;MAC=02:00:00:00:00:09";
        let result = runtime.call("ADD", &Who::new("c1"), args, &conf).json;
        assert_eq!(result["ips"][0]["address"], "10.42.1.5/16", "before what the arguments say: {result}");
        assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:55", "{result}");
        let published = runtime.on_host(&["nft", "list", "set", "inet", "underpass-net", "published4"]);
        for one in ["tcp . 10.42.1.5 . 80", "udp . 10.42.1.5 . 53", "sctp . 10.42.1.5 . 99"] {
            assert!(published.contains(one), "{one}: {published}");
        }
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        let published = runtime.on_host(&["nft", "list", "set", "inet", "underpass-net", "published4"]);
        assert!(!published.contains("10.42.1.5"), "{published}");
        for (key, value) in
            [("ips", json!("10.42.1.5")), ("mac", json!("nonsense")), ("portMappings", json!([{"containerPort": 0}]))]
        {
            let mut bad = runtime.conf("1.0.0");
            bad["runtimeConfig"] = json!({key: value});
            refused(&runtime.call("ADD", &Who::new("c1"), "", &bad), 7);
        }
    }
}

/// A configuration without a version is of the first one.
#[test]
fn no_version_is_the_first_one() {
    for target in [super::reference(), reference(), ours(), rancher(), underpass()] {
        let runtime = Runtime::new(&target);
        let mut conf = runtime.conf("0.1.0");
        conf.as_object_mut().unwrap().remove("cniVersion");
        let answer = runtime.call("ADD", &Who::new("c1"), "", &conf);
        assert_eq!(answer.code, 0, "{answer:?}");
        assert!(answer.json["ip4"]["ip"].is_string() && answer.json.get("ips").is_none(), "{answer:?}");
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
    }
}

#[test]
fn what_the_file_system_refuses_has_its_code() {
    for target in [ours(), rancher()] {
        let runtime = Runtime::new(&target);
        let file = runtime.folder().join("file");
        fs::write(&file, "").unwrap();
        let mut conf = runtime.conf("1.0.0");
        conf["underpass"]["stateDir"] = json!(file);
        let answer = runtime.call("ADD", &Who::new("c1"), "", &conf);
        refused(&answer, 5);
        assert_eq!(answer.json["cniVersion"], "1.0.0");
        assert!(answer.err.is_empty(), "{answer:?}");
    }
}

/// One call of a chain's member.
fn member(runtime: &Runtime<'_>, command: &str, plugin: &Value, previous: &Value) -> Answer {
    let mut conf = with(runtime.conf("1.0.0"), plugin.clone());
    if !previous.is_null() {
        conf["prevResult"] = previous.clone();
    }
    let name = plugin["type"].as_str().unwrap();
    let theirs = harness::REFERENCE.join(name);
    let program = if theirs.exists() { theirs } else { name.into() };
    runtime.call_program(&program, command, &Who::new("c1"), "", &conf)
}

/// Ours first, then four of Debian's; and back.
#[test]
fn a_chain_of_plugins_works_forwards_and_backwards() {
    for first in [reference(), rancher(), underpass()] {
        let runtime = Runtime::new(&first);
        let kind = if first.newest == "1.0.0" { "bridge".into() } else { first.program.display().to_string() };
        let before = runtime.host_links();
        let mapped = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let chain = [
            json!({"type": kind, "runtimeConfig": mapped}),
            json!({"type": "tuning", "mtu": 1300, "sysctl": {"net.ipv4.conf.all.log_martians": "1"}}),
            json!({"type": "portmap", "snat": true, "runtimeConfig": mapped}),
            json!({"type": "bandwidth", "ingressRate": 10_000_000, "ingressBurst": 1_000_000}),
            json!({"type": "firewall", "backend": "iptables"}),
        ];
        let mut result = Value::Null;
        for plugin in &chain {
            let answer = member(&runtime, "ADD", plugin, &result);
            assert_eq!(answer.code, 0, "{plugin}: {answer:?}");
            result = answer.json;
        }
        let mtu = runtime.container("c1").run(|| Netlink::open().unwrap().link("eth0").unwrap().mtu).unwrap();
        assert_eq!((mtu, address_in(&result).starts_with("10.42.1.")), (1300, true), "{result}");
        // Debian's `portmap` misses a chain for IPv6 that it never made.
        for plugin in chain.iter().filter(|plugin| plugin["type"] != "portmap") {
            fine(&member(&runtime, "CHECK", plugin, &result));
        }
        let other = runtime.add(&Who::new("c2"), "", &runtime.conf("1.0.0"));
        runtime.ping("c1", &other);
        for plugin in chain.iter().rev() {
            fine(&member(&runtime, "DEL", plugin, &result));
        }
        fine(&runtime.call("DEL", &Who::new("c2"), "", &runtime.conf("1.0.0")));
        let left: Vec<String> = runtime.host_links().into_iter().filter(|link| !before.contains(link)).collect();
        assert_eq!(
            left,
            ["up-test0".to_owned()].map(|name| if first.program.ends_with("underpass-cni") {
                "managed0".into()
            } else {
                name
            })
        );
        assert_eq!(links(&runtime, "c1"), ["lo"]);
    }
}

/// In the middle and at the end of a list, in every version that knows lists.
#[test]
fn what_came_before_is_kept_in_every_version() {
    let target = rancher();
    for version in &ALL[2..] {
        let runtime = Runtime::new(&target);
        let mut conf = runtime.conf(version);
        let mut ip = json!({"address": "192.0.2.9/24", "interface": 0});
        if *version < "1" {
            ip["version"] = json!("4");
        }
        let before = json!({
            "cniVersion": version,
            "interfaces": [{"name": "other0", "mac": "02:00:00:00:00:09", "sandbox": runtime.netns("c1")}],
            "ips": [ip],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        conf["prevResult"] = before.clone();
        let result = runtime.call("ADD", &Who::new("c1"), "", &conf).json;
        assert_eq!(
            (&result["ips"][0], &result["interfaces"][0]["name"]),
            (&before["ips"][0], &json!("other0")),
            "{version}"
        );
        assert_eq!(
            (&result["ips"][1]["interface"], &result["interfaces"][3]["name"]),
            (&json!(3), &json!("eth0")),
            "{result}"
        );
        for bad in [json!("nonsense"), json!({"ips": [{"address": "x"}]})] {
            conf["prevResult"] = bad;
            refused(&runtime.call("ADD", &Who { interface: "eth1", ..Who::new("c1") }, "", &conf), 7);
        }
    }
}

/// `kill -9` whenever it comes. A DEL finds what there is, and nothing stays.
#[test]
fn an_add_that_is_killed_at_any_time_leaves_nothing_behind_del() {
    let target = rancher();
    let (runtime, conf) = inhabited(&target);
    let before = state(&runtime);
    let (mut rng, mut killed) = (SeededRng::new(7), 0);
    for _ in 0..40 {
        let mut chance = [0; 2];
        rng.fill(&mut chance);
        // Up to 13 ms: longer than an ADD takes on a machine that does nothing else.
        let pause = Duration::from_micros(u64::from(u16::from_be_bytes(chance)) / 5);
        killed += u32::from(runtime.kill_after(pause, "ADD", &Who::new("c1"), &conf));
        fine(&runtime.call("DEL", &Who::new("c1"), "", &conf));
        assert_eq!(state(&runtime), before, "{pause:?}");
    }
    assert!(killed > 0, "every one of them was faster");
    runtime.add(&Who::new("c1"), "", &conf);
    runtime.ping("c1", "10.42.0.1");
}
