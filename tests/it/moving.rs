//! Addresses that move: ours, strongSwan's (MOBIKE), those that NATs give; several of one host, several hosts behind one.

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::Duration;

use crate::lab::agent::{Agent, AgentConfig, FIRST_CONTACT, PeerConfig, alpha_calls, both_up, mirrored, started};
use crate::lab::flows::in_netns;
use crate::lab::swan::{Swan, SwanConfig};
use crate::lab::traffic::{Pinging, ping, ten_are_answered, wait_until_answered};
use crate::lab::{Host, Lab, wait_for};

/// Whatever happens, the tunnel is back in this time by itself.
const BACK: Duration = Duration::from_secs(15);

/// alpha calls beta.
fn we_call(lab: &Lab) -> (Agent, Agent) {
    let [alpha, beta] = alpha_calls(lab).map(|config| config.queues(2));
    started(lab, &alpha, &beta)
}

fn remote(agent: &Agent, peer: &str) -> String {
    agent.peer(peer).0["remote"].as_str().unwrap_or_default().to_owned()
}

fn both_ping(from: &Host, to: &Host) {
    assert_eq!(ping(from, to, 10).lost(), 0, "{} to {}", from.name, to.name);
    assert_eq!(ping(to, from, 10).lost(), 0, "{} to {}", to.name, from.name);
}

/// Initiator and responder in turn, each to an address that the other has never heard of.
#[test]
fn our_hosts_move_and_keep_their_sas() {
    let lab = Lab::direct();
    let (alpha, beta) = we_call(&lab);
    both_ping(&lab.alpha, &lab.beta);
    let before = alpha.peer("beta").ike_spis();
    let moves = [
        (&lab.alpha, "10.9.0.1", "10.9.0.11"),
        (&lab.beta, "10.9.0.2", "10.9.0.22"),
        (&lab.alpha, "10.9.0.11", "10.9.0.111"),
        (&lab.beta, "10.9.0.22", "10.9.0.222"),
    ];
    for (host, from, to) in moves {
        host.readdress(from, to);
        let (seen_by, peer) = if host.name == "alpha" { (&beta, "alpha") } else { (&alpha, "beta") };
        let (_, took) = wait_for(&format!("{to} in status"), BACK, || {
            remote(seen_by, peer).starts_with(&format!("{to}:")).then_some(())
        });
        eprintln!("{} is at {to}, seen after {took:?}", host.name);
        wait_until_answered(&lab.alpha, &lab.beta, BACK);
        both_ping(&lab.alpha, &lab.beta);
        assert_eq!(alpha.peer("beta").ike_spis(), before, "no new IKE SA");
    }
}

#[test]
fn we_move_and_strongswan_follows() {
    let lab = Lab::direct();
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).with_anyone());
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]).queues(2));
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    wait_until_answered(&lab.alpha, &lab.beta, FIRST_CONTACT);
    let before = alpha.peer("beta").ike_spis();
    for (from, to) in [("10.9.0.1", "10.9.0.11"), ("10.9.0.11", "10.9.0.111")] {
        lab.alpha.readdress(from, to);
        let moved = || beta.established().pop().filter(|(sa, _)| sa.value("remote-host") == to).map(drop);
        let (_, took) = wait_for(&format!("strongSwan to see {to}"), BACK, moved);
        eprintln!("{to}, seen after {took:?}");
        wait_until_answered(&lab.alpha, &lab.beta, BACK);
        assert!(ten_are_answered(&lab.alpha, &lab.beta) && ten_are_answered(&lab.beta, &lab.alpha));
        assert_eq!(alpha.peer("beta").ike_spis(), before, "no new IKE SA");
    }
    // And it still rekeys what moved.
    alpha.rekey("beta", "ike");
    alpha.rekey("beta", "child");
    assert!(ten_are_answered(&lab.alpha, &lab.beta));
}

/// As initiator it tells us by UPDATE_SA_ADDRESSES, as responder by the address that it tells from.
#[test]
fn strongswan_moves_and_we_follow() {
    for it_calls in [true, false] {
        eprintln!("--- it calls: {it_calls}");
        let lab = Lab::direct();
        let peer = if it_calls { PeerConfig::calling(&lab.beta) } else { PeerConfig::at(&lab.beta) };
        let mut beta = None;
        if !it_calls {
            beta = Some(Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha)));
        }
        let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[peer]).queues(2));
        if it_calls {
            let swan = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha));
            swan.initiate();
            beta = Some(swan);
        }
        alpha.wait_for_state("beta", "up", FIRST_CONTACT);
        wait_until_answered(&lab.alpha, &lab.beta, FIRST_CONTACT);
        let before = alpha.peer("beta").ike_spis();
        for (from, to) in [("10.9.0.2", "10.9.0.22"), ("10.9.0.22", "10.9.0.222")] {
            lab.beta.readdress(from, to);
            let seen = || remote(&alpha, "beta").starts_with(&format!("{to}:")).then_some(());
            let (_, took) = wait_for(&format!("{to} in status"), BACK, seen);
            eprintln!("{to}, seen after {took:?}");
            wait_until_answered(&lab.alpha, &lab.beta, BACK);
            assert!(ten_are_answered(&lab.alpha, &lab.beta) && ten_are_answered(&lab.beta, &lab.alpha));
            assert_eq!(alpha.peer("beta").ike_spis(), before, "no new IKE SA");
        }
        drop(beta);
    }
}

/// The first address is nobody's, the second one of a host that knows no IKE.
#[test]
fn the_addresses_of_a_peer_are_called_in_turn() {
    let lab = Lab::direct();
    let [mut alpha, beta] = alpha_calls(&lab);
    alpha.peers[0].address = Some("[10.9.0.99, \"10.9.0.2:4999\", 10.9.0.2]".to_owned());
    let (alpha, _beta) = started(&lab, &alpha, &beta);
    both_ping(&lab.alpha, &lab.beta);
    assert_eq!(alpha.peer("beta").0["configured_address"], "10.9.0.99, 10.9.0.2:4999, 10.9.0.2");
    assert_eq!(remote(&alpha, "beta"), "10.9.0.2:4500");
}

/// A host with two addresses loses the one in use without a word: the other end tries the one that it was told of.
#[test]
fn a_second_address_is_found_when_the_first_goes_silent() {
    let lab = Lab::direct();
    lab.beta.run(&["ip", "address", "add", "10.9.0.22/24", "dev", "up0"]);
    let (alpha, _beta) = we_call(&lab);
    both_ping(&lab.alpha, &lab.beta);
    let before = alpha.peer("beta").ike_spis();
    lab.beta
        .run(&["nft", "table inet lab { chain input { type filter hook input priority -300; ip daddr 10.9.0.2 drop; }; }"]);
    let pings = Pinging::start(&lab.alpha, &lab.beta, 200);
    let (_, took) = wait_for("the second address", BACK, || (remote(&alpha, "beta") == "10.9.0.22:4500").then_some(()));
    eprintln!("found after {took:?}");
    pings.abandon();
    wait_until_answered(&lab.alpha, &lab.beta, BACK);
    both_ping(&lab.alpha, &lab.beta);
    assert_eq!(alpha.peer("beta").ike_spis(), before, "no new IKE SA");
}

#[test]
fn other_ports_on_one_side_work() {
    let lab = Lab::direct();
    // Both call: beta from its ports to the usual ones.
    let [mut alpha, mut beta] = mirrored(&lab);
    alpha.peers[0].address = Some("10.9.0.2:14500".to_owned());
    beta.ports = (1500, 14500);
    let (alpha, beta) = started(&lab, &alpha, &beta);
    both_ping(&lab.alpha, &lab.beta);
    assert_eq!((remote(&alpha, "beta"), remote(&beta, "alpha")), ("10.9.0.2:14500".to_owned(), "10.9.0.1:4500".to_owned()));
    lab.alpha.readdress("10.9.0.1", "10.9.0.11");
    wait_for("the new address", BACK, || (remote(&beta, "alpha") == "10.9.0.11:4500").then_some(()));
    wait_until_answered(&lab.alpha, &lab.beta, BACK);
    both_ping(&lab.alpha, &lab.beta);
}

/// Three of our hosts behind one NAT talk to one in front of it.
#[test]
fn three_hosts_share_a_nat() {
    let lab = Lab::crowd();
    let inside: Vec<&Host> = [&lab.alpha].into_iter().chain(&lab.others).collect();
    let peers: Vec<PeerConfig> = inside.iter().map(|host| PeerConfig::calling(host)).collect();
    let beta = Agent::running(&lab.beta, &AgentConfig::new(&lab.beta, &peers).queues(2));
    let config = |host| AgentConfig::new(host, &[PeerConfig::at(&lab.beta)]);
    let agents: Vec<Agent> = inside.iter().map(|host| Agent::running(host, &config(host))).collect();
    for (agent, host) in agents.iter().zip(&inside) {
        agent.wait_for_state("beta", "up", FIRST_CONTACT);
        beta.wait_for_state(host.name, "up", FIRST_CONTACT);
    }
    inside.iter().for_each(|host| both_ping(host, &lab.beta));
    let mut ports: Vec<String> = inside.iter().map(|host| remote(&beta, host.name)).collect();
    eprintln!("beta sees {ports:?}");
    ports.sort();
    ports.dedup();
    assert!(ports.len() == 3 && ports.iter().all(|place| place.starts_with("10.9.0.254:")), "{ports:?}");
    // The NAT maps them all anew, while they talk.
    lab.scatter_nat();
    for host in &inside {
        wait_until_answered(host, &lab.beta, BACK);
    }
    inside.iter().for_each(|host| both_ping(host, &lab.beta));
}

/// The NAT forgets every mapping each `pause` seconds, and maps to other ports; pings go both ways all the time. `most` of them
/// may be lost per direction each time.
fn nat_that_forgets(lab: &Lab, alpha: &Agent, (rounds, pause): (u32, u32), most: u32) {
    let before = alpha.peer("beta").ike_spis();
    let pings =
        [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)].map(|(from, to)| Pinging::lasting(from, to, rounds * pause));
    for _ in 0..rounds {
        sleep(Duration::from_secs(pause.into()) / 2);
        lab.forget_nat();
        sleep(Duration::from_secs(pause.into()) / 2);
    }
    let pings = pings.map(Pinging::wait);
    let lost = pings.map(|pings| pings.lost());
    eprintln!("{rounds} times forgotten: {pings:?}");
    assert!(lost.iter().all(|&lost| lost <= most * rounds), "{lost:?} lost in {rounds} rounds");
    assert_eq!(alpha.peer("beta").ike_spis(), before, "no new IKE SA");
    wait_until_answered(&lab.alpha, &lab.beta, BACK);
}

/// Our own host in front follows as soon as it has asked: half a second is plenty.
fn a_nat_that_forgets_again_and_again(rounds: u32, pause: u32) {
    let lab = Lab::with_nat();
    lab.scatter_nat();
    let (alpha, beta) = we_call(&lab);
    both_ping(&lab.alpha, &lab.beta);
    nat_that_forgets(&lab, &alpha, (rounds, pause), 10);
    both_up(&alpha, &beta);
}

#[test]
fn a_nat_that_forgets_is_followed_by_our_hosts() {
    a_nat_that_forgets_again_and_again(4, 5);
}

#[test]
#[ignore = "long"]
fn a_nat_that_forgets_is_followed_by_our_hosts_for_ten_minutes() {
    a_nat_that_forgets_again_and_again(30, 20);
}

/// strongSwan in front follows when it is told (MOBIKE): we must find out first, by asking how it sees us. That takes the time in which
/// nothing was heard, and perhaps the rest of the pause between two questions.
fn a_nat_that_forgets_before_strongswan(rounds: u32, pause: u32) {
    let lab = Lab::with_nat();
    lab.scatter_nat();
    let _beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).with_anyone());
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]).queues(2));
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    wait_until_answered(&lab.alpha, &lab.beta, FIRST_CONTACT);
    sleep(Duration::from_secs(1));
    nat_that_forgets(&lab, &alpha, (rounds, pause), 120);
}

#[test]
fn a_nat_that_forgets_is_followed_by_strongswan() {
    a_nat_that_forgets_before_strongswan(2, 14);
}

#[test]
#[ignore = "long"]
fn a_nat_that_forgets_is_followed_by_strongswan_for_ten_minutes() {
    a_nat_that_forgets_before_strongswan(30, 20);
}

/// Bad input 105: each is counted, and nothing else happens.
#[test]
fn case_105_a_flood_of_keepalives() {
    const FLOOD: u64 = 5000;
    let lab = Lab::direct();
    let (alpha, beta) = we_call(&lab);
    let before = beta.peer("alpha");
    let count = || beta.status()["drops"]["keepalive"].as_u64().unwrap_or(0);
    let counted = count();
    let pings = Pinging::start(&lab.alpha, &lab.beta, 40);
    in_netns(&lab.alpha.netns, || {
        let socket = UdpSocket::bind("10.9.0.1:0").expect("a socket");
        for number in 0..FLOOD {
            socket.send_to(&[0xff], "10.9.0.2:4500").expect("a datagram");
            if number % 50 == 0 {
                sleep(Duration::from_millis(5));
            }
        }
    });
    wait_for("all to be counted", Duration::from_secs(5), || (count() >= counted + FLOOD).then_some(()));
    assert_eq!(count(), counted + FLOOD);
    assert_eq!(pings.wait().lost(), 0);
    let after = beta.peer("alpha");
    assert_eq!((after.state(), after.ike_spis(), after.shared_spis()), ("up", before.ike_spis(), before.shared_spis()));
    assert_eq!(remote(&beta, "alpha"), "10.9.0.1:4500");
    drop(alpha);
}
