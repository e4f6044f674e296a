//! Containers that run, and what becomes of them: an MTU that follows, and IPv6 as well as IPv4 across hosts.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use underpass::sys::netlink::Netlink;
use underpass::sys::netns::Namespace;

use crate::attach::{datagram, outside, pings, stream};
use crate::lab::agent::{Agent, AgentConfig, PeerConfig, both_up};
use crate::lab::command::text;
use crate::lab::site::{Site, run};
use crate::lab::{Host, Lab, wait_for};

/// The agent looks every second.
const NOTICED: Duration = Duration::from_secs(20);

fn mtu_of(namespace: &Namespace, link: &str) -> u32 {
    namespace.run(|| Netlink::open().unwrap().link(link).unwrap().mtu).unwrap()
}

/// The MTU of both ends of a container's wire.
fn ends(site: &Site, container: &str) -> (u32, u32) {
    (mtu_of(&site.namespace, &site.containers[container].port), mtu_of(site.inside(container), "eth0"))
}

fn until(site: &Site, container: &str, mtu: u32) {
    let what = format!("{container} to have an MTU of {mtu}");
    wait_for(&what, NOTICED, || (ends(site, container) == (mtu, mtu)).then_some(()));
}

/// Packets of this size pass whole in both directions.
fn passes_whole(near: &Site, far: &Site, mtu: u32) {
    let payload = (mtu - 28).to_string();
    for (from, to) in [(near, far), (far, near)] {
        assert!(pings(from.inside("c1"), to.address("c1"), &["-M", "do", "-s", &payload]), "a packet of {mtu} octets");
    }
}

/// With a driver whose network has this `mtu`.
fn config(host: &Host, peer: &Host, folder: &Path, tun: &str, network: u32) -> AgentConfig {
    let folder = folder.display();
    AgentConfig {
        mtu: tun.to_owned(),
        more: format!(
            "cni: {{conf_dir: {folder}/net.d, bin_dir: {folder}/bin, cache_dir: {folder}/cache}}
drivers:
  - name: Ours
    default_network: {{name: ours, subnets: [{{network_address: 10.42.0.0/16}}]}}
    cni_config:
      10-ours.conf: {{type: underpass-cni, mtu: {network}, linkMTUOverhead: 50}}
"
        ),
        ..AgentConfig::new(host, &[PeerConfig::at(peer)])
    }
}

#[test]
fn the_mtu_of_running_containers_follows() {
    let lab = Lab::direct();
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let configs = |tun: &str, network| {
        let one = |host, peer, at: usize| config(host, peer, folders[at].path(), tun, network);
        [one(&lab.alpha, &lab.beta, 0), one(&lab.beta, &lab.alpha, 1)]
    };
    let [alpha, beta] = configs("1300", 1500);
    let mut agents = [Agent::running(&lab.alpha, &alpha), Agent::running(&lab.beta, &beta)];
    let mut near = Site::of_agent(&lab.alpha, &agents[0]);
    let mut far = Site::of_agent(&lab.beta, &agents[1]);
    for site in [&mut near, &mut far] {
        let mut conf = site.conf();
        (conf["mtu"], conf["linkMTUOverhead"]) = (json!(1500), json!(50));
        site.add_with("c1", &conf);
    }
    both_up(&agents[0], &agents[1]);
    assert_eq!((ends(&near, "c1"), ends(&far, "c1")), ((1300, 1300), (1300, 1300)), "what the tunnel takes, not 1450");
    passes_whole(&near, &far, 1300);

    // An agent that starts with another MTU.
    for (agent, config) in agents.iter_mut().zip(configs("1400", 1500)) {
        agent.configure(&config);
        assert_eq!(agent.stop("TERM"), Some(0));
        agent.start();
    }
    for site in [&near, &far] {
        until(site, "c1", 1400);
        assert_eq!(mtu_of(&site.namespace, "managed0"), 1400, "the bridge follows its ports");
    }
    both_up(&agents[0], &agents[1]);
    passes_whole(&near, &far, 1400);

    // A network that says less, and then more than the tunnel takes.
    for (network, mtu) in [(1370, 1320), (1600, 1400)] {
        for (agent, config) in agents.iter_mut().zip(configs("1400", network)) {
            agent.configure(&config);
            agent.signal("HUP");
        }
        for site in [&near, &far] {
            until(site, "c1", mtu);
        }
        passes_whole(&near, &far, mtu);
    }
    // A device that somebody made narrower.
    near.namespace.run(|| Netlink::open().unwrap().set_mtu("underpass0", 1290).unwrap()).unwrap();
    until(&near, "c1", 1290);
    assert_eq!(ends(&far, "c1"), (1400, 1400));
}

/// The network's IPv6 prefix, and the hosts' parts of it.
const NETWORK6: &str = "fd00:42::/32";
const BLOCKS6: [&str; 2] = ["fd00:42:1::/64", "fd00:42:2::/64"];

/// An agent with a block of each family.
pub fn dual(host: &Host, peer: &Host, own: usize) -> AgentConfig {
    let mut config = AgentConfig::new(host, &[PeerConfig::at(peer)]);
    config.overlay = format!("[{}, 'fd00:42:{}::1']", host.inner, own + 1);
    config.blocks = format!("{}, '{}'", host.block, BLOCKS6[own]);
    config.peers[0].blocks = format!("{}, '{}'", peer.block, BLOCKS6[1 - own]);
    config
}

pub fn dual_conf(site: &Site) -> Value {
    let mut conf = site.conf();
    conf["bridgeSubnet6"] = json!(NETWORK6);
    conf["underpass"].as_object_mut().unwrap().remove("blocks");
    conf
}

/// A container's address of the network's IPv6 prefix.
pub fn address6(site: &Site, container: &str) -> IpAddr {
    let listed = site.inside(container).run(|| Netlink::open().unwrap().addresses_of("eth0").unwrap()).unwrap();
    let addresses = listed.iter().map(|address| address.address.addr());
    addresses.into_iter().find(|address| address.to_string().starts_with("fd00:42:")).expect("an IPv6 address")
}

#[test]
fn ipv6_reaches_containers_on_other_hosts() {
    let lab = Lab::direct();
    let mut alpha = Agent::running(&lab.alpha, &dual(&lab.alpha, &lab.beta, 0));
    let beta = Agent::running(&lab.beta, &dual(&lab.beta, &lab.alpha, 1));
    let (mut near, mut far) = (Site::of_agent(&lab.alpha, &alpha), Site::of_agent(&lab.beta, &beta));
    for (site, names) in [(&mut near, &["c1", "c2", "forger"][..]), (&mut far, &["c1"])] {
        for name in names {
            let conf = dual_conf(site);
            site.add_with(name, &conf);
        }
    }
    both_up(&alpha, &beta);
    let (here, neighbour, there) = (address6(&near, "c1"), address6(&near, "c2"), address6(&far, "c1"));
    let mtu = mtu_of(near.inside("c1"), "eth0");
    // 40 octets of IPv6 and 8 of ICMPv6.
    let whole = (mtu - 48).to_string();
    for (from, to, own, address) in [(&near, &far, here, there), (&far, &near, there, here)] {
        assert!(pings(from.inside("c1"), address, &[]), "{own} to {address}");
        assert!(pings(from.inside("c1"), address, &["-M", "do", "-s", &whole]), "whole");
        assert_eq!(stream(from.inside("c1"), to.inside("c1"), address, 5_000_000).unwrap(), own);
        assert!(pings(from.inside("c1"), to.address("c1"), &[]), "IPv4 as well");
    }
    assert!(pings(near.inside("c1"), neighbour, &[]), "on one host");
    assert!(pings(&near.namespace, here, &[]) && pings(&far.namespace, here, &[]), "hosts");

    // Who forges reaches nobody.
    let forger = near.inside("forger");
    assert_eq!(datagram(forger, address6(&near, "forger"), far.inside("c1"), there), Some(address6(&near, "forger")));
    for source in [neighbour.to_string(), "fd00:42:1::99".into(), "fd00:42:2::99".into()] {
        run(forger, &format!("ip address add {source}/128 dev lo nodad"));
        for (to, address) in [(near.inside("c1"), here), (far.inside("c1"), there)] {
            assert_eq!(datagram(forger, source.parse().unwrap(), to, address), None, "{source} to {address}");
        }
    }
    assert!(pings(near.inside("c1"), neighbour, &[]), "the true one is where it was");

    // The outside sees the host, and gets in neither as itself nor as somebody of the network, with the agent and without.
    let (stranger, _) = outside(&near);
    for (namespace, line) in [
        (&near.namespace, "ip address add fd00:9::1/64 dev lan0 nodad"),
        (&stranger, "ip address add fd00:9::2/64 dev lan0 nodad"),
        (&stranger, "ip address add fd00:42:2::77/128 dev lo nodad"),
        (&stranger, "ip -6 route add fd00:42::/32 via fd00:9::1"),
        (&near.namespace, "ip -6 route add default via fd00:9::2"),
    ] {
        run(namespace, line);
    }
    let outer: [IpAddr; 2] = ["fd00:9::1", "fd00:9::2"].map(|address| address.parse().unwrap());
    assert_eq!(stream(near.inside("c1"), &stranger, outer[1], 100_000).unwrap(), outer[0]);
    let gets_in = |when: &str| {
        for source in [outer[1], "fd00:42:2::77".parse().unwrap()] {
            assert_eq!(datagram(&stranger, source, near.inside("c1"), here), None, "{source}, {when}");
        }
    };
    gets_in("with the agent");
    assert_eq!(alpha.stop("TERM"), Some(0));
    gets_in("without it");
    run(&stranger, &format!("ip address add {there}/128 dev lo nodad"));
    assert_eq!(datagram(near.inside("c1"), here, &stranger, there), None, "nothing leaves in clear");
    assert!(pings(near.inside("c1"), neighbour, &[]), "the rest goes on");
}

/// A driver names a subnet of each family, and the runtime runs the list that the agent writes.
#[test]
fn a_drivers_ipv6_subnet_reaches_containers_on_other_hosts() {
    let lab = Lab::direct();
    let folder = tempfile::tempdir().expect("a folder");
    let of_driver = |host: &Host, peer: &Host, own: usize| {
        let mut config = dual(host, peer, own);
        let folder = folder.path().join(host.name).display().to_string();
        config.more = format!(
            "drivers:
  - name: Both
    default_network:
      name: both
      subnets:
        - network_address: 10.42.0.0/16
        - {{network_address: 'fd00:42::', cidr_size: 32, start_address: 'fd00:42:1::8'}}
    cni_config: {{10-both.conf: {{type: underpass-cni, bridge: up-both}}}}
cni: {{conf_dir: {folder}/net.d, bin_dir: {folder}/bin, cache_dir: {folder}/cache}}
"
        );
        config
    };
    let alpha = Agent::running(&lab.alpha, &of_driver(&lab.alpha, &lab.beta, 0));
    let beta = Agent::running(&lab.beta, &of_driver(&lab.beta, &lab.alpha, 1));
    let (mut near, mut far) = (Site::of_agent(&lab.alpha, &alpha), Site::of_agent(&lab.beta, &beta));
    for (site, host, names) in [(&mut near, &lab.alpha, &["c1", "c2"][..]), (&mut far, &lab.beta, &["c1"])] {
        let list = folder.path().join(host.name).join("net.d/10-underpass-both.conflist");
        let list: Value = serde_json::from_slice(&std::fs::read(list).expect("the agent's list")).expect("JSON");
        let mut conf = list["plugins"][0].clone();
        assert_eq!(conf["bridgeSubnet6"], NETWORK6, "{list}");
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        for name in names {
            site.add_with(name, &conf);
        }
    }
    both_up(&alpha, &beta);
    let addresses = [address6(&near, "c1"), address6(&near, "c2"), address6(&far, "c1")];
    let expected: [IpAddr; 3] = ["fd00:42:1::8", "fd00:42:1::9", "fd00:42:2::2"].map(|it| it.parse().unwrap());
    assert_eq!(addresses, expected, "from start_address on, out of this host's blocks");
    let [here, neighbour, there] = expected;
    for (from, to, own, address) in [(&near, &far, here, there), (&far, &near, there, here)] {
        assert!(pings(from.inside("c1"), address, &[]), "{own} to {address}");
        assert_eq!(stream(from.inside("c1"), to.inside("c1"), address, 1_000_000).unwrap(), own);
        assert!(pings(from.inside("c1"), to.address("c1"), &[]), "IPv4 as well");
    }
    assert!(pings(near.inside("c1"), neighbour, &[]), "on one host");
    assert_eq!(alpha.status()["warnings"], json!([]));
    let shown = text(&alpha.control(&["net", "show", "both"]).stdout);
    assert!(shown.contains("fd00:42::/32 (gateway fe80::1, fd00:42:1::8 to fd00:42:ffff:"), "{shown}");
}
