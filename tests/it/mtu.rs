//! Paths that take less than the overlay would like: what fits passes, what does not is cut inside or answered, and no packet
//! of the tunnel is cut on the wire.

use std::time::Duration;

use crate::lab::agent::{Agent, AgentConfig, PeerConfig};
use crate::lab::command::said;
use crate::lab::traffic::{Pinging, ping, tcp_bits_per_second};
use crate::lab::wire::Capture;
use crate::lab::{Host, Lab, wait_for};

/// An underlay narrower than anybody's default.
const NARROW: u32 = 1300;

/// What passes whole through it: 20 octets of IPv4, 8 of UDP, 16 in front and 18 behind, in steps of 4.
const NARROW_INNER: u64 = 1238;

/// Both ends up, with this `tun.mtu`.
fn pair(lab: &Lab, mtu: &str) -> (Agent, Agent) {
    let [alpha, beta] = [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)].map(|(host, peer)| {
        let config = AgentConfig { mtu: mtu.to_owned(), ..AgentConfig::new(host, &[PeerConfig::at(peer)]).queues(2) };
        Agent::running(host, &config)
    });
    alpha.wait_for_state("beta", "up", Duration::from_secs(15));
    beta.wait_for_state("alpha", "up", Duration::from_secs(15));
    (alpha, beta)
}

/// Waits until both ends know what the path takes.
fn wait_for_mtu(alpha: &Agent, beta: &Agent, mtu: u64, limit: Duration) {
    for (agent, peer) in [(alpha, "beta"), (beta, "alpha")] {
        wait_for("the path's MTU in status", limit, || (agent.peer(peer).0["mtu"] == mtu).then_some(()));
    }
}

/// Five pings whose packets have `octets` in all.
fn of_size<'a>(payload: &'a str, fragment: &'a str, from: &'a Host, to: &'a Host) -> [&'a str; 11] {
    ["-n", "-c5", "-i0.05", "-W2", "-s", payload, "-M", fragment, "-I", from.inner, to.inner]
}

fn answered(from: &Host, to: &Host, octets: u64, fragment: &str) -> u32 {
    Pinging::with(from, &of_size(&(octets - 28).to_string(), fragment, from, to)).wait().received
}

/// What `ping` says about a packet that is too large.
fn complaint(from: &Host, to: &Host, octets: u64) -> String {
    let payload = (octets - 28).to_string();
    said(&from.attempt(&[&["ping"], &of_size(&payload, "do", from, to)[..]].concat()))
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
    lab.set_underlay_mtu(NARROW);
    wait_for_mtu(&alpha, &beta, NARROW_INNER, Duration::from_secs(35));
    let complaint = complaint(&lab.alpha, &lab.beta, 1400);
    assert!(complaint.contains(&format!("(mtu = {NARROW_INNER})")), "{complaint}");
    let history = alpha.peer("beta").0["history"].to_string();
    assert!(history.contains("takes 1300 octets"), "{history}");
}
