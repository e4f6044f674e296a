//! Kernels that do less than ours: each fallback is forced, carries traffic, is shown and logged once, and ends when the kernel
//! does more and something changed.
//!
//! What this kernel cannot be made to refuse is refused in its place by debug builds (`src/sys/faults.rs`).

use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::{Agent, AgentConfig, mirrored, paired};
use crate::lab::command::said;
use crate::lab::traffic::{Iperf, ping, tcp_bits_per_second};
use crate::lab::{Host, Lab, wait_for};

/// What shows within a second or two.
const SHOWN: Duration = Duration::from_secs(10);

/// Both ends up; alpha's kernel refuses what `faults` says.
fn pair(lab: &Lab, faults: &str) -> (Agent, Agent) {
    let configs = mirrored(lab).map(|config| config.queues(2));
    let beta = Agent::running(&lab.beta, &configs[1]);
    let mut alpha = Agent::new(&lab.alpha);
    alpha.configure(&configs[0]);
    alpha.set_faults(faults);
    alpha.start();
    alpha.wait_for_state("beta", "up", Duration::from_secs(15));
    (alpha, beta)
}

fn fallbacks(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let list = status["fallbacks"].as_array().expect("a list of fallbacks");
    list.iter().map(|fallback| fallback["name"].as_str().expect("a name").to_owned()).collect()
}

fn wait_for_fallbacks(agent: &Agent, expected: &[&str]) -> Value {
    wait_for(&format!("the fallbacks {expected:?}"), SHOWN, || (fallbacks(agent) == expected).then_some(()));
    agent.status()
}

/// TCP, pings and UDP in bursts, both ways; a burst of small datagrams is what makes long trains.
fn carries_traffic(lab: &Lab) {
    for (from, to) in [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)] {
        assert!(tcp_bits_per_second(from, to, 1) > 1e6);
        assert_eq!(ping(from, to, 5).lost(), 0);
    }
    small_datagrams(&lab.alpha, &lab.beta);
}

/// TCP of the smallest segments, so that trains are as long as they can be.
fn small_datagrams(from: &Host, to: &Host) {
    Iperf::start(from, to, &["-t", "1", "-M", "300"]).wait();
}

/// How often the log has a line about it.
fn told(agent: &Agent, words: &str) -> usize {
    agent.log().lines().filter(|line| line.contains(words) && !line.contains("over: ")).count()
}

#[test]
fn a_device_without_offloads_is_worked_with() {
    for (faults, offloads, names) in [
        ("tun-no-udp", vec!["tcp"], vec!["tun_udp"]),
        ("tun-no-tcp", vec![], vec!["tun_tcp", "tun_udp"]),
        ("tun-write-tcp tun-write-udp", vec![], vec!["tun_write_tcp", "tun_write_udp"]),
        ("tun-write-udp", vec!["tcp"], vec!["tun_write_udp"]),
    ] {
        let lab = Lab::direct();
        let (alpha, beta) = pair(&lab, faults);
        // Known at once, before any traffic.
        let status = wait_for_fallbacks(&alpha, &names);
        assert_eq!(status["tun"]["offloads"], Value::from(offloads), "{faults}");
        carries_traffic(&lab);
        let shown = said(&alpha.control(&["status"]));
        for name in names {
            assert!(shown.lines().any(|line| line.trim_start().starts_with(name)), "{shown}");
        }
        assert_eq!(fallbacks(&beta), [""; 0]);
    }
}

#[test]
fn offloads_that_nobody_wants_are_no_fallback() {
    let lab = Lab::direct();
    // One more key behind it.
    let (alpha, beta) = paired(&lab, |config| AgentConfig { backend: "offload, offload: off", ..config });
    carries_traffic(&lab);
    for agent in [&alpha, &beta] {
        assert_eq!(agent.status()["tun"]["offloads"], serde_json::json!([]));
        assert_eq!(fallbacks(agent), [""; 0]);
    }
}

/// What an agent holds of its own is bounded, whatever comes: a flood of small datagrams fills every queue on their way.
#[test]
fn a_flood_does_not_fill_the_memory() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, "");
    Iperf::start(&lab.alpha, &lab.beta, &["-u", "-b", "0", "-l", "64", "-t", "4"]).wait();
    for agent in [&alpha, &beta] {
        let anonymous = memory(agent, "RssAnon:");
        eprintln!("{anonymous} KiB, at most {} KiB with the program", memory(agent, "VmHWM:"));
        assert!(anonymous < 32 << 10, "{anonymous} KiB");
    }
    let drops = &alpha.status()["drops"];
    assert!(drops["device_full"].as_u64() > Some(0), "no flood: {drops}");
}

/// A line of `/proc/PID/status`, in KiB.
fn memory(agent: &Agent, name: &str) -> u64 {
    let path = format!("/proc/{}/status", agent.pid());
    let text = std::fs::read_to_string(path).expect("a process");
    let line = text.lines().find(|line| line.starts_with(name)).expect("a line of that name");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_device_that_takes_more_after_a_change_gets_more() {
    let lab = Lab::direct();
    let (alpha, _beta) = pair(&lab, "tun-write-tcp tun-write-udp");
    wait_for_fallbacks(&alpha, &["tun_write_tcp", "tun_write_udp"]);
    alpha.set_faults("tun-write-udp");
    lab.alpha.run(&["ip", "address", "add", "192.0.2.77/32", "dev", "lo"]);
    wait_for_fallbacks(&alpha, &["tun_write_udp"]);
    alpha.set_faults("");
    lab.alpha.run(&["ip", "route", "add", "198.51.100.0/24", "dev", "up0"]);
    let status = wait_for_fallbacks(&alpha, &[]);
    assert_eq!(status["tun"]["offloads"], serde_json::json!(["tcp", "udp"]));
    carries_traffic(&lab);
    assert_eq!(told(&alpha, "refuses joined UDP"), 1, "{}", alpha.log());
}

/// EIO: the route's interface computes no checksums, or a policy wants to transform packets.
#[test]
fn trains_that_the_route_refuses_go_one_by_one_until_routes_change() {
    refused_trains("train-eio");
}

/// EINVAL although each datagram alone is fine.
#[test]
fn trains_that_are_refused_for_no_known_reason_go_one_by_one_until_routes_change() {
    refused_trains("train-einval");
}

fn refused_trains(fault: &str) {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, fault);
    assert_eq!((fallbacks(&alpha), fallbacks(&beta)), (vec![], vec![]), "nobody knows before the first train");
    carries_traffic(&lab);
    let status = wait_for_fallbacks(&alpha, &["trains"]);
    assert_eq!(status["sockets"]["train"], 1);
    assert!(status["drops"]["send_failed"].is_null(), "{}", status["drops"]);
    // A change, and it is as bad as before.
    lab.alpha.run(&["ip", "address", "add", "192.0.2.77/32", "dev", "lo"]);
    wait_for("another try", SHOWN, || fallbacks(&alpha).is_empty().then_some(()));
    assert!(tcp_bits_per_second(&lab.alpha, &lab.beta, 1) > 1e6);
    wait_for_fallbacks(&alpha, &["trains"]);
    alpha.set_faults("");
    lab.alpha.run(&["ip", "address", "add", "192.0.2.79/32", "dev", "lo"]);
    let status = wait_for_fallbacks(&alpha, &[]);
    assert_eq!(status["sockets"]["train"], 128);
    carries_traffic(&lab);
    assert_eq!(fallbacks(&alpha), [""; 0]);
    assert_eq!(told(&alpha, "refuses trains of datagrams"), 1, "{}", alpha.log());
}

#[test]
fn a_kernel_of_short_trains_gets_short_ones() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, "train-64");
    assert_eq!(alpha.status()["sockets"]["train"], 128);
    carries_traffic(&lab);
    let status = wait_for_fallbacks(&alpha, &["long_trains"]);
    assert_eq!(status["sockets"]["train"], 64);
    assert!(status["drops"]["send_failed"].is_null(), "{}", status["drops"]);
    assert_eq!(fallbacks(&beta), [""; 0], "this kernel takes 128");
    assert_eq!(told(&alpha, "takes trains of 64"), 1, "{}", alpha.log());
}
