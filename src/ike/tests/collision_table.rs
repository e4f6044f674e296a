//! Every two things that two hosts can ask each other at once, in every order of arrival, with either host as the IKE SA's initiator,
//! and with any of the first messages lost (RFC 7296 §2.8, §2.25). Where nonces decide, in every order of nonces.
//!
//! What one host refuses to the other while the two requests cross is written in [`ROWS`]; whatever happened, one IKE SA and one
//! CHILD_SA remain, or, if one of them wanted that, none.

use std::sync::Arc;
use std::time::Duration;

use super::{HOST, must_be_settled, pair, permutations, script, sender};
use crate::ike::simulator::{Content, Datagram, Proof, Simulator};
use crate::ike::{Command, Event, PostQuantum};
use crate::model::Spi;
use crate::wire::ike::Header;

/// What a host asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ask {
    RekeyChild,
    DeleteChild,
    RekeyIke,
    DeleteIke,
    Probe,
}

use Ask::{DeleteChild, DeleteIke, Probe, RekeyChild, RekeyIke};

const BUSY_IKE: &str = "the IKE SA is being rekeyed";
const BUSY_CHILD: &str = "a CHILD_SA is being made or deleted";
const DELETING: &str = "the CHILD_SA is being deleted";
const NOTHING: &str = "";

/// What two hosts ask, and what each says to the other if neither has heard of it before: an answer, or the reason of a refusal.
const ROWS: [(Ask, Ask, &str, &str); 15] = [
    (RekeyChild, RekeyChild, NOTHING, NOTHING),
    (RekeyChild, DeleteChild, NOTHING, DELETING),
    (RekeyChild, RekeyIke, BUSY_CHILD, BUSY_IKE),
    (RekeyChild, DeleteIke, NOTHING, NOTHING),
    (RekeyChild, Probe, NOTHING, NOTHING),
    (DeleteChild, DeleteChild, NOTHING, NOTHING),
    (DeleteChild, RekeyIke, BUSY_CHILD, NOTHING),
    (DeleteChild, DeleteIke, NOTHING, NOTHING),
    (DeleteChild, Probe, NOTHING, NOTHING),
    (RekeyIke, RekeyIke, NOTHING, NOTHING),
    (RekeyIke, DeleteIke, NOTHING, NOTHING),
    (RekeyIke, Probe, NOTHING, NOTHING),
    (DeleteIke, DeleteIke, NOTHING, NOTHING),
    (DeleteIke, Probe, NOTHING, NOTHING),
    (Probe, Probe, NOTHING, NOTHING),
];

impl Ask {
    fn command(self, sim: &Simulator, host: usize) -> Command {
        let (peer, child) = (HOST[1 - host], sender(sim, host));
        match self {
            RekeyChild => Command::RekeyChild(child),
            DeleteChild => Command::ChildExpired(child),
            RekeyIke => Command::RekeyIke(peer),
            DeleteIke => Command::Close(peer),
            Probe => Command::Probe(peer),
        }
    }
}

/// Two hosts with a tunnel that this one began, whose rekeys are one exchange each.
pub fn classical(initiator: usize) -> Simulator {
    let mut sim = Simulator::new(7, 2, Proof::Psk);
    for host in &mut sim.hosts {
        for config in host.endpoint.shared.peers.values_mut() {
            Arc::make_mut(config).post_quantum = PostQuantum::No;
        }
    }
    sim.command(initiator, Command::Initiate(HOST[1 - initiator]));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
    sim.by_hand = true;
    sim
}

pub fn header(datagram: &Datagram) -> Header {
    let Content::Ike(message) = &datagram.content else { panic!("IKE only") };
    Header::parse(message).expect("our own message").0
}

/// The oldest message of a host that waits, all its fragments: taken off the wire.
fn take_from(sim: &mut Simulator, host: usize) -> Vec<Datagram> {
    let from = sim.hosts[host].address;
    let is_its = |datagram: &Datagram| datagram.path.local.ip() == from;
    let Some(first) = sim.waiting.iter().find(|datagram| is_its(datagram)).map(header) else { return Vec::new() };
    let taken = |datagram: &mut Datagram| is_its(datagram) && header(datagram) == first;
    sim.waiting.extract_if(.., taken).collect()
}

fn deliver_from(sim: &mut Simulator, host: usize) {
    for datagram in take_from(sim, host) {
        sim.deliver_again(&datagram);
    }
}

/// Both ask; then messages arrive in this order (a bit for each: whose is next), one of which may be lost; then the network is good
/// and time passes.
fn meet(sim: &mut Simulator, asks: [Ask; 2], order: u32, lost: Option<u32>) {
    let commands = [asks[0].command(sim, 0), asks[1].command(sim, 1)];
    for (host, command) in commands.into_iter().enumerate() {
        sim.command(host, command);
    }
    for turn in 0..5 {
        let host = (order >> turn & 1) as usize;
        if lost == Some(turn) {
            take_from(sim, host);
        } else {
            deliver_from(sim, host);
        }
    }
    sim.deliver_all();
    sim.by_hand = false;
    // Retransmissions, pauses after refusals, and the patience with what is left over.
    sim.run_for(Duration::from_secs(30));
}

fn refusals(sim: &Simulator, host: usize) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Refused { reason, .. } => Some(reason.to_string()),
        _ => None,
    };
    sim.hosts[host].events.iter().filter_map(text).collect()
}

/// The SPI of the last SA that a host asked for.
fn last_reserved(sim: &Simulator, host: usize) -> Option<Spi> {
    let spi = |event: &Event| match event {
        Event::Reserve { spi, .. } => Some(*spi),
        _ => None,
    };
    sim.hosts[host].events.iter().rev().find_map(spi)
}

/// One of each is left, or none at either end.
fn outcome_is_right(sim: &mut Simulator, asks: [Ask; 2], what: &str) {
    let closed = asks.contains(&DeleteIke);
    if !closed {
        sim.settled(0, 1).unwrap_or_else(|why| {
            panic!("{what}: {why}\n{}\n{}", sim.hosts[0].standing().join("\n"), sim.hosts[1].standing().join("\n"))
        });
        sim.run_for(Duration::from_secs(95));
        return sim.tidy().unwrap_or_else(|why| panic!("{what}: {why}"));
    }
    for host in &sim.hosts {
        let (installed, reserved) = (&host.plane.installed, &host.plane.reserved);
        assert!(installed.is_empty() && reserved.is_empty(), "{what}: {installed:?} {reserved:?}");
        assert_eq!(host.standing(), [""; 0], "{what}");
    }
    sim.run_for(Duration::from_secs(95));
    assert!(sim.hosts.iter().all(|host| host.endpoint.ike_sa_count() == 0), "{what}");
}

#[test]
fn whatever_two_hosts_ask_each_other_at_once() {
    for (a, b, a_says, b_says) in ROWS {
        for initiator in 0..2 {
            for asks in [[a, b], [b, a]] {
                let said = if asks == [a, b] { [a_says, b_says] } else { [b_says, a_says] };
                for order in 0..16 {
                    let what = format!("{asks:?}, order {order:04b}, initiator {initiator}");
                    let mut sim = classical(initiator);
                    meet(&mut sim, asks, order, None);
                    // The two requests cross: nobody hears of the other's before his own is under way.
                    if matches!(order & 3, 1 | 2) {
                        for (host, said) in said.into_iter().enumerate() {
                            let refused = refusals(&sim, host);
                            let right = match said {
                                NOTHING => refused.is_empty(),
                                reason => refused.first().is_some_and(|first| first.contains(reason)),
                            };
                            assert!(right, "{what}: host {host} says {refused:?}");
                        }
                    }
                    outcome_is_right(&mut sim, asks, &what);
                }
            }
        }
    }
}

#[test]
fn and_one_of_the_first_messages_is_lost() {
    for (a, b, ..) in ROWS {
        for asks in [[a, b], [b, a]] {
            for order in [0b00101, 0b01010, 0b00110, 0b11001, 0b00011] {
                for lost in 0..5 {
                    let mut sim = classical((order & 1) as usize);
                    meet(&mut sim, asks, order, Some(lost));
                    // A lost Delete of an IKE SA is repeated for ten seconds only; here that is enough.
                    outcome_is_right(&mut sim, asks, &format!("{asks:?}, order {order:05b}, lost {lost}"));
                }
            }
        }
    }
}

/// Of four nonces the lowest loses: the SA that remains was asked for by the other.
#[test]
fn nonces_decide_in_every_order_of_arrival() {
    for nonces in permutations() {
        let [ni_a, nr_b, ni_b, nr_a] = nonces;
        let a_wins = ni_a.min(nr_b) > ni_b.min(nr_a);
        for (ask, responder_draws_key_first) in [(RekeyChild, false), (RekeyIke, true)] {
            for order in [0b0001, 0b0010, 0b0101, 0b0110, 0b1001, 0b1010] {
                let what = format!("{ask:?}, nonces {nonces:?}, order {order:04b}");
                let mut sim = classical(0);
                let draws = |own, theirs| if responder_draws_key_first { [own, 0, 0, theirs] } else { [own, 0, theirs, 0] };
                script(&mut sim, 0, &draws(ni_a, nr_a));
                script(&mut sim, 1, &draws(ni_b, nr_b));
                let before = [0, 1].map(|host| sim.hosts[host].plane.installs);
                meet(&mut sim, [ask, ask], order, None);
                outcome_is_right(&mut sim, [ask, ask], &what);
                match ask {
                    RekeyIke => assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].initiator, a_wins, "{what}"),
                    // Who wins has asked for what it sends with: its SPI was reserved before the other's was installed.
                    _ => {
                        let winner = usize::from(!a_wins);
                        assert_eq!(Some(sender(&sim, winner)), last_reserved(&sim, winner), "{what}");
                        let after = [0, 1].map(|host| sim.hosts[host].plane.installs);
                        assert!(after.iter().zip(before).all(|(after, before)| after - before <= 2), "{what}");
                    }
                }
            }
        }
    }
}

/// With an additional key exchange a rekey is two exchanges, and one that meets another is tried again.
#[test]
fn rekeys_of_two_exchanges_meet_everything() {
    for (a, b, ..) in ROWS.into_iter().filter(|(a, b, ..)| [a, b].iter().any(|ask| matches!(ask, RekeyIke | RekeyChild))) {
        for asks in [[a, b], [b, a]] {
            for order in [0b00101, 0b01010, 0b00110, 0b11001, 0b00011, 0b10100] {
                let mut sim = pair(7);
                sim.by_hand = true;
                meet(&mut sim, asks, order, None);
                outcome_is_right(&mut sim, asks, &format!("{asks:?}, order {order:05b}"));
            }
        }
    }
}

/// The last CHILD_SA is gone, and both ask for one.
#[test]
fn both_make_the_first_child_in_every_order_of_nonces() {
    for nonces in permutations() {
        for order in [0b0001, 0b0010, 0b0101, 0b1010] {
            let what = format!("nonces {nonces:?}, order {order:04b}");
            let mut sim = classical(0);
            // Neither has one: each lost it in its own way.
            for host in 0..2 {
                let spi = sender(&sim, host);
                let ike = sim.hosts[host].endpoint.ike_sas(HOST[1 - host])[0].local_spi;
                let endpoint = &mut sim.hosts[host].endpoint;
                let Some(crate::ike::state::IkeSa::Established(mut state)) = endpoint.table.take(ike) else {
                    panic!("it is up")
                };
                let child = state.children.remove(&spi).expect("its only one");
                child.retire(&mut endpoint.shared, true);
                endpoint.table.put(ike, crate::ike::state::IkeSa::Established(state));
                sim.command(host, Command::Probe(HOST[1 - host]));
            }
            sim.deliver_all();
            let [ni_a, nr_b, ni_b, nr_a] = nonces;
            script(&mut sim, 0, &[ni_a, 0, nr_a, 0]);
            script(&mut sim, 1, &[ni_b, 0, nr_b, 0]);
            for host in 0..2 {
                sim.command(host, Command::CreateChild(HOST[1 - host]));
            }
            for turn in 0..4 {
                deliver_from(&mut sim, (order >> turn & 1) as usize);
            }
            sim.deliver_all();
            sim.by_hand = false;
            sim.run_for(Duration::from_secs(15));
            must_be_settled(&sim);
            let a_wins = ni_a.min(nr_b) > ni_b.min(nr_a);
            let winner = usize::from(!a_wins);
            if matches!(order & 3, 1 | 2) {
                assert_eq!(Some(sender(&sim, winner)), last_reserved(&sim, winner), "{what}");
            }
        }
    }
}
