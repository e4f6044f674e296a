//! Paths that take less than the overlay would like: what fits passes, what does not is cut inside or answered, and no packet
//! of the tunnel is cut on the wire.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::agent::{Agent, AgentConfig, paired};
use crate::lab::command::{Daemon, said};
use crate::lab::traffic::{Pinging, ping, tcp_bits_per_second};
use crate::lab::wire::Capture;
use crate::lab::{Host, Lab, wait_for};

/// An underlay narrower than anybody's default.
const NARROW: u32 = 1300;

/// What passes whole through it: 20 octets of IPv4, 8 of UDP, 16 in front and 18 behind, in steps of 4.
const NARROW_INNER: u64 = 1238;

/// A change is known a second later; nobody looks by itself for half a minute.
const NOTICED: Duration = Duration::from_secs(10);

/// Both ends up, with this `tun.mtu`.
fn pair(lab: &Lab, mtu: &str) -> (Agent, Agent) {
    paired(lab, |config| AgentConfig { mtu: mtu.to_owned(), queues: 2, ..config })
}

/// Waits until both ends know what the path takes.
fn wait_for_mtu(alpha: &Agent, beta: &Agent, mtu: u64, limit: Duration) {
    for (agent, peer) in [(alpha, "beta"), (beta, "alpha")] {
        wait_for("the path's MTU in status", limit, || (agent.peer(peer).0["mtu"] == mtu).then_some(()));
    }
}

/// How many of five pings are answered, whose packets have `octets` in all.
fn answered(from: &Host, to: &Host, octets: u64, fragment: &str) -> u32 {
    let payload = (octets - 28).to_string();
    Pinging::burst(from, 5, &["-s", &payload, "-M", fragment, "-I", from.inner, to.inner]).wait().received
}

/// What `ping` says about a packet that is too large.
fn complaint(from: &Host, to: &Host, octets: u64) -> String {
    let payload = (octets - 28).to_string();
    let arguments = ["-n", "-c5", "-i0.05", "-W2", "-s", &payload, "-M", "do", "-I", from.inner, to.inner];
    said(&from.attempt(&[&["ping"], &arguments[..]].concat()))
}

fn outbound_packets(agent: &Agent, peer: &str) -> u64 {
    let peer = agent.peer(peer).0;
    let children = peer["children"].as_array().expect("a list of children");
    children.iter().map(|child| child["outbound_packets"].as_u64().expect("a number")).sum()
}

/// Packets that were answered instead of sent.
fn too_big(agent: &Agent) -> u64 {
    agent.status()["drops"]["too_big"].as_u64().unwrap_or(0)
}

#[test]
fn the_device_starts_as_narrow_as_the_underlay() {
    let lab = Lab::direct();
    lab.set_underlay_mtu(NARROW);
    let capture = Capture::start(&lab.beta);
    let (alpha, beta) = pair(&lab, "auto");
    assert_eq!([&alpha, &beta].map(|agent| agent.status()["tun"]["mtu"].clone()), [NARROW_INNER; 2]);
    wait_for_mtu(&alpha, &beta, NARROW_INNER, Duration::from_secs(5));
    let link = lab.alpha.run(&["ip", "link", "show", "underpass0"]);
    assert!(link.contains(&format!("mtu {NARROW_INNER} ")), "{link}");
    assert_eq!(answered(&lab.alpha, &lab.beta, NARROW_INNER, "do"), 5);
    let complaint = complaint(&lab.alpha, &lab.beta, NARROW_INNER + 1);
    assert!(complaint.contains(&format!("mtu={NARROW_INNER}")) && complaint.contains(" 0 received"), "{complaint}");
    for (from, to) in [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)] {
        assert_eq!(answered(from, to, 4000, "dont"), 5);
        assert!(tcp_bits_per_second(from, to, 1) > 1e6);
    }
    assert_eq!([too_big(&alpha), too_big(&beta)], [0, 0], "the kernel knew");
    let seen = capture.stop();
    assert!(seen.other.is_empty(), "fragments of the tunnel's own: {:?}", seen.other);
}

/// The device takes 1400 octets, the path does not: the worker cuts and answers.
#[test]
fn a_path_narrower_than_the_device_is_answered_for() {
    let lab = Lab::direct();
    lab.set_underlay_mtu(NARROW);
    let capture = Capture::start(&lab.beta);
    let (alpha, beta) = pair(&lab, "1400");
    wait_for_mtu(&alpha, &beta, NARROW_INNER, Duration::from_secs(5));
    assert_eq!(alpha.status()["tun"]["mtu"], 1400);
    let shown = said(&alpha.control(&["peers", "beta"]));
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["MTU", "1238"])), "{shown}");

    // Without DF, before the kernel hears of the MTU and cuts by itself: each becomes two, and so does each answer.
    let before = [outbound_packets(&alpha, "beta"), outbound_packets(&beta, "alpha")];
    assert_eq!(answered(&lab.alpha, &lab.beta, 1400, "dont"), 5);
    let after = [outbound_packets(&alpha, "beta"), outbound_packets(&beta, "alpha")];
    assert_eq!([after[0] - before[0], after[1] - before[1]], [10, 10]);
    assert_eq!(answered(&lab.alpha, &lab.beta, 4000, "dont"), 5, "cut by the kernel, and again by us");

    assert_eq!(answered(&lab.alpha, &lab.beta, NARROW_INNER, "do"), 5);
    assert_eq!(too_big(&alpha), 0);
    let complaint = complaint(&lab.alpha, &lab.beta, NARROW_INNER + 1);
    assert!(complaint.contains(&format!("From {} icmp_seq=1", lab.beta.inner)), "{complaint}");
    assert!(complaint.contains(&format!("(mtu = {NARROW_INNER})")) && complaint.contains(" 0 received"), "{complaint}");
    assert!(too_big(&alpha) >= 1);

    // beta's kernel has not heard of it: its TCP does so from its first full segments. alpha forgets, or it would ask for
    // smaller ones from the start.
    lab.alpha.run(&["ip", "route", "flush", "cache"]);
    assert_eq!(too_big(&beta), 0);
    assert!(tcp_bits_per_second(&lab.beta, &lab.alpha, 2) > 1e6);
    assert!(too_big(&beta) >= 1);
    assert!(tcp_bits_per_second(&lab.alpha, &lab.beta, 1) > 1e6);
    assert_eq!(ping(&lab.alpha, &lab.beta, 5).lost(), 0);
    let seen = capture.stop();
    assert!(seen.other.is_empty(), "fragments of the tunnel's own: {:?}", seen.other);
}

#[test]
fn a_path_that_changes_is_noticed() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, "auto");
    assert_eq!(alpha.status()["tun"]["mtu"], 1400);
    wait_for_mtu(&alpha, &beta, 1400, Duration::from_secs(5));
    // Nobody sends: the kernel tells that an interface changed.
    lab.set_underlay_mtu(NARROW);
    wait_for_mtu(&alpha, &beta, NARROW_INNER, NOTICED);
    let complaint = complaint(&lab.alpha, &lab.beta, 1400);
    assert!(complaint.contains(&format!("(mtu = {NARROW_INNER})")), "{complaint}");
    let history = alpha.peer("beta").0["history"].to_string();
    assert!(history.contains("takes 1300 octets"), "{history}");
    lab.set_underlay_mtu(1500);
    wait_for_mtu(&alpha, &beta, 1400, NOTICED);
}

/// A link behind a router becomes narrow while TCP runs over it, and wide again.
#[test]
fn a_transfer_goes_on_when_the_path_shrinks() {
    let lab = Lab::routed();
    let (alpha, beta) = pair(&lab, "1400");
    wait_for_mtu(&alpha, &beta, 1400, NOTICED);
    let capture = Capture::start(&lab.alpha);
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| tcp_by_the_second(&lab.alpha, &lab.beta, 8));
        std::thread::sleep(Duration::from_secs(2));
        lab.set_far_mtu(NARROW);
        // Well before anybody asks by itself.
        let (_, took) = wait_for("the path's MTU", NOTICED, || (alpha.peer("beta").0["mtu"] == NARROW_INNER).then_some(()));
        eprintln!("known after {took:?}");
        let seconds = transfer.join().expect("iperf3");
        eprintln!("Mbit/s: {:?}", seconds.iter().map(|bits| bits / 1_000_000).collect::<Vec<_>>());
        assert!(seconds[5..].iter().all(|&bits| bits > 0), "it goes on: {seconds:?}");
    });
    assert!(too_big(&alpha) >= 1, "the sender was told");
    let dropped = alpha.status()["drops"]["send_failed"].clone();
    assert!(dropped.is_null(), "{dropped} datagrams were lost by us");
    let seen = capture.stop();
    // The router's answers are ICMP (protocol 1), and the only thing that may be there besides.
    let ours: Vec<&String> = seen.other.iter().filter(|packet| &packet[18..20] != "01").collect();
    assert!(ours.is_empty(), "fragments of the tunnel's own: {ours:?}");

    lab.set_far_mtu(1500);
    wait_for("beta to hear of its interface", NOTICED, || (beta.peer("alpha").0["mtu"] == 1400).then_some(()));
    // What alpha's kernel heard from the router counts for ten minutes, or until somebody forgets it.
    assert_eq!(alpha.peer("beta").0["mtu"], NARROW_INNER);
    lab.alpha.run(&["ip", "route", "flush", "cache"]);
    lab.alpha.run(&["ip", "address", "add", "192.0.2.77/32", "dev", "lo"]);
    wait_for_mtu(&alpha, &beta, 1400, NOTICED);
    assert_eq!(answered(&lab.alpha, &lab.beta, 1400, "do"), 5);
}

/// The largest inner packet at 1280 octets, which is as far as hearsay is believed.
const FLOOR_INNER: u64 = 1218;

/// Anybody may say "fragmentation needed" in a router's name.
#[test]
fn a_forged_router_cannot_make_the_path_narrower_than_the_floor() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, "1400");
    wait_for_mtu(&alpha, &beta, 1400, NOTICED);
    // IKE may be fragmented, and the first packet has the SAs of the workers made.
    assert_eq!(answered(&lab.alpha, &lab.beta, 1200, "do"), 5);
    let workers = alpha.status()["workers"].as_array().expect("a list of workers").len();
    wait_for("the SAs of all workers", NOTICED, || (alpha.peer("beta").child_spis().len() >= workers).then_some(()));
    let capture = Capture::start(&lab.beta);
    forge_fragmentation_needed(&lab.beta, &lab.alpha, 68);
    let (route, _) = wait_for("alpha's kernel to believe it", NOTICED, || {
        let route = lab.alpha.run(&["ip", "route", "get", lab.beta.address]);
        route.contains(" mtu ").then_some(route)
    });
    assert!(route.contains("552"), "the kernel's own floor: {route}");
    // The first shows the agent what the kernel believes, and arrives all the same.
    assert_eq!(answered(&lab.alpha, &lab.beta, 1200, "do"), 5);
    wait_for("the floor", NOTICED, || (alpha.peer("beta").0["mtu"] == FLOOR_INNER).then_some(()));
    assert_eq!(answered(&lab.alpha, &lab.beta, FLOOR_INNER, "do"), 5);
    let complaint = complaint(&lab.alpha, &lab.beta, FLOOR_INNER + 1);
    assert!(complaint.contains(&format!("mtu = {FLOOR_INNER}")), "{complaint}");
    assert!(tcp_bits_per_second(&lab.alpha, &lab.beta, 1) > 1e6);
    assert_eq!(beta.peer("alpha").0["mtu"], 1400, "nobody lied to beta");
    let seen = capture.stop();
    let ours: Vec<&String> = seen.other.iter().filter(|packet| &packet[18..20] != "01").collect();
    assert!(ours.is_empty(), "whole, whatever the kernel believes: {ours:?}");
}

/// Sends ICMP "fragmentation needed" about ESP from `to` to `from`, with this MTU (RFC 1191 §4).
fn forge_fragmentation_needed(from: &Host, to: &Host, mtu: u16) {
    let address = |host: &Host| host.address.parse::<Ipv4Addr>().expect("an address").octets();
    // What is said to have been too long: IPv4 with DF, UDP from 4500 to 4500.
    let mut quoted = vec![0x45, 0, 5, 0xb0, 0, 0, 0x40, 0, 63, 17, 0, 0];
    quoted.extend([address(to), address(from)].concat());
    quoted.extend([0x11, 0x94, 0x11, 0x94, 5, 0x9c, 0, 0]);
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    let sum: u32 = message.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let netns = File::open(format!("/run/netns/{}", from.netns)).expect("a namespace");
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).expect("to enter it");
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("a raw socket");
            socket.send_to(&message, &SocketAddr::new(address(to).into(), 0).into()).expect("to send");
        });
    });
}

/// TCP for so many seconds: bits that arrived in each.
fn tcp_by_the_second(from: &Host, to: &Host, seconds: u32) -> Vec<u64> {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("iperf3.json");
    let server = Daemon::start("iperf3 -s", &to.on(&["iperf3", "-s", "-1", "-J", "-B", to.inner]), &[], &log);
    // With -J it says nothing before the end: the port tells.
    wait_for("iperf3 to listen", Duration::from_secs(5), || to.run(&["ss", "-ltn"]).contains(":5201").then_some(()));
    let duration = seconds.to_string();
    let client = ["iperf3", "-J", "-t", &duration, "-B", from.inner, "-c", to.inner];
    let output = from.attempt_for(seconds + 20, &client);
    assert!(output.status.success(), "iperf3: {}", said(&output));
    let report = |log: &str| serde_json::from_str::<serde_json::Value>(log).ok();
    let (report, _) = wait_for("the server's report", Duration::from_secs(5), || report(&server.log()));
    let intervals = report["intervals"].as_array().expect("a list").iter();
    let seconds = intervals.map(|interval| interval["sum"]["bits_per_second"].as_f64().expect("a figure") as u64);
    seconds.collect()
}
