//! Rekeys without a collision: by command, by time, with lost messages, and without losing a packet.

use std::time::Duration;

use super::{HOST, classical_pair_by_hand, count, must_be_settled, pair, sender};
use crate::ike::simulator::{Content, Faults};
use crate::ike::{CloseReason, Command, Event};
use crate::model::DropReason;

#[test]
fn either_side_rekeys_the_child_without_losing_a_packet() {
    for host in 0..2 {
        let mut sim = pair(1);
        sim.traffic = true;
        sim.run_for(Duration::from_millis(200));
        for _ in 0..5 {
            let old = sender(&sim, host);
            sim.command(host, Command::RekeyChild(old));
            sim.run_for(Duration::from_secs(1));
            must_be_settled(&sim);
            assert_ne!(sender(&sim, host), old);
        }
        assert_eq!(sim.lost_packets, 0);
    }
}

#[test]
fn either_side_rekeys_the_ike_sa_and_the_children_move() {
    for host in 0..2 {
        let mut sim = pair(2);
        sim.traffic = true;
        let child = sender(&sim, host);
        for round in 0..3 {
            let old = sim.hosts[host].endpoint.ike_sas(HOST[1 - host])[0].local_spi;
            let from = sim.hosts[1 - host].events.len();
            sim.command(host, Command::RekeyIke(HOST[1 - host]));
            sim.run_for(Duration::from_secs(1));
            must_be_settled(&sim);
            let new = &sim.hosts[host].endpoint.ike_sas(HOST[1 - host])[0];
            assert!(new.local_spi != old && new.initiator, "round {round}");
            assert_eq!(sender(&sim, host), child, "the CHILD_SA is the same");
            assert_eq!(count(&sim, 1 - host, from, |event| matches!(event, Event::IkeUp { .. })), 1);
            let replaced = |event: &Event| matches!(event, Event::IkeDown { reason: CloseReason::Replaced, .. });
            assert_eq!(count(&sim, 1 - host, from, replaced), 1);
        }
        // The other side, now a responder of the newest IKE SA, rekeys on it.
        let other = sender(&sim, 1 - host);
        sim.command(1 - host, Command::RekeyChild(other));
        sim.run_for(Duration::from_secs(10));
        must_be_settled(&sim);
        assert_ne!(sender(&sim, host), child);
        assert_eq!(sim.lost_packets, 0);
    }
}

#[test]
fn time_alone_rekeys_everything() {
    let mut sim = pair(3);
    sim.reconcile();
    let (child, ike) = (sender(&sim, 0), sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi);
    // Ten hours: IKE SAs live for four, CHILD_SAs for one.
    sim.run_for(Duration::from_secs(10 * 3600));
    must_be_settled(&sim);
    assert_ne!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi, ike);
    assert_ne!(sender(&sim, 0), child);
    let installs = sim.hosts[0].plane.installs;
    assert!((10..=14).contains(&installs), "{installs} CHILD_SAs in ten hours");
    assert_eq!(sim.most_ike_sas, 1);
}

#[test]
fn a_responder_uses_the_new_child_when_the_first_packet_arrives() {
    let mut sim = classical_pair_by_hand(4);
    let old = [sender(&sim, 0), sender(&sim, 1)];
    sim.command(0, Command::RekeyChild(old[0]));
    sim.deliver(0);
    assert_eq!(sender(&sim, 1), old[1], "the responder keeps sending with the old one");
    sim.deliver(0);
    assert_ne!(sender(&sim, 0), old[0], "the initiator switches at once");
    let new = sim.hosts[0].plane.sender(HOST[1]).map(|child| child.outbound_spi).expect("a sender");
    sim.command(1, Command::InboundUsed(new));
    assert_eq!(sender(&sim, 1), new);
    sim.deliver_all();
    must_be_settled(&sim);
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_installs_nothing() {
    let mut sim = classical_pair_by_hand(5);
    let old = sender(&sim, 0);
    sim.command(0, Command::RekeyChild(old));
    let request = sim.waiting[0].clone();
    sim.deliver(0);
    let answer = sim.waiting[0].clone();
    let installs = sim.hosts[1].plane.installs;
    for _ in 0..3 {
        sim.deliver_again(&request);
    }
    assert_eq!(sim.hosts[1].plane.installs, installs);
    assert_eq!(sim.waiting.len(), 4);
    assert!(sim.waiting.iter().all(|datagram| *datagram == answer), "identical octets");
    sim.deliver_all();
    must_be_settled(&sim);
}

#[test]
fn a_request_that_waits_for_the_data_plane_is_not_taken_twice() {
    let mut sim = pair(6);
    sim.install_delay = Duration::from_secs(2);
    let old = sender(&sim, 0);
    sim.command(0, Command::RekeyChild(old));
    // Two retransmissions arrive while the responder's data plane is busy.
    sim.run_for(Duration::from_millis(1900));
    assert_eq!(sim.hosts[1].plane.installs, 2);
    assert!(sim.hosts[1].endpoint.drops().of(DropReason::IkeMessageId) >= 1);
    sim.run_for(Duration::from_secs(8));
    must_be_settled(&sim);
}

#[test]
fn a_dead_peer_is_given_up_after_45_seconds_and_probes_say_so_after_5() {
    let mut sim = pair(7);
    sim.faults = Faults { loss: 1.0, ..Faults::default() };
    let from = sim.hosts[0].events.len();
    sim.command(0, Command::Probe(HOST[1]));
    sim.run_for(Duration::from_millis(4900));
    assert_eq!(count(&sim, 0, from, |event| matches!(event, Event::ProbeLost { .. })), 0);
    sim.run_for(Duration::from_millis(200));
    assert_eq!(count(&sim, 0, from, |event| matches!(event, Event::ProbeLost { .. })), 1);
    sim.run_for(Duration::from_secs(39));
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 1);
    sim.run_for(Duration::from_secs(2));
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
    assert!(sim.hosts[0].plane.installed.is_empty());
    let timeout = |event: &Event| matches!(event, Event::IkeDown { reason: CloseReason::Timeout, .. });
    assert_eq!(count(&sim, 0, from, timeout), 1);
}

/// A partition ends just before a request that stood in it all the time is given up: who was heard meanwhile is not dead.
#[test]
fn who_speaks_again_is_not_given_up() {
    let mut sim = pair(7);
    let before = sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi;
    sim.faults = Faults { loss: 1.0, ..Faults::default() };
    sim.command(0, Command::Probe(HOST[1]));
    sim.run_for(Duration::from_millis(44_900));
    sim.faults = Faults::default();
    sim.command(1, Command::Probe(HOST[0]));
    sim.run_for(Duration::from_secs(20));
    must_be_settled(&sim);
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi, before);
}

/// The same where the peer has nothing to ask for: its packets say as much.
#[test]
fn who_sends_packets_again_is_not_given_up() {
    for heard in [false, true] {
        let mut sim = pair(7);
        let before = sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi;
        let spi = sender(&sim, 0);
        sim.faults = Faults { loss: 1.0, ..Faults::default() };
        sim.command(0, Command::Probe(HOST[1]));
        sim.run_for(Duration::from_millis(44_900));
        if heard {
            let now = sim.now;
            sim.command(0, Command::Heard(spi, now));
        }
        sim.run_for(Duration::from_secs(1));
        sim.faults = Faults::default();
        sim.run_for(Duration::from_secs(20));
        let stays = sim.hosts[0].endpoint.ike_sas(HOST[1]).iter().any(|sa| sa.local_spi == before);
        assert_eq!(stays, heard);
    }
}

#[test]
fn who_speaks_and_never_answers_is_given_up_in_the_end() {
    let mut sim = pair(7);
    let spi = sender(&sim, 0);
    sim.faults = Faults { loss: 1.0, ..Faults::default() };
    sim.command(0, Command::Probe(HOST[1]));
    for second in 0..60 {
        let up = !sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty();
        assert_eq!(up, second < 57, "after {second} seconds");
        let now = sim.now;
        sim.command(0, Command::Heard(spi, now));
        sim.run_for(Duration::from_secs(1));
    }
}

#[test]
fn a_probe_proves_both_directions() {
    let mut sim = pair(8);
    let from = sim.hosts[0].events.len();
    let asked = sim.now;
    sim.command(0, Command::Probe(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    assert_eq!(count(&sim, 0, from, |event| *event == Event::Proof { peer: HOST[1], asked }), 1);
    assert_eq!(count(&sim, 1, 0, |event| matches!(event, Event::Heard { .. })), 1);
}

#[test]
fn retransmissions_are_identical_octets() {
    let mut sim = classical_pair_by_hand(9);
    sim.command(0, Command::Probe(HOST[1]));
    sim.run_for(Duration::from_secs(4));
    assert!(sim.waiting.len() >= 4);
    assert!(sim.waiting.windows(2).all(|two| two[0] == two[1]));
    assert!(matches!(&sim.waiting[0].content, Content::Ike(message) if !message.is_empty()));
}

#[test]
fn an_expired_child_is_deleted_and_made_anew() {
    let mut sim = pair(10);
    let old = sender(&sim, 0);
    sim.command(0, Command::ChildExpired(old));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
    assert_ne!(sender(&sim, 0), old);
}

#[test]
fn a_closed_peer_hears_of_it() {
    let mut sim = pair(11);
    sim.command(0, Command::Close(HOST[1]));
    assert!(sim.hosts[0].plane.installed.is_empty(), "we stop at once");
    sim.run_for(Duration::from_secs(1));
    assert!(sim.hosts[1].plane.installed.is_empty());
    let deleted = |event: &Event| matches!(event, Event::IkeDown { reason: CloseReason::PeerDeleted, .. });
    assert_eq!(count(&sim, 1, 0, deleted), 1);
    sim.run_for(Duration::from_secs(60));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count() + sim.hosts[1].endpoint.ike_sa_count(), 0);
}
