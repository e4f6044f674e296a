//! One IKE SA per peer: restarts, INITIAL_CONTACT, and peers that call each other again.

use std::time::Duration;

use super::hand::{Hand, alone, own_config, ups};
use super::{HOST, count, must_be_settled, pair, sender};
use crate::ike::simulator::{Faults, Proof, Simulator};
use crate::ike::{CloseReason, Command, Event};
use crate::wire::ike::{ExchangeType, Notify, NotifyType, Payload};

#[test]
fn a_restarted_peer_replaces_what_it_forgot_at_once() {
    let mut sim = pair(1);
    sim.restart(1, Proof::Psk);
    let from = sim.hosts[0].events.len();
    sim.command(1, Command::Initiate(HOST[0]));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
    let replaced = |event: &Event| matches!(event, Event::IkeDown { reason: CloseReason::Replaced, .. });
    assert_eq!(count(&sim, 0, from, replaced), 1, "INITIAL_CONTACT does not wait");
}

#[test]
fn a_fresh_ike_sa_replaces_the_older_one_after_a_while() {
    for (first, second) in [(0, 1), (0, 0), (1, 0)] {
        let mut sim = Simulator::new(2, 2, Proof::Psk);
        sim.traffic = true;
        sim.command(first, Command::Initiate(HOST[1 - first]));
        sim.run_for(Duration::from_secs(10));
        let old = sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi;
        sim.command(second, Command::Initiate(HOST[1 - second]));
        sim.run_for(Duration::from_secs(1));
        assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 2, "they overlap");
        sim.run_for(Duration::from_secs(5));
        must_be_settled(&sim);
        assert_ne!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi, old, "the newer one stays");
        assert_eq!(sim.lost_packets, 0);
    }
}

#[test]
fn a_peer_that_lost_its_state_is_found_and_replaced_within_15_seconds() {
    let mut sim = pair(3);
    sim.reconcile();
    sim.hosts[1].reconciled = false;
    sim.run_for(Duration::from_secs(12));
    sim.restart(1, Proof::Psk);
    let up = sim.run_until(Duration::from_secs(17), |sim| sim.settled(0, 1).is_ok());
    assert!(up, "{:?}", sim.hosts[0].complaints());
}

/// Its answer to IKE_AUTH is lost, and the responder has given the IKE SA up before the initiator asks again: nobody may come up with
/// it, or packets would go where nobody opens them.
#[test]
fn what_its_responder_has_given_up_does_not_come_up() {
    for delete_arrives in [true, false] {
        let mut sim = Simulator::new(1, 2, Proof::Psk);
        sim.by_hand = true;
        sim.command(0, Command::Initiate(HOST[1]));
        // IKE_SA_INIT, IKE_INTERMEDIATE in two fragments, IKE_AUTH.
        for _ in 0..6 {
            sim.deliver(0);
        }
        assert_eq!((sim.hosts[1].endpoint.ike_sas(HOST[0]).len(), sim.waiting.len()), (1, 1), "its answer is under way");
        sim.waiting.clear();
        sim.command(1, Command::Close(HOST[0]));
        let delete = sim.waiting.pop().expect("a Delete");
        if delete_arrives {
            sim.deliver_again(&delete);
            assert_eq!(sim.waiting.len(), 1, "it is answered");
        }
        sim.run_for(Duration::from_millis(2600));
        sim.waiting.retain(|datagram| datagram.path.local.ip() == sim.hosts[0].address);
        sim.deliver_all();
        assert_eq!((ups(&sim), sim.hosts[0].plane.installs), (0, 0), "the Delete arrives: {delete_arrives}");
        let failed = |event: &Event| matches!(event, Event::InitiateFailed { reason: CloseReason::PeerDeleted, .. });
        assert_eq!(count(&sim, 0, 0, failed), usize::from(delete_arrives), "and the next attempt need not wait");
        assert!(sim.hosts[0].plane.reserved.is_empty() || !delete_arrives);
    }
}

/// The peer wakes up at the end of an initiation's time and answers the last of its requests: what it then holds must not be one-sided.
#[test]
fn who_answers_at_the_last_moment_is_waited_for() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_millis(29_900));
    let last = sim.waiting.pop().expect("the request once more");
    sim.waiting = vec![last].into();
    for _ in 0..6 {
        sim.deliver(0);
    }
    assert_eq!((sim.hosts[1].endpoint.ike_sas(HOST[0]).len(), ups(&sim)), (1, 0), "its answer to IKE_AUTH is under way");
    sim.run_for(Duration::from_millis(300));
    sim.deliver_all();
    must_be_settled(&sim);
}

/// Nothing that the responder says arrives, or the initiator is stopped meanwhile: the responder is told that nothing came of it.
#[test]
fn who_gives_an_initiation_up_says_so() {
    for stopped in [false, true] {
        let mut sim = Simulator::new(1, 2, Proof::Psk);
        sim.by_hand = true;
        sim.command(0, Command::Initiate(HOST[1]));
        for _ in 0..6 {
            sim.deliver(0);
        }
        assert_eq!(sim.hosts[1].endpoint.ike_sas(HOST[0]).len(), 1);
        if stopped {
            sim.waiting.clear();
            sim.command(0, Command::Close(HOST[1]));
        } else {
            sim.run_for(Duration::from_millis(29_900));
            sim.waiting.clear();
            sim.run_for(Duration::from_millis(200));
        }
        let failed = |event: &Event| matches!(event, Event::InitiateFailed { .. });
        assert_eq!(count(&sim, 0, 0, failed), 1);
        let address = sim.hosts[0].address;
        sim.waiting.retain(|datagram| datagram.path.local.ip() == address);
        assert_eq!(sim.waiting.len(), 1, "a Delete");
        sim.deliver(0);
        assert!(sim.hosts[1].endpoint.ike_sas(HOST[0]).is_empty());
        assert!(sim.hosts[0].plane.reserved.is_empty());
    }
}

/// The same where the responder gave the IKE SA up by itself, and the initiator slept meanwhile.
#[test]
fn what_its_responder_has_lost_patience_with_does_not_come_up() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    for _ in 0..5 {
        sim.deliver(0);
    }
    let request = sim.waiting[0].clone();
    sim.deliver(0);
    let answer = sim.waiting.pop().expect("an answer to IKE_AUTH");
    sim.deliver_again(&request);
    assert_eq!(sim.waiting.pop().expect("the answer again").path, answer.path);
    sim.command(1, Command::Probe(HOST[0]));
    for _ in 0..60 {
        sim.run_for(Duration::from_secs(1));
        sim.waiting.clear();
        let gone = sim.hosts[1].endpoint.ike_sas(HOST[0]).is_empty();
        sim.deliver_again(&request);
        let answered = sim.waiting.iter().any(|datagram| datagram.path.local.ip() == sim.hosts[1].address);
        if gone {
            assert!(!answered, "the answer is not repeated any more");
            return;
        }
    }
    panic!("the responder waits for ever");
}

#[test]
fn initial_contact_without_proof_changes_nothing() {
    let mut sim = alone(Proof::Psk);
    Hand::establish(&mut sim, 5);
    sim.run_for(Duration::from_secs(5));
    let child = sender(&sim, 0);
    let mut second = Hand::greet(&mut sim, 50);
    let mut config = own_config(Proof::Psk);
    config.local_auth = crate::ike::LocalAuth::Psk(crate::model::Secret::new(vec![1; 40]));
    let mut payloads = second.auth_payloads(&config);
    payloads.push(Payload::Notify(Notify::new(NotifyType::InitialContact, bytes::Bytes::new())));
    second.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
    assert_eq!((ups(&sim), sender(&sim, 0)), (1, child));
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 1);
}

#[test]
fn initial_contact_spares_the_ike_sas_of_others() {
    let mut sim = Simulator::new(4, 3, Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.command(2, Command::Initiate(HOST[0]));
    sim.run_for(Duration::from_secs(2));
    sim.settled(0, 2).unwrap_or_else(|why| panic!("{why}"));
    sim.restart(1, Proof::Psk);
    sim.command(1, Command::Initiate(HOST[0]));
    sim.run_for(Duration::from_secs(2));
    must_be_settled(&sim);
    sim.settled(0, 2).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn initial_contact_is_said_only_by_who_holds_nothing() {
    let mut sim = pair(5);
    sim.run_for(Duration::from_secs(5));
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_millis(500));
    assert_eq!(sim.hosts[1].endpoint.ike_sas(HOST[0]).len(), 2, "the older one was not removed at once");
}

#[test]
fn eight_hosts_that_start_at_once_end_with_one_ike_sa_each() {
    let mut sim = Simulator::new(6, 8, Proof::Psk);
    sim.faults = Faults { loss: 0.05, ..Faults::default() };
    for host in 0..8 {
        for peer in (0..8).filter(|&peer| peer != host) {
            sim.command(host, Command::Initiate(crate::model::PeerIndex(peer as u32)));
        }
    }
    sim.reconcile();
    sim.run_for(Duration::from_secs(60));
    sim.faults = Faults::default();
    sim.run_for(Duration::from_secs(60));
    for a in 0..8 {
        for b in 0..a {
            sim.settled(a, b).unwrap_or_else(|why| panic!("{a} and {b}: {why}"));
        }
    }
    assert!(sim.most_ike_sas <= 2);
}
