//! Correctness under speed: whatever the interfaces on the way segment, merge or sum, what arrives is what left, octet by octet,
//! datagram by datagram, in order.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::{Agent, AgentConfig, PeerConfig};
use crate::lab::command::said;
use crate::lab::flows::{End, Flow, Kind, carry};
use crate::lab::net::UNDERLAY;
use crate::lab::{Host, Lab};

/// Addresses of IPv6 on both hosts.
const INNER6: [&str; 2] = ["fd00:42:1::1", "fd00:42:2::1"];
const BLOCKS6: [&str; 2] = ["fd00:42:1::/64", "fd00:42:2::/64"];

/// What an interface of the underlay does for its host. Every feature is named in each, so that they may follow each other.
const OFFLOADS: [(&str, &str); 4] = [
    ("default", "rx on tx on sg on gso on tso on tx-udp-segmentation on gro off"),
    // The one that really segments and merges: trains are cut where they leave and joined where they arrive.
    ("segmented", "rx on tx on sg on gso on tso off tx-udp-segmentation off gro on"),
    // Nobody sums: the kernel refuses trains, or cuts and sums by itself.
    ("unsummed", "rx off tx off sg on gso on tso off tx-udp-segmentation off gro on"),
    ("none", "rx off tx off sg off gso off tso off tx-udp-segmentation off gro off"),
];

/// Octets of UDP that fit into the tunnel whole, over IPv4 and IPv6.
const WHOLE4: usize = 1400 - 28;
const WHOLE6: usize = 1400 - 48;

/// Datagrams under way of each of many flows. All together they fit into what one worker may hand to another (128 packets).
const WINDOW: u32 = 8;

/// The same, of each of few flows.
const BURST: u32 = 48;

fn set_offloads(host: &Host, features: &str) {
    let words: Vec<&str> = ["ethtool", "-K", UNDERLAY].into_iter().chain(features.split(' ')).collect();
    host.run(&words);
}

/// Two agents that know both families, both up.
fn pair(lab: &Lab, queues: u16, change: impl Fn(&mut AgentConfig)) -> (Agent, Agent) {
    let ends = [(&lab.alpha, &lab.beta, [0, 1]), (&lab.beta, &lab.alpha, [1, 0])];
    let [alpha, beta] = ends.map(|(host, peer, [local, remote])| {
        let mut peer = PeerConfig::at(peer);
        peer.blocks = format!("{}, {}", peer.blocks, BLOCKS6[remote]);
        let mut config = AgentConfig::new(host, &[peer]).queues(queues);
        config.overlay = format!("[{}/32, {}/128]", host.inner, INNER6[local]);
        config.blocks = format!("{}, {}", config.blocks, BLOCKS6[local]);
        change(&mut config);
        Agent::running(host, &config)
    });
    alpha.wait_for_state("beta", "up", Duration::from_secs(15));
    beta.wait_for_state("alpha", "up", Duration::from_secs(15));
    (alpha, beta)
}

/// Everything that hosts send each other, both ways at once; `scale` multiplies how much.
fn all_kinds(lab: &Lab, scale: u32) -> Vec<Flow> {
    let ends4 = [&lab.alpha, &lab.beta].map(|host| End::of(host, host.inner));
    let ends6 = [(&lab.alpha, INNER6[0]), (&lab.beta, INNER6[1])].map(|(host, address)| End::of(host, address));
    let megabyte = u64::from(scale) << 20;
    let v4 = [
        (0, Kind::Tcp(8 * megabyte, None)),
        (0, Kind::Tcp(2 * megabyte, Some(536))),
        (0, Kind::Udp(0..=WHOLE4)),
        (0, Kind::Udp(WHOLE4 + 1..=1472)),
        (0, Kind::Udp(1473..=6000)),
        (0, Kind::Trains(1..=WHOLE4)),
        (4789, Kind::Trains(50..=WHOLE4)),
        (8472, Kind::Udp(50..=WHOLE4)),
        (0, Kind::Raw(0..=WHOLE4, true)),
        (0, Kind::Raw(0..=WHOLE4, false)),
    ];
    let v6 = [
        (0, Kind::Tcp(2 * megabyte, None)),
        (0, Kind::Udp(0..=WHOLE6)),
        (0, Kind::Udp(1400..=4000)),
        (0, Kind::Trains(1..=WHOLE6)),
    ];
    let flows = v4.into_iter().map(|flow| (&ends4, flow)).chain(v6.into_iter().map(|flow| (&ends6, flow)));
    flows.flat_map(|(ends, (port, kind))| both_ways(ends, &kind, port, scale, WINDOW)).collect()
}

/// Few flows with as many datagrams at once as a burst has.
fn bursts(lab: &Lab, scale: u32) -> Vec<Flow> {
    let ends = [&lab.alpha, &lab.beta].map(|host| End::of(host, host.inner));
    let kinds = [Kind::Trains(1..=WHOLE4), Kind::Udp(0..=WHOLE4)];
    kinds.into_iter().flat_map(|kind| both_ways(&ends, &kind, 0, 5 * scale, BURST)).collect()
}

fn both_ways([alpha, beta]: &[End; 2], kind: &Kind, port: u16, scale: u32, window: u32) -> [Flow; 2] {
    let flow = |from: &End, to: &End| {
        // What travels in pieces is many packets.
        let window = if matches!(kind, Kind::Udp(lengths) if *lengths.end() > WHOLE4) { window / 2 } else { window };
        Flow { kind: kind.clone(), from: from.clone(), to: to.clone(), port, datagrams: 200 * scale, window }
    };
    [flow(alpha, beta), flow(beta, alpha)]
}

/// Echoes of all sizes with content that `ping` compares.
fn echoes(lab: &Lab) {
    let pings = |from: &Host, to: &'static str, size: &'static str| {
        let argv = ["ping", "-n", "-c20", "-i0.01", "-W5", "-p", "a5005ac3", "-M", "dont", "-s", size, to];
        (from.clone(), argv)
    };
    let all: Vec<_> = ["16", "56", "1372", "1373", "5000"]
        .into_iter()
        .flat_map(|size| [pings(&lab.alpha, lab.beta.inner, size), pings(&lab.beta, INNER6[0], size)])
        .collect();
    std::thread::scope(|scope| {
        for (from, argv) in &all {
            scope.spawn(move || {
                let said = said(&from.attempt(argv));
                // It does not wait long for the last one.
                let missing: Vec<_> = (1..20).filter(|n| !said.contains(&format!("icmp_seq={n} "))).collect();
                assert!(missing.is_empty() && !said.contains("wrong data"), "{argv:?}: no {missing:?}: {said}");
            });
        }
    });
}

/// All kinds of traffic through all pairs of offloads.
fn what_left_arrives(lab: &Lab, agents: &(Agent, Agent), scale: u32) {
    let (alpha, beta) = agents;
    for (of_alpha, features) in OFFLOADS {
        set_offloads(&lab.alpha, features);
        for (of_beta, features) in OFFLOADS {
            set_offloads(&lab.beta, features);
            eprintln!("offloads of alpha: {of_alpha}, of beta: {of_beta}");
            carry(&all_kinds(lab, scale));
            carry(&bursts(lab, scale));
            assert_eq!([alpha.losses(), beta.losses()], [BTreeMap::new(), BTreeMap::new()]);
        }
        echoes(lab);
    }
}

#[test]
fn what_left_arrives_whatever_is_offloaded() {
    let lab = Lab::direct();
    let agents = pair(&lab, 2, |_| ());
    what_left_arrives(&lab, &agents, 1);
}

/// More of it; one worker and two; with super-packets at one end only; with jumbo frames below. (Narrow paths are in `mtu.rs`: the
/// kernel gives the trains of a socket without DF overlapping identifications, so their fragments may be taken for each other's.)
#[test]
#[ignore = "long"]
fn what_left_arrives_however_it_is_configured() {
    for (queues, offload, underlay) in [(1, "on", 1500), (2, "on", 1500), (2, "off", 1500), (2, "on", 9000)] {
        eprintln!("--- {queues} workers, offload {offload} on beta, an underlay of {underlay}");
        let lab = Lab::direct();
        lab.set_underlay_mtu(underlay);
        let agents = pair(&lab, queues, |config| {
            config.mtu = "1400".to_owned();
            if config.name == "beta" {
                config.backend = if offload == "on" { "offload" } else { "offload, offload: off" };
            }
        });
        what_left_arrives(&lab, &agents, 3);
    }
}

/// The mean length of the packets that an interface sent or received (`tx`, `rx`) meanwhile.
fn mean_length(host: &Host, interface: &str, direction: &str, meanwhile: impl FnOnce()) -> u64 {
    let counters = || {
        let said = host.run(&["ip", "-s", "-j", "link", "show", interface]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let counters = &said[0]["stats64"][direction];
        ["bytes", "packets"].map(|name| counters[name].as_u64().expect("a number"))
    };
    let before = counters();
    meanwhile();
    let after = counters();
    (after[0] - before[0]) / (after[1] - before[1])
}

/// What the other tests stand on: the offloads are what they are called, and trains do cross the tunnel as such.
#[test]
fn super_packets_cross_whole_but_not_those_of_tunnels() {
    let lab = Lab::direct();
    let _agents = pair(&lab, 2, |_| ());
    // IPv6, as IPv4 without DF, which trains have here, is never merged.
    let [from, to] = [(&lab.alpha, INNER6[0]), (&lab.beta, INNER6[1])].map(|(host, address)| End::of(host, address));
    let send =
        |kind: Kind, port| carry(&[Flow { kind, from: from.clone(), to: to.clone(), port, datagrams: 800, window: 48 }]);
    let stream = || send(Kind::Tcp(8 << 20, None), 0);
    for (name, features) in OFFLOADS {
        set_offloads(&lab.alpha, features);
        let mean = mean_length(&lab.alpha, UNDERLAY, "tx", stream);
        assert_eq!(mean > 2000, name == "default", "{name}: {mean} octets per packet");
    }
    set_offloads(&lab.alpha, OFFLOADS[0].1);
    let trains = || Kind::Trains(WHOLE6..=WHOLE6);
    let mean = mean_length(&lab.beta, "underpass0", "rx", || send(trains(), 0));
    assert!(mean > 4000, "trains of datagrams arrive as {mean} octets per packet");
    // Whoever reads them would take several frames under one header for one (VXLAN).
    for port in [4789, 8472] {
        let mean = mean_length(&lab.beta, "underpass0", "rx", || send(trains(), port));
        assert!(mean <= 1400, "to port {port}: {mean} octets per packet");
    }
}
