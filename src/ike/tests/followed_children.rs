//! Additional key exchanges of CHILD_SAs (RFC 9370 §2.2.4): CREATE_CHILD_SA, then IKE_FOLLOWUP_KE.

use std::time::Duration;

use bytes::Bytes;

use super::hand::{Greeting, Hand, alone, counted, errors, sent};
use super::{HOST, must_be_settled, pair, pair_by_hand, sender};
use crate::crypto;
use crate::ike::contents::Contents;
use crate::ike::exchange::negotiate::key_exchange_payload;
use crate::ike::proposals::{choose_esp, offer_child};
use crate::ike::simulator::{Content, Faults, Proof, Simulator};
use crate::ike::{Command, Event};
use crate::model::{AeadAlgorithm, KeGroup, Spi, WorkerIndex};
use crate::wire::ike::{ExchangeType, Header, KeyExchangePayload, Message, Notify, NotifyType, Payload, Protocol};

/// The SPI of the hand-written peer's first CHILD_SA.
const FIRST: u32 = 0x1234_5600;

fn suites(sim: &Simulator, host: usize) -> Vec<String> {
    sim.hosts[host].endpoint.children(HOST[1 - host]).iter().map(|child| child.suite.to_string()).collect()
}

fn notify(kind: NotifyType, data: impl Into<Bytes>) -> Payload {
    Payload::Notify(Notify::new(kind, data))
}

#[test]
fn a_child_sa_has_ml_kem_from_its_first_rekey_on() {
    let mut sim = pair(1);
    for host in [0, 1, 0] {
        let old = sender(&sim, host);
        sim.command(host, Command::RekeyChild(old));
        sim.run_for(Duration::from_secs(1));
        must_be_settled(&sim);
        assert_ne!(sender(&sim, host), old);
        for host in 0..2 {
            assert_eq!(suites(&sim, host), ["aes256gcm16-x25519-ke1_mlkem768-esn"]);
        }
    }
    // So have those of single workers.
    sim.command(0, Command::CreateWorkerChild(HOST[1], WorkerIndex(1)));
    sim.run_for(Duration::from_secs(1));
    assert_eq!(suites(&sim, 1).len(), 2);
    assert!(suites(&sim, 1).iter().all(|suite| suite.contains("ke1_mlkem768")));
}

#[test]
fn what_travels_in_a_rekey_of_a_child_sa() {
    let mut sim = pair_by_hand(1);
    let old = sender(&sim, 0);
    sim.command(0, Command::RekeyChild(old));
    let mut exchanges = Vec::new();
    while !sim.waiting.is_empty() {
        let Content::Ike(octets) = &sim.waiting[0].content else { panic!("an IKE message") };
        let message = Message::parse(octets).expect("valid");
        let fragment = message.protected.and_then(|view| view.fragment).map_or(0, |fragment| fragment.number);
        exchanges.push((message.header.exchange.value(), message.header.message_id, fragment));
        if exchanges.len() < 5 {
            assert_eq!(sender(&sim, 0), old, "nothing is made before the second exchange is done");
        }
        sim.deliver(0);
    }
    assert_eq!(exchanges, [(36, 3, 0), (36, 3, 0), (44, 4, 1), (44, 4, 2), (44, 4, 0), (37, 5, 0), (37, 5, 0)]);
    must_be_settled(&sim);
}

#[test]
fn rekeys_that_meet_are_tried_again() {
    for seed in 0..10 {
        let mut sim = pair(seed);
        let old = [sender(&sim, 0), sender(&sim, 1)];
        sim.command(0, Command::RekeyChild(old[0]));
        sim.command(1, Command::RekeyChild(old[1]));
        sim.run_for(Duration::from_secs(20));
        must_be_settled(&sim);
        assert!(sender(&sim, 0) != old[0] && sender(&sim, 1) != old[1]);
        assert_eq!(sim.most_ike_sas, 1);
        let met = sim.hosts.iter().any(|host| host.complaints().iter().any(|line| line.contains("both ends rekey")));
        assert!(met, "{:?}", sim.hosts[0].complaints());
    }
}

#[test]
fn rekeys_of_a_child_sa_and_of_its_ike_sa_that_meet() {
    for seed in 0..10 {
        let mut sim = pair(seed);
        let (old, ike) = (sender(&sim, 0), sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi);
        let (first, second) = if seed % 2 == 0 { (0, 1) } else { (1, 0) };
        let child = sender(&sim, first);
        sim.command(first, Command::RekeyChild(child));
        sim.command(second, Command::RekeyIke(HOST[1 - second]));
        sim.run_for(Duration::from_secs(20));
        must_be_settled(&sim);
        assert_ne!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi, ike);
        assert_ne!(sender(&sim, 0), old);
    }
}

#[test]
fn rekeys_under_loss_and_disorder() {
    for seed in 0..10 {
        let mut sim = pair(seed);
        sim.reconcile();
        sim.faults = Faults { loss: 0.3, duplication: 0.3, reordering: 0.3 };
        for round in 0..6 {
            let host = round % 2;
            if let Some(&spi) = sim.hosts[host].plane.active.values().next() {
                sim.command(host, Command::RekeyChild(spi));
            }
            sim.run_for(Duration::from_secs(5));
        }
        sim.faults = Faults::default();
        sim.run_for(Duration::from_secs(90));
        must_be_settled(&sim);
    }
}

/// A hand-written peer with a tunnel, which asks for a CHILD_SA in place of its first (or one more); the link that it gets.
fn half_made(rekey: bool) -> (Simulator, Hand, Bytes) {
    let mut sim = alone(Proof::Psk);
    let hand = Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim);
    let mut hand = hand.prove(&mut sim);
    let link = ask_for_child(&mut sim, &mut hand, rekey, 0x5555_5500);
    (sim, hand, link)
}

fn ask_for_child(sim: &mut Simulator, hand: &mut Hand, rekey: bool, spi: u32) -> Bytes {
    let mut payloads = hand.create_child(spi);
    let spi = Spi::new(spi).expect("a legal SPI");
    payloads[0] = Payload::SecurityAssociation(offer_child(&AeadAlgorithm::ALL, KeGroup::X25519, true, spi));
    payloads.push(key_exchange_payload(crypto::key_exchange(KeGroup::X25519, &mut hand.rng).as_ref()));
    if rekey {
        let spi = Bytes::copy_from_slice(&FIRST.to_be_bytes());
        let old = Notify { protocol: Protocol::Esp, spi, kind: NotifyType::RekeySa, data: Bytes::new() };
        payloads.insert(0, Payload::Notify(old));
    }
    let installs = sim.hosts[0].plane.installs;
    let answer = hand.ask(sim, ExchangeType::CreateChildSa, &payloads);
    assert_eq!(errors(&answer), []);
    assert_eq!(sim.hosts[0].plane.installs, installs, "nothing is made before the second exchange");
    answer.notify(NotifyType::AdditionalKeyExchange).expect("a link").data.clone()
}

fn follow_up(hand: &mut Hand, link: Option<Bytes>) -> Vec<Payload> {
    let half = crypto::key_exchange(KeGroup::ADDITIONAL, &mut hand.rng);
    let link = link.map(|link| notify(NotifyType::AdditionalKeyExchange, link));
    std::iter::once(key_exchange_payload(half.as_ref())).chain(link).collect()
}

#[test]
fn case_94_links_of_child_sas() {
    for rekey in [false, true] {
        let (mut sim, mut hand, link) = half_made(rekey);
        let mut wrong = link.to_vec();
        wrong[15] ^= 1;
        for bad in [Some(Bytes::from(wrong)), Some(link.slice(..15)), Some(Bytes::new()), None] {
            let payloads = follow_up(&mut hand, bad);
            let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
            assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
        }
        assert_eq!((counted(&sim), sim.hosts[0].plane.installs), (4, 1));
        // The right one counts, once.
        let payloads = follow_up(&mut hand, Some(link.clone()));
        let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
        assert_eq!(answer.key_exchange.expect("a ciphertext").value.len(), 1088);
        assert_eq!(sim.hosts[0].plane.installs, 2);
        let payloads = follow_up(&mut hand, Some(link));
        let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
        assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
        assert_eq!((counted(&sim), sim.hosts[0].plane.installs), (5, 2));
    }
}

#[test]
fn case_94_values_for_child_sas() {
    for value in [vec![0xff; 1184], vec![0; 1183], vec![]] {
        let (mut sim, mut hand, link) = half_made(true);
        let ke = Payload::KeyExchange(KeyExchangePayload { group: 36, value: value.into() });
        let link = notify(NotifyType::AdditionalKeyExchange, link);
        let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &[ke, link.clone()]);
        assert_eq!((errors(&answer), counted(&sim)), (vec![NotifyType::InvalidSyntax], 1));
        let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &[link]);
        assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
        // The CHILD_SA stays as it is, and nothing else is held.
        assert_eq!(sim.hosts[0].plane.installs, 1);
        assert_eq!(sim.hosts[0].endpoint.shared.spi_owners.len(), 1);
        assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 1);
    }
}

#[test]
fn case_94_a_follow_up_that_never_comes() {
    let (mut sim, mut hand, link) = half_made(true);
    assert_eq!(sim.hosts[0].endpoint.shared.spi_owners.len(), 2);
    // A further request takes its place.
    let other = ask_for_child(&mut sim, &mut hand, true, 0x6666_6600);
    assert_eq!(sim.hosts[0].endpoint.shared.spi_owners.len(), 2);
    let payloads = follow_up(&mut hand, Some(link));
    let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
    assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
    // And time takes that.
    sim.run_for(Duration::from_secs(46));
    assert_eq!(sim.hosts[0].endpoint.shared.spi_owners.len(), 1);
    let payloads = follow_up(&mut hand, Some(other));
    let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
    assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
    assert_eq!(sim.hosts[0].plane.installs, 1);
}

/// Host 0 rekeys its CHILD_SA with the hand-written peer, which answers as an honest one that takes the first proposal; with or
/// without a link.
fn asked_by_host_0(link: bool) -> (Simulator, Hand, Spi) {
    let mut sim = alone(Proof::Psk);
    let hand = Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim);
    let mut hand = hand.prove(&mut sim);
    sent(&mut sim);
    let old = sim.hosts[0].plane.installed[0].inbound_spi;
    sim.command(0, Command::RekeyChild(old));
    let (header, request) = hand.read(&mut sim).pop().expect("a request");
    let payloads = honest_answer(&mut hand, request, link);
    hand.respond(&mut sim, header, &payloads);
    (sim, hand, old)
}

fn honest_answer(hand: &mut Hand, request: Contents, link: bool) -> Vec<Payload> {
    let chosen = choose_esp(&AeadAlgorithm::ALL, &request.proposals.expect("SA"), Some(31), false, true).expect("a choice");
    assert_eq!(chosen.suite.additional, Some(KeGroup::MlKem768), "it comes first");
    let mut answer = chosen.answer;
    answer.spi = Bytes::copy_from_slice(&0x7777_7700u32.to_be_bytes());
    let half = crypto::key_exchange(KeGroup::X25519, &mut hand.rng);
    let mut payloads = vec![
        Payload::SecurityAssociation(vec![answer]),
        hand.nonce(),
        key_exchange_payload(half.as_ref()),
        Payload::TsInitiator(request.ts_i.expect("TSi")),
        Payload::TsResponder(request.ts_r.expect("TSr")),
    ];
    payloads.extend(link.then(|| notify(NotifyType::AdditionalKeyExchange, vec![9; 3])));
    payloads
}

/// The CHILD_SA is as it was, the SPI is given back, the failure was said and counted, and the rekey is tried again.
fn must_try_again(mut sim: Simulator, mut hand: Hand, old: Spi) {
    assert_eq!(sim.hosts[0].plane.installs, 1);
    assert_eq!(sim.hosts[0].endpoint.shared.spi_owners.keys().collect::<Vec<_>>(), [&old]);
    let failed = |event: &Event| matches!(event, Event::ChildFailed { .. });
    assert!(sim.hosts[0].events.iter().any(failed), "{:?}", sim.hosts[0].complaints());
    assert_eq!(counted(&sim), 1);
    sim.run_for(Duration::from_secs(5));
    let (header, _) = hand.read(&mut sim).pop().expect("the rekey is tried again");
    assert_eq!(header.exchange, ExchangeType::CreateChildSa);
}

#[test]
fn case_94_an_answer_without_a_link() {
    let (mut sim, hand, old) = asked_by_host_0(false);
    assert!(sent(&mut sim).is_empty());
    must_try_again(sim, hand, old);
}

#[test]
fn case_94_answers_to_our_follow_up() {
    let ke = |group, length| Payload::KeyExchange(KeyExchangePayload { group, value: vec![7; length].into() });
    let refused = notify(NotifyType::StateNotFound, vec![]);
    for payloads in [vec![ke(36, 1087)], vec![ke(36, 0)], vec![ke(31, 32)], vec![], vec![refused]] {
        let (mut sim, mut hand, old) = asked_by_host_0(true);
        let (header, request) = hand.read(&mut sim).pop().expect("the second request");
        assert_eq!(header.exchange, ExchangeType::IkeFollowupKe);
        assert_eq!(request.notify(NotifyType::AdditionalKeyExchange).expect("the link").data[..], [9; 3]);
        assert_eq!(request.key_exchange.expect("KE").value.len(), 1184);
        hand.respond(&mut sim, header, &payloads);
        must_try_again(sim, hand, old);
    }
}

#[test]
fn case_94_a_follow_up_that_nobody_answers() {
    let (mut sim, _, _) = asked_by_host_0(true);
    sim.run_for(Duration::from_secs(46));
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty(), "the peer is gone");
    assert!(sim.hosts[0].endpoint.shared.spi_owners.is_empty());
    assert!(sim.hosts[0].plane.installed.is_empty());
}

#[test]
fn while_we_wait_for_the_second_answer_the_peers_rekey_has_to_wait() {
    let (mut sim, mut hand, _) = asked_by_host_0(true);
    let (header, _): (Header, Contents) = hand.read(&mut sim).pop().expect("the second request");
    let mut payloads = hand.create_child(0x6666_6600);
    let spi = Bytes::copy_from_slice(&FIRST.to_be_bytes());
    payloads
        .insert(0, Payload::Notify(Notify { protocol: Protocol::Esp, spi, kind: NotifyType::RekeySa, data: Bytes::new() }));
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert_eq!(errors(&answer), [NotifyType::TemporaryFailure]);
    assert_eq!(header.exchange, ExchangeType::IkeFollowupKe);
    assert_eq!(sim.hosts[0].endpoint.shared.spi_owners.len(), 2);
}
