//! Messages in fragments (RFC 7383): who sends which, who answers what, and the bad ones.

use std::time::Duration;

use bytes::Bytes;

use super::HOST;
use super::hand::{Greeting, Hand, Snapshot, alone, counted, must_only_count, own_config, sent};
use crate::ike::Command;
use crate::ike::exchange::negotiate::FRAGMENTATION_SUPPORTED;
use crate::ike::limits::{MAX_COLLECTED_LEN, MAX_FRAGMENTS, MAX_MESSAGE_LEN};
use crate::ike::simulator::{Faults, Proof, Simulator};
use crate::model::DropReason;
use crate::wire::ike::{Delete, ExchangeType, Fragment, MAX_PAYLOADS, Message, Notify, NotifyType, Payload, emit_chain};

fn established() -> (Simulator, Hand) {
    let mut sim = alone(Proof::Psk);
    let hand = Hand::greet_with_fragments(&mut sim, 5).prove(&mut sim);
    (sim, hand)
}

/// A request to end the IKE SA that needs so many octets: whoever takes it loses the IKE SA.
fn long_goodbye(octets: usize) -> Vec<Payload> {
    vec![Payload::VendorId(vec![7; octets].into()), Payload::Delete(Delete::Ike)]
}

/// The next request in fragments, so that none is longer than `most`.
fn next_in_pieces(hand: &mut Hand, exchange: ExchangeType, payloads: &[Payload], most: usize) -> Vec<Bytes> {
    let header = hand.header(exchange, hand.next_id, false);
    hand.next_id += 1;
    let mut chain = Vec::new();
    let first = emit_chain(payloads, &mut chain);
    hand.seal_fragments(&header, first, &chain, most)
}

fn up(sim: &Simulator) -> bool {
    !sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty()
}

#[test]
fn a_request_in_fragments_in_any_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let (mut sim, mut hand) = established();
        let pieces = next_in_pieces(&mut hand, ExchangeType::Informational, &long_goodbye(1000), 450);
        assert_eq!(pieces.len(), 3);
        for (index, &number) in order.iter().enumerate() {
            assert!(up(&sim), "{order:?}: only the last one makes the message whole");
            assert!(sent(&mut sim).is_empty());
            hand.inject(&mut sim, &pieces[number]);
            assert_eq!(up(&sim), index < 2, "{order:?}");
        }
        assert_eq!(hand.read(&mut sim).len(), 1, "one answer");
        assert_eq!(counted(&sim), 0);
    }
}

#[test]
fn only_the_first_fragment_of_an_answered_request_gets_the_answer_again() {
    let (mut sim, mut hand) = established();
    let pieces = next_in_pieces(&mut hand, ExchangeType::Informational, &[Payload::VendorId(vec![7; 1000].into())], 450);
    pieces.iter().for_each(|piece| hand.inject(&mut sim, piece));
    let answer = sent(&mut sim);
    assert_eq!(answer.len(), 1);
    hand.inject(&mut sim, &pieces[0]);
    assert_eq!(sent(&mut sim), answer);
    for piece in &pieces[1..] {
        must_only_count(&mut sim, DropReason::IkeMessageId, "another fragment", |sim| hand.inject(sim, piece));
        assert!(sent(&mut sim).is_empty());
    }
}

#[test]
fn a_long_request_of_ours_is_cut_and_repeated_whole() {
    let mut sim = Simulator::new(1, 2, Proof::HostKeys);
    sim.by_hand = true;
    // Long enough names make a long IKE_AUTH.
    let mut config = sim.hosts[0].endpoint.shared.peers[&HOST[1]].as_ref().clone();
    config.local_selectors = (0..=99).map(|_| config.local_selectors[0]).collect();
    sim.hosts[0].endpoint.upsert_peer(config);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.deliver(0);
    sim.deliver(0);
    let first = sent(&mut sim);
    assert_eq!(first.len(), 2, "IKE_AUTH in two fragments");
    for datagram in &first {
        assert!(datagram.len() <= MAX_MESSAGE_LEN);
        assert!(Message::parse(datagram).expect("valid").protected.expect("SKF").fragment.is_some());
    }
    sim.run_for(Duration::from_millis(600));
    assert_eq!(sent(&mut sim), first, "a retransmission is all of them, octet for octet");
}

#[test]
fn nothing_is_cut_for_a_peer_that_does_not_reassemble() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::establish(&mut sim, 5);
    let pieces = next_in_pieces(&mut hand, ExchangeType::Informational, &long_goodbye(1000), 450);
    for piece in &pieces {
        must_only_count(&mut sim, DropReason::IkeFragment, "not negotiated", |sim| hand.inject(sim, piece));
    }
    assert!(up(&sim));
    let answer = Message::parse(&Greeting::new(1).message()).expect("valid");
    assert!(!answer.payloads.contains(&FRAGMENTATION_SUPPORTED));
}

#[test]
fn it_is_said_only_to_who_said_it() {
    for said in [false, true] {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(1);
        if said {
            greeting.payloads.push(FRAGMENTATION_SUPPORTED);
        }
        sim.inject(0, super::hand::source(), crate::model::Transport::Natt, &greeting.message());
        let answer = Message::parse(&sent(&mut sim)[0]).expect("valid");
        assert_eq!(answer.payloads.contains(&FRAGMENTATION_SUPPORTED), said);
    }
}

#[test]
fn fragments_under_loss_and_disorder() {
    for seed in 0..20 {
        let mut sim = Simulator::new(seed, 2, Proof::HostKeys);
        for (host, peer) in [(0, 1), (1, 0)] {
            let mut config = sim.hosts[host].endpoint.shared.peers[&HOST[peer]].as_ref().clone();
            let selectors = if host == 0 { &mut config.local_selectors } else { &mut config.remote_selectors };
            *selectors = (0..=99).map(|_| selectors[0]).collect();
            sim.hosts[host].endpoint.upsert_peer(config);
        }
        sim.faults = Faults { loss: 0.2, duplication: 0.2, reordering: 0.2 };
        sim.reconcile();
        sim.run_for(Duration::from_secs(60));
        sim.faults = Faults::default();
        sim.run_for(Duration::from_secs(60));
        super::must_be_settled(&sim);
    }
}

#[test]
fn case_96_numbers_and_totals() {
    let (mut sim, mut hand) = established();
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    for (number, total) in [(0, 0), (0, 1), (2, 1), (65535, 1)] {
        let message = hand.seal_fragment(&header, number, total, 0, b"");
        must_only_count(&mut sim, DropReason::IkeMalformed, "numbers", |sim| hand.inject(sim, &message));
    }
    for (number, total) in [(1, MAX_FRAGMENTS + 1), (65535, 65535), (1, 65535)] {
        let message = hand.seal_fragment(&header, number, total, 0, b"");
        must_only_count(&mut sim, DropReason::IkeFragment, "too many", |sim| hand.inject(sim, &message));
    }
    // One of one is a message.
    let mut chain = Vec::new();
    let first = emit_chain(&[Payload::Delete(Delete::Ike)], &mut chain);
    let message = hand.seal_fragment(&header, 1, 1, first, &chain);
    hand.inject(&mut sim, &message);
    assert!(!up(&sim));
}

#[test]
fn case_97_totals_shrink_and_grow() {
    let (mut sim, mut hand) = established();
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    let payloads = long_goodbye(1000);
    let three = next_in_pieces(&mut hand, ExchangeType::Informational, &payloads, 450);
    hand.next_id -= 1;
    let five = next_in_pieces(&mut hand, ExchangeType::Informational, &payloads, 280);
    assert_eq!((three.len(), five.len()), (3, 5));
    hand.inject(&mut sim, &three[0]);
    hand.inject(&mut sim, &three[1]);
    // Cut smaller: the old set is forgotten.
    hand.inject(&mut sim, &five[0]);
    must_only_count(&mut sim, DropReason::IkeFragment, "shrinks", |sim| hand.inject(sim, &three[2]));
    five[1..4].iter().for_each(|piece| hand.inject(&mut sim, piece));
    assert!(up(&sim));
    // A forged larger total changes nothing.
    let mut forged = hand.seal_fragment(&header, 1, 9, 0, b"x").to_vec();
    *forged.last_mut().expect("an ICV") ^= 1;
    must_only_count(&mut sim, DropReason::IkeBadIcv, "forged", |sim| hand.inject(sim, &forged));
    hand.inject(&mut sim, &five[4]);
    assert!(!up(&sim));
}

#[test]
fn case_98_the_same_number_with_other_content() {
    let (mut sim, mut hand) = established();
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    let pieces = next_in_pieces(&mut hand, ExchangeType::Informational, &long_goodbye(1000), 450);
    hand.inject(&mut sim, &pieces[1]);
    let other = hand.seal_fragment(&header, 2, 3, 0, &[0xff; 400]);
    must_only_count(&mut sim, DropReason::IkeFragment, "other content", |sim| hand.inject(sim, &other));
    must_only_count(&mut sim, DropReason::IkeFragment, "again", |sim| hand.inject(sim, &pieces[1]));
    hand.inject(&mut sim, &pieces[0]);
    hand.inject(&mut sim, &pieces[2]);
    assert!(!up(&sim), "the first one was kept");
}

#[test]
fn case_99_halves_of_a_thousand_messages() {
    let (mut sim, mut hand) = established();
    let next = hand.next_id;
    for message_id in next..next + 1000 {
        let header = hand.header(ExchangeType::Informational, message_id, false);
        for number in [1, 3, 5] {
            let message = hand.seal_fragment(&header, number, 6, 0, &[0; 1000]);
            hand.inject(&mut sim, &message);
        }
    }
    // Only those of the expected message were opened, and one message is kept.
    assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeMessageId), 999 * 3);
    assert_eq!(counted(&sim), 999 * 3);
    // A whole message under that ID is taken all the same.
    hand.next_id = next;
    assert!(hand.ask(&mut sim, ExchangeType::Informational, &[]).notifies.is_empty());
    assert!(hand.ask(&mut sim, ExchangeType::Informational, &[]).notifies.is_empty());
}

#[test]
fn case_100_fragments_in_ike_sa_init() {
    let (mut sim, mut hand) = established();
    let mut header = hand.header(ExchangeType::IkeSaInit, 0, false);
    header.responder_spi = 0;
    header.initiator_spi ^= 1;
    let message = hand.seal_fragment(&header, 1, 2, 33, &[0; 100]);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "a request", |sim| hand.inject(sim, &message));
    // And as the answer to ours.
    let mut sim = alone(Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    let request = Message::parse(&sent(&mut sim)[0]).expect("valid").header;
    let flags = crate::wire::ike::Flags { initiator: false, version: false, response: true };
    let header = crate::wire::ike::Header { responder_spi: 7, flags, ..request };
    let message = hand.seal_fragment(&header, 1, 1, 33, &[0; 100]);
    let remote = std::net::SocketAddr::new(crate::ike::simulator::address(1), 500);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "an answer", |sim| {
        sim.inject(0, remote, crate::model::Transport::Plain, &message);
    });
}

#[test]
fn case_101_unknown_payloads_beside_skf() {
    for count in 29..=31u8 {
        let (mut sim, mut hand) = established();
        let header = hand.header(ExchangeType::Informational, hand.next_id, false);
        let sealed = hand.seal_fragment(&header, 1, 2, 33, &[0; 50]);
        let mut message = sealed[..28].to_vec();
        message[16] = 200;
        for left in (0..count).rev() {
            message.extend_from_slice(&[if left == 0 { 53 } else { 200 }, 0, 0, 5, left]);
        }
        message.extend_from_slice(&sealed[28..]);
        let length = message.len() as u32;
        message[24..28].copy_from_slice(&length.to_be_bytes());
        must_only_count(&mut sim, DropReason::IkeBadIcv, "not what was sealed", |sim| hand.inject(sim, &message));
    }
}

/// The same with an ICV that covers them: they are skipped, up to the number of payloads that any message may have.
#[test]
fn case_101_unknown_payloads_under_the_icv() {
    for fragment in [None, Some(Fragment { number: 1, total: 1 })] {
        for count in (0..MAX_PAYLOADS + 2).chain([299, 300]) {
            let (mut sim, mut hand) = established();
            let header = hand.header(ExchangeType::Informational, hand.next_id, false);
            let message = hand.seal_behind(&header, &vec![200; count], fragment, 0, &[0]);
            if count < MAX_PAYLOADS {
                hand.inject(&mut sim, &message);
                assert_eq!((hand.read(&mut sim).len(), counted(&sim)), (1, 0), "{count} of them");
            } else {
                must_only_count(&mut sim, DropReason::IkeMalformed, "too many", |sim| hand.inject(sim, &message));
            }
            assert!(up(&sim));
        }
    }
}

#[test]
fn case_102_fragments_of_one_octet() {
    let (mut sim, mut hand) = established();
    let mut chain = Vec::new();
    let payload = Payload::Notify(Notify::new(NotifyType::InitialContact, vec![7; 44]));
    let first = emit_chain(&[payload, Payload::Delete(Delete::Ike)], &mut chain);
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    let total = u16::try_from(chain.len()).expect("short");
    assert!((60..=MAX_FRAGMENTS).contains(&total));
    for (number, octet) in (1..).zip(&chain) {
        assert!(up(&sim));
        let message = hand.seal_fragment(&header, number, total, first, &[*octet]);
        hand.inject(&mut sim, &message);
    }
    assert!(!up(&sim));
    let (mut sim, mut hand) = established();
    for number in 1..=255 {
        let message = hand.seal_fragment(&header, number, 255, 0, &[0]);
        must_only_count(&mut sim, DropReason::IkeFragment, "255 of them", |sim| hand.inject(sim, &message));
    }
}

#[test]
fn a_message_beyond_the_limit_is_never_kept() {
    let (mut sim, mut hand) = established();
    let before = Snapshot::of(&sim);
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    for number in 1..=64 {
        let message = hand.seal_fragment(&header, number, 64, 0, &[0; MAX_COLLECTED_LEN / 8]);
        hand.inject(&mut sim, &message);
    }
    assert_eq!(Snapshot::of(&sim), before);
    assert!(sent(&mut sim).is_empty());
    assert!(hand.ask(&mut sim, ExchangeType::Informational, &[]).notifies.is_empty());
}

#[test]
fn fragments_and_the_whole_mixed() {
    let (mut sim, mut hand) = established();
    let pieces = next_in_pieces(&mut hand, ExchangeType::Informational, &[Payload::VendorId(vec![7; 1000].into())], 450);
    hand.next_id -= 1;
    let whole = hand.next(ExchangeType::Informational, &[Payload::VendorId(vec![7; 1000].into())]);
    hand.inject(&mut sim, &pieces[0]);
    hand.inject(&mut sim, &pieces[2]);
    hand.inject(&mut sim, &whole);
    assert_eq!(hand.read(&mut sim).len(), 1, "the whole message is answered");
    must_only_count(&mut sim, DropReason::IkeMessageId, "too late", |sim| hand.inject(sim, &pieces[1]));
}

#[test]
fn an_answer_in_fragments() {
    let (mut sim, mut hand) = established();
    sim.command(0, Command::Probe(HOST[1]));
    let (request, _) = hand.read(&mut sim).pop().expect("a probe");
    let proofs = |sim: &Simulator| super::count(sim, 0, 0, |event| matches!(event, crate::ike::Event::Proof { .. }));
    let before = proofs(&sim);
    let header = hand.header(request.exchange, request.message_id, true);
    for (number, piece) in [(2, &b"\0\0\0\x06ab"[2..]), (1, &b"\0\0\0\x06ab"[..2])] {
        assert_eq!(proofs(&sim), before);
        let message: Bytes = hand.seal_fragment(&header, number, 2, 43, piece);
        hand.inject(&mut sim, &message);
    }
    assert_eq!((proofs(&sim), counted(&sim)), (before + 1, 0));
}

#[test]
fn ike_auth_in_fragments() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet_with_fragments(&mut sim, 5);
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    let pieces = next_in_pieces(&mut hand, ExchangeType::IkeAuth, &payloads, 120);
    assert!(pieces.len() > 2);
    for piece in pieces.iter().rev() {
        assert!(!up(&sim));
        hand.inject(&mut sim, piece);
    }
    assert!(up(&sim));
}
