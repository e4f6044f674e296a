//! Two of our own agents: traffic, true states, meeting starts, loss, other ports, and what must not get in.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::lab::agent::{
    Agent, AgentConfig, FIRST_CONTACT, Peer, PeerConfig, Proof, alpha_calls, both_up, mirrored, paired, started,
};
use crate::lab::net::UNDERLAY;
use crate::lab::traffic::{Pinging, answers, ping, tcp_bits_per_second, wait_until_answered};
use crate::lab::wire::Capture;
use crate::lab::{Lab, wait_for};

/// After whatever death, the tunnel is back in this time by itself.
const BACK: Duration = Duration::from_secs(15);

/// `up` needs a proof of at most 15 seconds' age; a little more for the look.
const PROOF_AGE_MAX: Duration = Duration::from_secs(18);

/// What a peer may be called when no two-way proof is at hand.
const NOT_UP: &str = "one-way retrying down connecting";

/// Two agents that know each other by the shared secret, both with an address, both up.
fn pair(lab: &Lab, queues: u16) -> (Agent, Agent) {
    paired(lab, |config| config.queues(queues))
}

fn both_ping(lab: &Lab) {
    assert_eq!(ping(&lab.alpha, &lab.beta, 10).lost(), 0, "alpha to beta");
    assert_eq!(ping(&lab.beta, &lab.alpha, 10).lost(), 0, "beta to alpha");
}

/// Both ends hold the same IKE SA and the same CHILD_SAs, of which one is not for a single worker; their two views.
fn wait_until_agreed(alpha: &Agent, beta: &Agent) -> (Peer, Peer) {
    let swapped = |(one, other): (String, String)| (other, one);
    let agree = || {
        let (a, b) = (alpha.peer("beta"), beta.peer("alpha"));
        let ike = a.ike_spis().is_some() && a.ike_spis() == b.ike_spis().map(swapped);
        let theirs: BTreeSet<_> = b.child_spis().into_iter().map(swapped).collect();
        let same = BTreeSet::from_iter(a.child_spis()) == theirs;
        (ike && same && a.shared_spis().len() == 1).then_some((a, b))
    };
    wait_for("one IKE SA and one shared CHILD_SA, the same on both ends", Duration::from_secs(20), agree).0
}

/// Traffic both ways with nothing on the wire but IKE and ESP.
fn carries_traffic_in_secret(queues: u16, backend: &'static str) {
    let lab = Lab::direct();
    let capture = Capture::start(&lab.beta);
    let (alpha, _beta) = paired(&lab, |config| AgentConfig { queues, backend, ..config });
    assert_eq!(alpha.peer("beta").0["ike"]["post_quantum"], true);
    both_ping(&lab);
    let marked = ["-p", "756e6465727061737321", "-I", lab.alpha.inner, lab.beta.inner];
    assert_eq!(Pinging::burst(&lab.alpha, 3, &marked).wait().lost(), 0);
    let (seen, shows) = capture.stop_and_search(b"underpass!underpass!");
    assert!(!shows, "the ping's pattern stands on the wire in clear");
    assert!(seen.other.is_empty() && seen.ike >= 4 && seen.esp >= 46, "{seen:?}");
    for (from, to) in [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)] {
        let rate = tcp_bits_per_second(from, to, 2);
        eprintln!("{} to {}: {:.0} Mbit/s", from.name, to.name, rate / 1e6);
        assert!(rate > 5e6, "{rate} bit/s");
    }
    let status = alpha.status();
    let workers = status["workers"].as_array().expect("a list of workers");
    assert_eq!(Some(workers.len() as u64), status["tun"]["queues"].as_u64());
    let sum = |name: &str| workers.iter().map(|worker| worker[name].as_u64().expect("a number")).sum::<u64>();
    assert!(sum("inbound_packets") > 1000 && sum("outbound_octets") > 1_000_000, "{workers:?}");
}

#[test]
fn one_worker_carries_traffic_in_secret() {
    carries_traffic_in_secret(1, "offload");
}

#[test]
fn two_workers_carry_traffic_in_secret() {
    carries_traffic_in_secret(2, "offload");
}

#[test]
fn the_plain_backend_carries_traffic_in_secret() {
    carries_traffic_in_secret(1, "plain");
}

#[test]
fn host_keys_authenticate() {
    let lab = Lab::direct();
    let (mut alpha, mut beta) = (Agent::new(&lab.alpha), Agent::new(&lab.beta));
    let (alpha_key, beta_key) = (alpha.generate_key(), beta.generate_key());
    assert_ne!(alpha_key, beta_key);
    assert_eq!(alpha.public_key(), alpha_key, "key show says what key generate made");
    let peer = |host, key| PeerConfig::at(host).proof(Proof::PublicKey(key));
    alpha.configure(&AgentConfig::new(&lab.alpha, &[peer(&lab.beta, beta_key)]));
    beta.configure(&AgentConfig::new(&lab.beta, &[peer(&lab.alpha, alpha_key)]));
    alpha.start();
    beta.start();
    both_up(&alpha, &beta);
    both_ping(&lab);
    for (agent, peer) in [(&alpha, "beta"), (&beta, "alpha")] {
        let peer = agent.peer(peer);
        assert_eq!(peer.0["local_behind_nat"], "no", "our own hosts tell each other their true hash");
        assert_eq!(peer.0["remote_behind_nat"], "no");
        assert!(peer.0["last_proof_seconds"].as_u64().expect("a proof") <= 15);
        assert_eq!(agent.control(&["status"]).status.code(), Some(0));
    }
}

#[test]
fn another_hosts_key_is_refused() {
    let lab = Lab::direct();
    let [mut alpha, mut beta] = [&lab.alpha, &lab.beta].map(Agent::new);
    let [alpha_key, beta_key, stranger] = [&alpha, &beta, &Agent::new(&lab.alpha)].map(Agent::generate_key);
    let peer = |host, key: &str| PeerConfig::at(host).proof(Proof::PublicKey(key.to_owned()));
    // alpha has pinned another key than beta's; beta would take alpha.
    assert_ne!(stranger, beta_key);
    alpha.configure(&AgentConfig::new(&lab.alpha, &[peer(&lab.beta, &stranger)]));
    beta.configure(&AgentConfig::new(&lab.beta, &[peer(&lab.alpha, &alpha_key)]));
    alpha.start();
    beta.start();
    alpha.wait_for_state("beta", "retrying", FIRST_CONTACT);
    std::thread::sleep(Duration::from_secs(3));
    assert_ne!(alpha.peer("beta").state(), "up");
    assert_ne!(beta.peer("alpha").state(), "up");
    assert!(!answers(&lab.alpha, &lab.beta));
}

#[test]
fn starts_that_meet_leave_one_tunnel() {
    let lab = Lab::direct();
    let (mut alpha, mut beta) = (Agent::new(&lab.alpha), Agent::new(&lab.beta));
    let configs = mirrored(&lab);
    alpha.configure(&configs[0]);
    beta.configure(&configs[1]);
    for round in 0..3 {
        eprintln!("--- round {round}");
        alpha.spawn();
        beta.spawn();
        wait_for("the agents", Duration::from_secs(10), || alpha.is_answering().then_some(()));
        wait_for("the agents", Duration::from_secs(10), || beta.is_answering().then_some(()));
        both_up(&alpha, &beta);
        wait_until_agreed(&alpha, &beta);
        both_ping(&lab);
        alpha.kill();
        beta.kill();
    }
}

#[test]
fn a_dead_path_is_reported_and_forgiven() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, 1);
    lab.alpha.block();
    lab.beta.block();
    let took = alpha.wait_for_state("beta", NOT_UP, PROOF_AGE_MAX);
    eprintln!("seen after {took:?}");
    beta.wait_for_state("alpha", NOT_UP, PROOF_AGE_MAX);
    assert_eq!(alpha.control(&["status"]).status.code(), Some(3), "degraded");
    // And it stays so while nothing passes.
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        assert_ne!(alpha.peer("beta").state(), "up");
        assert_ne!(beta.peer("alpha").state(), "up");
        std::thread::sleep(Duration::from_millis(250));
    }
    lab.alpha.pass();
    lab.beta.pass();
    let took = wait_until_answered(&lab.alpha, &lab.beta, BACK);
    eprintln!("back after {took:?}");
    both_up(&alpha, &beta);
    wait_until_agreed(&alpha, &beta);
    both_ping(&lab);
}

#[test]
fn a_path_that_is_dead_one_way_is_not_up() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, 1);
    // What alpha sends arrives; what beta sends does not. beta hears that, and that nobody answers it.
    let pings = Pinging::start(&lab.alpha, &lab.beta, 20 * 25);
    lab.alpha.block();
    beta.wait_for_state("alpha", "one-way", PROOF_AGE_MAX);
    assert_eq!(beta.peer("alpha").0["dead_direction"], "outbound");
    alpha.wait_for_state("beta", NOT_UP, PROOF_AGE_MAX);
    pings.abandon();
    lab.alpha.pass();
    wait_until_answered(&lab.alpha, &lab.beta, BACK);
    both_up(&alpha, &beta);
}

#[test]
fn a_killed_agent_comes_back() {
    let lab = Lab::direct();
    let (mut alpha, beta) = pair(&lab, 2);
    alpha.kill();
    alpha.start();
    let took = wait_until_answered(&lab.beta, &lab.alpha, BACK);
    eprintln!("back after {took:?}");
    both_up(&alpha, &beta);
    wait_until_agreed(&alpha, &beta);
    both_ping(&lab);
}

#[test]
fn a_stopped_agent_says_goodbye() {
    let lab = Lab::direct();
    let (mut alpha, beta) = pair(&lab, 1);
    assert_eq!(alpha.stop("TERM"), Some(0));
    assert!(!alpha.is_answering());
    assert!(!lab.alpha.attempt(&["ip", "link", "show", "underpass0"]).status.success(), "the TUN is gone");
    // The Delete tells beta at once, long before a probe could.
    beta.wait_for_state("alpha", NOT_UP, Duration::from_secs(5));
    alpha.start();
    wait_until_answered(&lab.alpha, &lab.beta, BACK);
    both_up(&alpha, &beta);
}

/// Both ways of rekeying, from both ends, three times over, under 20 pings a second each way, and 500 a second one way: so
/// many that the moment between the old SA and the new one is hit.
#[test]
fn rekeys_lose_nothing() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, 2);
    let pings = [Pinging::start(&lab.alpha, &lab.beta, 320), Pinging::start(&lab.beta, &lab.alpha, 320)];
    let many = Pinging::paced(&lab.alpha, 7000, "0.002", &["-I", lab.alpha.inner, lab.beta.inner]);
    for round in 0..12 {
        let (agent, peer) = if round % 2 == 0 { (&alpha, "beta") } else { (&beta, "alpha") };
        let what = if round % 4 < 2 { "child" } else { "ike" };
        let before = agent.peer(peer);
        agent.rekey(peer, what);
        let renewed = || {
            let after = agent.peer(peer);
            let renewed = match what {
                "ike" => after.ike_spis().is_some() && after.ike_spis() != before.ike_spis(),
                _ => !after.child_spis().is_empty() && after.child_spis() != before.child_spis(),
            };
            renewed.then_some(())
        };
        wait_for(&format!("other SPIs after --rekey {what}"), Duration::from_secs(5), renewed);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(pings.map(|pings| pings.wait().lost()), [0, 0]);
    assert_eq!(many.wait().lost(), 0);
    wait_until_agreed(&alpha, &beta);
}

/// Lifetimes of seconds: the agents rekey by themselves, again and again.
#[test]
fn short_lifetimes_lose_nothing() {
    short_lifetimes(40);
}

#[test]
#[ignore = "long"]
fn short_lifetimes_lose_nothing_for_ten_minutes() {
    short_lifetimes(600);
}

fn short_lifetimes(seconds: u32) {
    let lab = Lab::direct();
    let more = "ipsec: {ike_rekey: 14s, child_rekey: 10s}\n";
    let (alpha, beta) = paired(&lab, |config| AgentConfig { queues: 2, more: more.to_owned(), ..config });
    let before = alpha.peer("beta");
    let pings = [Pinging::start(&lab.alpha, &lab.beta, seconds * 20), Pinging::start(&lab.beta, &lab.alpha, seconds * 20)];
    assert_eq!(pings.map(|pings| pings.wait().lost()), [0, 0]);
    let after = alpha.peer("beta");
    assert_ne!(before.ike_spis(), after.ike_spis());
    assert_ne!(before.child_spis(), after.child_spis());
    drop(beta);
}

#[test]
fn heavy_loss_is_survived() {
    let lab = Lab::direct();
    lab.alpha.lose(20);
    lab.beta.lose(20);
    let [alpha, beta] = mirrored(&lab);
    let (alpha, beta) = (Agent::running(&lab.alpha, &alpha), Agent::running(&lab.beta, &beta));
    // Both: one end is up as soon as the other has proved itself, although its own last message may still be lost.
    alpha.wait_for_state("beta", "up", Duration::from_secs(40));
    beta.wait_for_state("alpha", "up", Duration::from_secs(40));
    for (agent, peer, what) in [(&alpha, "beta", "child"), (&beta, "alpha", "ike")] {
        let pings = ping(&lab.alpha, &lab.beta, 60);
        assert!(pings.received > 10, "{pings:?}");
        // It may meet the other end's own, or a handshake that is under way: then there is nothing to be done.
        let _ = agent.control(&["peers", peer, "--rekey", what]);
    }
    lab.alpha.pass();
    lab.beta.pass();
    both_up(&alpha, &beta);
    wait_until_agreed(&alpha, &beta);
    both_ping(&lab);
}

#[test]
fn a_nat_is_crossed_and_named() {
    let lab = Lab::with_nat();
    let [alpha, beta] = alpha_calls(&lab).map(|config| config.queues(2));
    let (alpha, beta) = started(&lab, &alpha, &beta);
    both_ping(&lab);
    let (inside, outside) = (alpha.peer("beta").0, beta.peer("alpha").0);
    assert_eq!([&inside["local_behind_nat"], &inside["remote_behind_nat"]], ["yes", "no"]);
    assert_eq!([&outside["local_behind_nat"], &outside["remote_behind_nat"]], ["no", "yes"]);
    assert!(outside["remote"].as_str().expect("an address").starts_with("10.9.0.254:"));
}

/// The NAT forgets everything and maps to other ports: the tunnel follows.
#[test]
fn a_nat_that_forgets_is_followed() {
    let lab = Lab::with_nat();
    let [alpha, beta] = alpha_calls(&lab);
    let (alpha, beta) = started(&lab, &alpha, &beta);
    both_ping(&lab);
    let before = beta.peer("alpha").0["remote"].clone();
    lab.remap_nat();
    wait_until_answered(&lab.alpha, &lab.beta, Duration::from_secs(3));
    both_ping(&lab);
    both_up(&alpha, &beta);
    wait_for("the new port in status", BACK, || (beta.peer("alpha").0["remote"] != before).then_some(()));
}

#[test]
fn other_ports_work() {
    let lab = Lab::direct();
    let ports = (1500, 14500);
    let capture = Capture::with_ports(&lab.beta, ports);
    let (_alpha, _beta) = paired(&lab, |mut config| {
        config.peers[0].address.as_mut().expect("an address").push_str(":14500");
        AgentConfig { ports, ..config }
    });
    both_ping(&lab);
    let seen = capture.stop();
    assert!(seen.other.is_empty(), "{seen:?}");
}

/// What is no packet of ours is counted under its reason, and changes nothing.
#[test]
fn noise_is_counted_and_changes_nothing() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, 2);
    let before = wait_until_agreed(&alpha, &beta).1;
    // Port, octets as printf writes them, and the reason in `drops`.
    let noise = [
        (4500, "\\xff".to_owned(), "keepalive"),
        (4500, "\\x01\\x02\\x03".to_owned(), "runt"),
        (4500, format!("\\x00\\x00\\x00\\x07{}", "\\x2a".repeat(60)), "reserved_spi"),
        (4500, format!("\\x12\\x34\\x56\\x00{}", "\\x2a".repeat(60)), "unknown_spi"),
        (4500, format!("\\x00\\x00\\x00\\x00{}", "\\x2a".repeat(60)), "ike_malformed"),
        (500, "\\x2a".repeat(20), "ike_malformed"),
    ];
    let count = |reason: &str| beta.status()["drops"][reason].as_u64().unwrap_or(0);
    let pings = Pinging::start(&lab.alpha, &lab.beta, 60);
    for (port, octets, reason) in &noise {
        let counted = count(reason);
        let script = format!("for n in {{1..20}}; do printf '{octets}' > /dev/udp/{}/{port}; done", lab.beta.address);
        lab.alpha.run(&["bash", "-c", &script]);
        let rises = || (count(reason) >= counted + 20).then_some(());
        wait_for(&format!("20 more under {reason} for port {port}"), Duration::from_secs(10), rises);
    }
    assert_eq!(pings.wait().lost(), 0);
    let after = beta.peer("alpha");
    assert_eq!((after.state(), after.ike_spis(), after.shared_spis()), ("up", before.ike_spis(), before.shared_spis()));
}

/// A neighbour on the LAN sends a packet with an overlay source in clear, to an overlay address: it must not get in.
#[test]
fn clear_text_does_not_get_in() {
    let lab = Lab::direct();
    let (mut alpha, beta) = pair(&lab, 1);
    both_ping(&lab);
    // From here on alpha is no host of the overlay, only a neighbour. The tunnel is left standing on beta, so that beta
    // would answer through it.
    alpha.kill();
    lab.alpha.run(&["ip", "address", "replace", "10.42.1.1/32", "dev", "lo"]);
    lab.alpha.run(&["ip", "route", "replace", lab.beta.block, "via", lab.beta.address, "dev", UNDERLAY]);
    let before = echo_requests(&lab);
    let capture = Capture::start(&lab.beta);
    let forged = ["-W", "1", "-I", lab.alpha.inner, lab.beta.inner];
    assert_eq!(Pinging::burst(&lab.alpha, 5, &forged).wait().received, 0);
    assert_eq!(capture.stop().other.len(), 5, "the forged pings were on the wire");
    assert_eq!(echo_requests(&lab), before, "beta's kernel saw none of them");
    drop(beta);
}

/// ICMP echo requests that a host's own stack has taken in.
fn echo_requests(lab: &Lab) -> u64 {
    let counters = lab.beta.run(&["cat", "/proc/net/snmp"]);
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let place = names.split(' ').position(|name| name == "InEchos").expect("InEchos");
    values.split(' ').nth(place).and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn large_packets_pass_or_are_answered() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, 1);
    let mtu = alpha.status()["tun"]["mtu"].as_u64().expect("an MTU");
    let of_size = |inner: u64, fragment: &str| {
        let payload = (inner - 28).to_string();
        Pinging::burst(&lab.alpha, 5, &["-s", &payload, "-M", fragment, "-I", lab.alpha.inner, lab.beta.inner]).wait()
    };
    assert_eq!(of_size(mtu, "do").lost(), 0, "a full packet with DF");
    assert_eq!(of_size(mtu + 1, "do").received, 0, "one octet more with DF");
    assert_eq!(of_size(4000, "dont").lost(), 0, "a large one without DF");
    drop((alpha, beta));
}

#[test]
fn ipv6_is_carried() {
    let lab = Lab::direct();
    let (_alpha, _beta) = paired(&lab, |mut config| {
        let number = if config.name == "alpha" { 1 } else { 2 };
        config.blocks += &format!(", \"fd42:{number}::/64\"");
        config.peers[0].blocks += &format!(", \"fd42:{}::/64\"", 3 - number);
        config.overlay = format!("[{}, \"fd42:{number}::1/128\"]", config.overlay);
        config.queues(2)
    });
    both_ping(&lab);
    assert_eq!(Pinging::burst(&lab.alpha, 10, &["-6", "-I", "fd42:1::1", "fd42:2::1"]).wait().lost(), 0);
}

/// Traffic, rekeys, loss and deaths for ten minutes; at the end the tunnel stands and nothing has grown.
#[test]
#[ignore = "long"]
fn ten_minutes_of_trouble() {
    let lab = Lab::direct();
    let (mut alpha, beta) = pair(&lab, 2);
    let memory_before = beta_memory(&beta);
    for round in 0..30 {
        match round % 5 {
            0 => lab.alpha.lose(30),
            1 => lab.alpha.pass(),
            2 => drop(alpha.control(&["peers", "beta", "--rekey", "child"])),
            3 => drop(beta.control(&["peers", "alpha", "--rekey", "ike"])),
            _ => {
                alpha.kill();
                alpha.start();
            }
        }
        ping(&lab.alpha, &lab.beta, 200);
        std::thread::sleep(Duration::from_secs(10));
    }
    lab.alpha.pass();
    both_up(&alpha, &beta);
    wait_until_agreed(&alpha, &beta);
    both_ping(&lab);
    let memory = beta_memory(&beta);
    assert!(memory < memory_before + 20_000, "{memory_before} kB at first, {memory} kB now");
}

/// Resident memory in kB.
fn beta_memory(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
