//! IKE SAs without CHILD_SA (RFC 6023), and the first CHILD_SA on one.

use std::time::Duration;

use super::{A, ANY, B, HOST, Scene, everywhere, must_be_settled};
use crate::ike::Command;
use crate::ike::simulator::{Proof, Simulator, peer_config};
use crate::ike::tests::hand::{Hand, alone, errors, own_config};
use crate::wire::ike::ExchangeType;

/// The CHILD_SA is lost at both ends without a word, each in its own way.
fn without_child(initiator: usize, nonces: [u8; 4]) -> Scene {
    let mut scene = Scene::classical(initiator, nonces);
    scene.forget_children();
    scene
}

/// The peer asks for none in IKE_AUTH and gets none; soon we ask for one.
#[test]
fn regular() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let payloads = hand.proof_payloads(&own_config(Proof::Psk));
    let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
    assert!(answer.auth.is_some() && answer.proposals.is_none() && answer.ts_i.is_none() && errors(&answer).is_empty());
    assert_eq!((sim.hosts[A].endpoint.ike_sas(HOST[B]).len(), sim.hosts[A].plane.installs), (1, 0));
    sim.run_for(Duration::from_secs(20));
    let (header, request) = hand.read(&mut sim).pop().expect("host 0 wants a CHILD_SA");
    assert_eq!(header.exchange, ExchangeType::CreateChildSa);
    assert!(request.proposals.is_some() && request.ts_i.is_some());
}

/// The peer wants one and we cannot agree: the IKE SA is up without it.
#[test]
fn the_child_fails_and_the_ike_sa_does_not() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    let mut config = peer_config(B, A, Proof::Psk);
    config.remote_selectors = vec![crate::model::TrafficSelector::from_prefix("10.99.0.0/24".parse().expect("a prefix"))];
    sim.hosts[B].endpoint.upsert_peer(config);
    sim.command(A, Command::Initiate(HOST[B]));
    sim.run_for(Duration::from_secs(1));
    for host in [A, B] {
        assert_eq!(sim.hosts[host].endpoint.ike_sas(HOST[1 - host]).len(), 1);
        assert!(sim.hosts[host].plane.installed.is_empty());
    }
    // Its configuration is mended, and it is called again.
    sim.hosts[B].endpoint.upsert_peer(peer_config(B, A, Proof::Psk));
    sim.command(A, Command::Close(HOST[B]));
    sim.run_for(Duration::from_secs(1));
    sim.command(A, Command::Initiate(HOST[B]));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
}

/// Both ask for the first one: of the two the one with the lowest nonce goes.
#[test]
fn both_make_the_first_one() {
    for (initiator, nonces) in everywhere() {
        for first in [A, B] {
            let mut scene = without_child(initiator, nonces);
            scene.ask(A, Command::CreateChild(HOST[B]));
            scene.ask(B, Command::CreateChild(HOST[A]));
            scene.requests(first);
            scene.ends_with_child_of(scene.winner());
        }
    }
}

#[test]
fn the_first_one_with_multi_ke() {
    for asks in [A, B] {
        let mut scene = Scene::hybrid(ANY);
        scene.forget_children();
        scene.ask(asks, Command::CreateChild(HOST[1 - asks]));
        scene.exchange(asks);
        assert!(scene.sim.hosts.iter().all(|host| host.plane.installed.is_empty()), "not before the second exchange");
        scene.ends_with_child_of(asks);
    }
}

/// One asks for the first one while the other rekeys the IKE SA: both wait, and both are done in the end.
#[test]
fn the_first_one_meets_an_ike_rekey() {
    for (initiator, nonces) in everywhere() {
        for first in [A, B] {
            let mut scene = without_child(initiator, nonces);
            let old = scene.ike(A);
            scene.ask(A, Command::CreateChild(HOST[B]));
            scene.rekey_ike(B);
            scene.requests(first);
            scene.both_must_have_refused();
            scene.ends();
            assert_ne!(scene.ike(A), old);
        }
    }
}
