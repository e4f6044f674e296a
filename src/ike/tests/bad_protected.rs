//! Bad inputs behind or around the SK payload.

use bytes::Bytes;

use super::HOST;
use super::hand::{Hand, Snapshot, alone, counted, errors, must_only_count, own_config, sent};
use crate::ike::simulator::{Proof, Simulator};
use crate::ike::{CloseReason, Command, Event};
use crate::model::DropReason;
use crate::wire::ike::{ExchangeType, Header, Message, Notify, NotifyType, Payload};

fn established() -> (Simulator, Hand) {
    let mut sim = alone(Proof::Psk);
    let hand = Hand::establish(&mut sim, 5);
    (sim, hand)
}

/// After this host 0 holds nothing.
fn must_be_closed(sim: &Simulator, what: &str) {
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty(), "{what}");
    assert!(sim.hosts[0].plane.installed.is_empty(), "{what}");
    let down = |event: &&Event| matches!(event, Event::IkeDown { reason: CloseReason::WeRefused(_), .. });
    assert_eq!(sim.hosts[0].events.iter().filter(down).count(), 1, "{what}");
}

#[test]
fn case_15_exchange_types_under_the_right_keys() {
    let (mut sim, mut hand) = established();
    use ExchangeType::{CreateChildSa, IkeFollowupKe, IkeSaInit, Informational};
    let known = [CreateChildSa, Informational, IkeFollowupKe, IkeSaInit];
    for exchange in (0..=255).map(ExchangeType::from_value).filter(|exchange| !known.contains(exchange)) {
        let header = hand.header(exchange, hand.next_id, false);
        let message = hand.seal(&header, &[]);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "exchange", |sim| hand.inject(sim, &message));
    }
    let header = hand.header(ExchangeType::IkeSaInit, hand.next_id, false);
    let message = hand.seal(&header, &[]);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "sealed IKE_SA_INIT", |sim| hand.inject(sim, &message));
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_22_unknown_payloads() {
    let (mut sim, mut hand) = established();
    let answer = hand.ask(&mut sim, ExchangeType::Informational, &[Payload::Unknown { kind: 200, critical: false }]);
    assert!(answer.notifies.is_empty());
    let before = Snapshot::of(&sim);
    let answer = hand.ask(&mut sim, ExchangeType::Informational, &[Payload::Unknown { kind: 201, critical: true }]);
    let error = answer.notify(NotifyType::UnsupportedCriticalPayload).expect("error 1");
    assert_eq!(error.data[..], [201]);
    assert_eq!((Snapshot::of(&sim), counted(&sim)), (before, 1));
    // In an answer the flag is ignored.
    sim.command(0, Command::Probe(HOST[1]));
    let (request, _) = hand.read(&mut sim).pop().expect("a probe");
    hand.respond(&mut sim, request, &[Payload::Unknown { kind: 202, critical: true }]);
    assert!(sim.hosts[0].events.iter().any(|event| matches!(event, Event::Proof { .. })));
    assert_eq!(counted(&sim), 1);
}

#[test]
fn case_23_reserved_bits_of_payloads() {
    let (mut sim, mut hand) = established();
    // A Delete of no ESP SA whose flags octet is full of reserved bits.
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    let message = hand.seal_octets(&header, 42, &[0, 0x7f, 0, 8, 3, 4, 0, 0, 0]);
    hand.next_id += 1;
    hand.inject(&mut sim, &message);
    assert_eq!(hand.read(&mut sim).len(), 1);
    assert_eq!(counted(&sim), 0);
}

#[test]
fn case_24_payloads_twice_behind_the_icv() {
    let (mut sim, mut hand) = established();
    let mut payloads = hand.create_child(0x2222_2200);
    let twice = payloads[0].clone();
    payloads.push(twice);
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert_eq!(errors(&answer), [NotifyType::InvalidSyntax]);
    must_be_closed(&sim, "authentic and malformed ends the IKE SA");
    assert_eq!(counted(&sim), 1);
}

#[test]
fn case_25_to_27_places_of_sk() {
    let (mut sim, mut hand) = established();
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    // SK inside SK: authentic, so the IKE SA ends.
    let message = hand.seal_octets(&header, 46, &[0, 0, 0, 4, 0]);
    hand.inject(&mut sim, &message);
    must_be_closed(&sim, "SK inside SK");
    // SKF in place of SK, and SK before another payload: nobody knows who made them.
    let (mut sim, mut hand) = established();
    let mut message = hand.seal_octets(&header, 0, &[0; 8]);
    message[16] = 53;
    must_only_count(&mut sim, DropReason::IkeFragment, "SKF", |sim| hand.inject(sim, &message));
    let mut message = hand.seal_octets(&header, 0, &[0]);
    message.extend_from_slice(&[0, 0, 0, 4]);
    let length = message.len() as u32;
    message[24..28].copy_from_slice(&length.to_be_bytes());
    must_only_count(&mut sim, DropReason::IkeMalformed, "behind SK", |sim| hand.inject(sim, &message));
}

#[test]
fn case_61_every_bit_flipped() {
    let (mut sim, mut hand) = established();
    let message = hand.next(ExchangeType::Informational, &[Payload::Delete(crate::wire::ike::Delete::Ike)]);
    let before = Snapshot::of(&sim);
    for bit in 0..message.len() * 8 {
        let mut damaged = message.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let count = counted(&sim);
        hand.inject(&mut sim, &damaged);
        assert_eq!(Snapshot::of(&sim), before, "bit {bit}");
        assert_eq!(counted(&sim), count + 1, "bit {bit}");
    }
    // The octets themselves are good.
    hand.inject(&mut sim, &message);
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
}

#[test]
fn case_62_and_63_truncated() {
    let (mut sim, mut hand) = established();
    let message = hand.next(ExchangeType::Informational, &[]);
    for cut in 1..message.len() {
        let mut short = message[..message.len() - cut].to_vec();
        if short.len() >= 32 {
            let length = short.len() as u32;
            short[24..28].copy_from_slice(&length.to_be_bytes());
            let sk = (length - 28) as u16;
            short[30..32].copy_from_slice(&sk.to_be_bytes());
        }
        let (before, count) = (Snapshot::of(&sim), counted(&sim));
        hand.inject(&mut sim, &short);
        assert_eq!((Snapshot::of(&sim), counted(&sim)), (before, count + 1), "{cut} octets missing");
    }
}

#[test]
fn case_64_pad_length_beyond_the_text() {
    let (mut sim, mut hand) = established();
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    let message = hand.seal_octets(&header, 0, &[255]);
    hand.inject(&mut sim, &message);
    must_be_closed(&sim, "authentic padding that cannot be");
}

#[test]
fn any_padding_that_fits() {
    let (mut sim, mut hand) = established();
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    let mut text = vec![0xaa; 255];
    text.push(255);
    let message = hand.seal_octets(&header, 0, &text);
    hand.inject(&mut sim, &message);
    assert_eq!(hand.read(&mut sim).len(), 1);
}

#[test]
fn case_65_every_earlier_message_again() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let mut earlier = vec![hand.record.request.clone()];
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    earlier.push(hand.next(ExchangeType::IkeAuth, &payloads));
    let rest = [hand.create_child(0x2222_2200), hand.create_child(0x3333_3300), Vec::new()];
    earlier.push(hand.next(ExchangeType::CreateChildSa, &rest[0]));
    earlier.push(hand.next(ExchangeType::CreateChildSa, &rest[1]));
    earlier.push(hand.next(ExchangeType::Informational, &rest[2]));
    for message in &earlier[1..] {
        hand.inject(&mut sim, message);
        sim.finish_installs();
    }
    let answers = sent(&mut sim);
    for (index, message) in earlier.iter().enumerate() {
        let (before, count) = (Snapshot::of(&sim), counted(&sim));
        hand.inject(&mut sim, message);
        assert_eq!(Snapshot::of(&sim), before, "message {index}");
        let again = sent(&mut sim);
        if index + 1 == earlier.len() {
            assert_eq!(again.first(), answers.last(), "the last request gets its answer once more");
        } else {
            assert!(again.is_empty() && counted(&sim) == count + 1, "message {index}");
        }
    }
}

#[test]
fn case_66_message_ids() {
    let (mut sim, mut hand) = established();
    let next = hand.next_id;
    for message_id in [next + 1, next + 2, u32::MAX, 0] {
        let header = hand.header(ExchangeType::Informational, message_id, false);
        let message = hand.seal(&header, &[]);
        must_only_count(&mut sim, DropReason::IkeMessageId, "message ID", |sim| hand.inject(sim, &message));
    }
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_67_and_68_responses_that_nobody_asked_for() {
    let (mut sim, mut hand) = established();
    for message_id in [0, 1, hand.next_id] {
        for exchange in [ExchangeType::Informational, ExchangeType::CreateChildSa] {
            let header = hand.header(exchange, message_id, true);
            let message = hand.seal(&header, &[]);
            must_only_count(&mut sim, DropReason::IkeMessageId, "response", |sim| hand.inject(sim, &message));
        }
    }
    // A request is open, but the response is of another exchange or under another ID.
    sim.command(0, Command::Probe(HOST[1]));
    let (request, _) = hand.read(&mut sim).pop().expect("a probe");
    for (exchange, id) in [(ExchangeType::CreateChildSa, request.message_id), (ExchangeType::Informational, 9)] {
        let header = hand.header(exchange, id, true);
        let message = hand.seal(&header, &[]);
        must_only_count(&mut sim, DropReason::IkeMessageId, "wrong response", |sim| hand.inject(sim, &message));
    }
}

#[test]
fn case_69_requests_before_auth() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    use ExchangeType::{CreateChildSa, IkeFollowupKe, IkeIntermediate, Informational};
    for exchange in [CreateChildSa, Informational, IkeIntermediate, IkeFollowupKe] {
        let payloads = hand.create_child(0x2222_2200);
        let header = hand.header(exchange, 1, false);
        let message = hand.seal(&header, &payloads);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "before AUTH", |sim| hand.inject(sim, &message));
    }
    assert!(sent(&mut sim).is_empty());
    // IKE_AUTH is still welcome.
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    hand.send(&mut sim, ExchangeType::IkeAuth, &payloads);
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 1);
}

#[test]
fn case_69_a_first_ike_auth_with_another_message_id() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    for message_id in [0, 2, u32::MAX] {
        let header = hand.header(ExchangeType::IkeAuth, message_id, false);
        let message = hand.seal(&header, &payloads);
        must_only_count(&mut sim, DropReason::IkeMessageId, "message ID", |sim| hand.inject(sim, &message));
    }
}

#[test]
fn case_70_a_second_ike_auth() {
    let (mut sim, mut hand) = established();
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    for message_id in [1, hand.next_id] {
        let header = hand.header(ExchangeType::IkeAuth, message_id, false);
        let message = hand.seal(&header, &payloads);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "IKE_AUTH", |sim| hand.inject(sim, &message));
    }
}

#[test]
fn case_71_auth_in_clear() {
    let mut sim = alone(Proof::Psk);
    let hand = Hand::greet(&mut sim, 5);
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    let message = Message::emit_clear(&hand.header(ExchangeType::IkeAuth, 1, false), &payloads);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "AUTH in clear", |sim| hand.inject(sim, &message));
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_71_payloads_in_clear_before_sk_are_not_taken() {
    let (mut sim, hand) = established();
    // A Delete in clear, with an SK payload that nobody sealed.
    let header = hand.header(ExchangeType::Informational, hand.next_id, false);
    let mut message = Message::emit_clear(&header, &[Payload::Delete(crate::wire::ike::Delete::Ike)]);
    message[28] = 46;
    message.extend_from_slice(&[0, 0, 0, 4 + 8 + 1 + 16]);
    message.extend_from_slice(&[0; 25]);
    let length = message.len() as u32;
    message[24..28].copy_from_slice(&length.to_be_bytes());
    must_only_count(&mut sim, DropReason::IkeBadIcv, "forged SK", |sim| hand.inject(sim, &message));
}

#[test]
fn case_72_a_message_of_another_ike_sa() {
    let (mut sim, mut hand) = established();
    let other = Hand::greet(&mut sim, 50);
    let message = hand.next(ExchangeType::Informational, &[]);
    for spis in [(hand.spis.0, other.spis.1), (other.spis.0, other.spis.1), (other.spis.0, hand.spis.1)] {
        let mut moved = message.to_vec();
        moved[..8].copy_from_slice(&spis.0.to_be_bytes());
        moved[8..16].copy_from_slice(&spis.1.to_be_bytes());
        must_only_count(&mut sim, DropReason::IkeUnexpected, "re-addressed", |sim| hand.inject(sim, &moved));
    }
    // The same exchange as the other one waits for.
    let header = hand.header(ExchangeType::IkeAuth, 1, false);
    let header = Header { initiator_spi: other.spis.0, responder_spi: other.spis.1, ..header };
    let message = hand.seal(&header, &[]);
    must_only_count(&mut sim, DropReason::IkeBadIcv, "other keys", |sim| hand.inject(sim, &message));
}

#[test]
fn unknown_ike_spis_get_one_short_answer_now_and_then() {
    let (mut sim, mut hand) = established();
    hand.spis.1 ^= 1;
    let message = hand.next(ExchangeType::Informational, &[]);
    for _ in 0..100 {
        hand.inject(&mut sim, &message);
    }
    let answers = sent(&mut sim);
    assert_eq!(answers.len(), 1, "a courtesy, not an echo");
    assert!(answers[0].len() <= message.len());
    let answer = Message::parse(&answers[0]).expect("it parses");
    assert!(answer.header.flags.response && !answer.header.flags.initiator && answer.protected.is_none());
    let header = hand.header(ExchangeType::Informational, 1, true);
    let response = hand.seal(&header, &[]);
    sim.run_for(std::time::Duration::from_secs(1));
    hand.inject(&mut sim, &response);
    assert!(sent(&mut sim).is_empty(), "never in answer to an answer");
    assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeUnknownSpi), 101);
}

#[test]
fn unauthenticated_hints_change_nothing_and_are_few() {
    let (mut sim, hand) = established();
    let before = Snapshot::of(&sim);
    let notify = Payload::Notify(Notify::new(NotifyType::InvalidIkeSpi, Bytes::new()));
    let message = Message::emit_clear(&hand.header(ExchangeType::Informational, 0, true), &[notify]);
    for _ in 0..50 {
        hand.inject(&mut sim, &message);
    }
    sim.inject(0, "203.0.113.9:4500".parse().expect("an address"), hand.transport, &message);
    let hints = sim.hosts[0].events.iter().filter(|event| matches!(event, Event::Hint { .. })).count();
    assert_eq!((hints, counted(&sim)), (1, 51));
    assert_eq!(Snapshot::of(&sim), before);
}
