//! Bad inputs around IKE_SA_INIT. Numbers are those of the list of bad inputs that the tests of this project share.

use bytes::Bytes;

use super::HOST;
use super::hand::{Greeting, Hand, Snapshot, alone, counted, errors, must_only_count, sent, source};
use crate::crypto;
use crate::ike::contents::Contents;
use crate::ike::exchange::negotiate::key_exchange_payload;
use crate::ike::limits::{HALF_OPEN_LIMIT, HALF_OPEN_PER_SOURCE};
use crate::ike::proposals::{PostQuantum, choose_ike, offer_ike};
use crate::ike::simulator::{Proof, Simulator, address};
use crate::ike::{CloseReason, Command, Event};
use crate::model::{AeadAlgorithm, DropReason, KeGroup, SeededRng, Transport};
use crate::wire::ike::{ExchangeType, Flags, Header, KeyExchangePayload, Message, Notify, NotifyType, Payload};

/// Sends octets to host 0 from host 1's NAT-T port.
fn inject(sim: &mut Simulator, octets: &[u8]) {
    sim.inject(0, source(), Transport::Natt, octets);
}

/// The one clear answer of host 0.
fn answer(sim: &mut Simulator) -> Contents {
    let octets = sent(sim).pop().expect("host 0 answers");
    Contents::of(Message::parse(&octets).expect("it parses").payloads)
}

/// Host 0 with an IKE_SA_INIT of its own under way, and that request.
fn initiating() -> (Simulator, Bytes) {
    let mut sim = alone(Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    let request = sent(&mut sim).pop().expect("IKE_SA_INIT leaves");
    (sim, request)
}

/// Sends host 0 an answer from where it expects one.
fn respond(sim: &mut Simulator, octets: &[u8]) {
    sim.inject(0, (address(1), 500).into(), Transport::Plain, octets);
}

/// An answer in clear to this request.
fn clear_answer(request: &[u8], responder_spi: u64, payloads: &[Payload]) -> Vec<u8> {
    let header = Message::parse(request).expect("our own").header;
    let flags = Flags { initiator: false, version: false, response: true };
    Message::emit_clear(&Header { flags, responder_spi, ..header }, payloads)
}

/// A good answer to this request.
fn good_answer(request: &[u8], seed: u64) -> Vec<u8> {
    let contents = Contents::of(Message::parse(request).expect("our own").payloads);
    let value = contents.key_exchange.expect("KE");
    let group = KeGroup::from_id(value.group).expect("a group");
    let chosen =
        choose_ike(&AeadAlgorithm::ALL, &contents.proposals.expect("SA"), Some(value.group), false).expect("a choice");
    let mut rng = SeededRng::new(seed);
    let half = crypto::key_exchange(group, &mut rng);
    let payloads = [
        Payload::SecurityAssociation(vec![chosen.answer]),
        key_exchange_payload(half.as_ref()),
        Payload::Nonce(Bytes::from(vec![seed as u8; 32])),
    ];
    clear_answer(request, 0x1111_2222_3333_4400 + seed, &payloads)
}

fn notify(kind: NotifyType, data: impl Into<Bytes>) -> Payload {
    Payload::Notify(Notify::new(kind, data))
}

#[test]
fn case_09_initiator_spi_of_zero() {
    let mut sim = alone(Proof::Psk);
    let mut octets = Greeting::new(1).message();
    octets[..8].fill(0);
    must_only_count(&mut sim, DropReason::IkeMalformed, "SPIi = 0", |sim| inject(sim, &octets));
}

#[test]
fn case_10_equal_spis() {
    let mut sim = alone(Proof::Psk);
    let greeting = Greeting::new(1);
    let header = Header { responder_spi: greeting.spi, ..greeting.header() };
    let octets = Message::emit_clear(&header, &greeting.payloads);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "request", |sim| inject(sim, &octets));
    // An answer with our own SPI is our own request, reflected.
    let (mut sim, request) = initiating();
    let own = Message::parse(&request).expect("our own").header.initiator_spi;
    let mut octets = good_answer(&request, 1);
    octets[8..16].copy_from_slice(&own.to_be_bytes());
    must_only_count(&mut sim, DropReason::IkeUnexpected, "answer", |sim| respond(sim, &octets));
}

#[test]
fn case_10_our_own_request_comes_back() {
    let (mut sim, request) = initiating();
    must_only_count(&mut sim, DropReason::IkeUnexpected, "reflection", |sim| respond(sim, &request));
}

#[test]
fn case_11_responder_spi_in_a_request() {
    let mut sim = alone(Proof::Psk);
    let greeting = Greeting::new(1);
    let octets = Message::emit_clear(&Header { responder_spi: 7, ..greeting.header() }, &greeting.payloads);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "SPIr", |sim| inject(sim, &octets));
}

#[test]
fn case_12_versions() {
    for major in [0, 1, 3, 15] {
        let mut sim = alone(Proof::Psk);
        let mut octets = Greeting::new(1).message();
        octets[17] = major << 4;
        must_only_count(&mut sim, DropReason::IkeVersion, "major version", |sim| inject(sim, &octets));
    }
    let mut sim = alone(Proof::Psk);
    let mut octets = Greeting::new(1).message();
    octets[17] = 0x29;
    inject(&mut sim, &octets);
    assert!(answer(&mut sim).nonce.is_some(), "the minor version does not matter");
}

#[test]
fn case_13_reserved_flags() {
    let mut sim = alone(Proof::Psk);
    let mut octets = Greeting::new(1).message();
    octets[19] |= 0xc7;
    inject(&mut sim, &octets);
    assert!(answer(&mut sim).nonce.is_some(), "reserved flags do not matter");
}

#[test]
fn case_14_flags() {
    for (initiator, response, reason) in [
        (false, false, DropReason::IkeUnexpected),
        (true, true, DropReason::IkeUnexpected),
        (false, true, DropReason::IkeUnknownSpi),
    ] {
        let mut sim = alone(Proof::Psk);
        let greeting = Greeting::new(1);
        let flags = Flags { initiator, version: false, response };
        let octets = Message::emit_clear(&Header { flags, ..greeting.header() }, &greeting.payloads);
        must_only_count(&mut sim, reason, "flags", |sim| inject(sim, &octets));
        assert!(sent(&mut sim).is_empty());
    }
}

#[test]
fn case_15_exchange_types_in_clear() {
    let mut sim = alone(Proof::Psk);
    for exchange in (0..=255).map(ExchangeType::from_value).filter(|&exchange| exchange != ExchangeType::IkeSaInit) {
        let greeting = Greeting::new(1);
        let octets = Message::emit_clear(&Header { exchange, ..greeting.header() }, &greeting.payloads);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "exchange", |sim| inject(sim, &octets));
    }
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_22_unknown_payloads() {
    let mut sim = alone(Proof::Psk);
    let mut greeting = Greeting::new(1);
    greeting.payloads.insert(0, Payload::Unknown { kind: 200, critical: false });
    inject(&mut sim, &greeting.message());
    assert!(answer(&mut sim).nonce.is_some(), "one that is not critical is skipped");
    let mut sim = alone(Proof::Psk);
    greeting.payloads.insert(0, Payload::Unknown { kind: 201, critical: true });
    must_only_count(&mut sim, DropReason::IkeUnexpected, "critical", |sim| inject(sim, &greeting.message()));
    let answer = answer(&mut sim);
    let error = answer.notify(NotifyType::UnsupportedCriticalPayload).expect("error 1");
    assert_eq!(error.data[..], [201]);
    // In an answer the flag is ignored.
    let (mut sim, request) = initiating();
    let good = Message::parse(&good_answer(&request, 1)).expect("good");
    let mut payloads = good.payloads;
    payloads.push(Payload::Unknown { kind: 202, critical: true });
    respond(&mut sim, &clear_answer(&request, good.header.responder_spi, &payloads));
    assert_eq!(sent(&mut sim).len(), 1, "IKE_AUTH leaves");
}

#[test]
fn case_24_payloads_twice() {
    for index in 0..3 {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(1);
        let twice = greeting.payloads[index].clone();
        greeting.payloads.push(twice);
        must_only_count(&mut sim, DropReason::IkeMalformed, "twice", |sim| inject(sim, &greeting.message()));
    }
}

#[test]
fn missing_payloads_of_a_request() {
    for index in 0..3 {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(1);
        greeting.payloads.remove(index);
        must_only_count(&mut sim, DropReason::IkeMalformed, "missing", |sim| inject(sim, &greeting.message()));
        assert!(sent(&mut sim).is_empty());
    }
}

#[test]
fn case_43_ke_group_that_is_not_wanted() {
    for group in [KeGroup::EcP256.id(), 14, 65000] {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(1);
        let mut proposals = offer_ike(&AeadAlgorithm::ALL, KeGroup::X25519, PostQuantum::No, None);
        proposals[0].transforms.retain(|transform| transform.kind.value() != 4 || transform.id == KeGroup::X25519.id());
        greeting.payloads[0] = Payload::SecurityAssociation(proposals);
        let value = Bytes::from(vec![4; 64]);
        greeting.payloads[1] = Payload::KeyExchange(KeyExchangePayload { group, value });
        must_only_count(&mut sim, DropReason::IkeUnexpected, "group", |sim| inject(sim, &greeting.message()));
        let answer = answer(&mut sim);
        assert_eq!(answer.notify(NotifyType::InvalidKePayload).expect("INVALID_KE_PAYLOAD").data[..], [0, 31]);
    }
}

#[test]
fn case_44_and_45_ke_values_that_cannot_be() {
    for value in [vec![], vec![1; 31], vec![1; 33], vec![0; 32], vec![0xff; 32]] {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(1);
        let group = KeGroup::X25519.id();
        greeting.payloads[1] = Payload::KeyExchange(KeyExchangePayload { group, value: value.clone().into() });
        inject(&mut sim, &greeting.message());
        let octets = sent(&mut sim).pop().expect("an answer");
        // The key exchange is done at the first IKE_AUTH, whoever sent it. A bad value ends the state there; what is left counts as
        // half-open until it expires, and does no second key exchange.
        let header = Message::parse(&octets).expect("it parses").header;
        let flags = Flags { initiator: true, version: false, response: false };
        let header = Header { exchange: ExchangeType::IkeAuth, flags, message_id: 1, ..header };
        let auth = Message::emit_protected(&header, &[], |_, _| ([0; 8], [0; 16]));
        inject(&mut sim, &auth);
        assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), counted(&sim)), (1, 1), "{value:?}");
        let refused = sim.hosts[0].events.iter().filter(|event| matches!(event, Event::Refused { .. })).count();
        inject(&mut sim, &auth);
        assert_eq!(refused, usize::from(value != [0xff; 32]), "{value:?}");
        assert_eq!(sim.hosts[0].events.len(), refused, "{value:?}");
        sim.run_for(std::time::Duration::from_secs(16));
        assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0);
    }
}

#[test]
fn case_49_nonce_lengths() {
    for (length, legal) in [(0, false), (15, false), (16, true), (256, true), (257, false)] {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(1);
        greeting.payloads[2] = Payload::Nonce(Bytes::from(vec![7; length]));
        inject(&mut sim, &greeting.message());
        assert_eq!(sent(&mut sim).len(), usize::from(legal), "{length} octets");
        assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeMalformed), u64::from(!legal));
    }
}

#[test]
fn case_50_our_own_nonce_comes_back() {
    let (mut sim, request) = initiating();
    let own = Contents::of(Message::parse(&request).expect("our own").payloads).nonce.expect("Ni");
    let good = Message::parse(&good_answer(&request, 1)).expect("good");
    let mut payloads = good.payloads;
    payloads[2] = Payload::Nonce(own);
    let octets = clear_answer(&request, good.header.responder_spi, &payloads);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "nonce", |sim| respond(sim, &octets));
}

#[test]
fn case_51_cookie_lengths() {
    let (mut sim, request) = initiating();
    for length in [0, 65] {
        let octets = clear_answer(&request, 0, &[notify(NotifyType::Cookie, vec![1; length])]);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "cookie", |sim| respond(sim, &octets));
    }
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_51_a_cookie_comes_first_and_stays_through_invalid_ke() {
    let (mut sim, request) = initiating();
    respond(&mut sim, &clear_answer(&request, 0, &[notify(NotifyType::Cookie, vec![9; 20])]));
    let second = Message::parse(&sent(&mut sim).pop().expect("again")).expect("it parses");
    assert_eq!(second.payloads[0], notify(NotifyType::Cookie, vec![9; 20]));
    assert_eq!(second.header.initiator_spi, Message::parse(&request).expect("our own").header.initiator_spi);
    respond(&mut sim, &clear_answer(&request, 0, &[notify(NotifyType::InvalidKePayload, vec![0, 19])]));
    let third = Message::parse(&sent(&mut sim).pop().expect("again")).expect("it parses");
    assert_eq!(third.payloads[0], notify(NotifyType::Cookie, vec![9; 20]));
    let (second, third) = (Contents::of(second.payloads), Contents::of(third.payloads));
    assert_eq!(third.key_exchange.expect("KE").group, 19);
    assert_eq!((second.proposals, second.nonce), (third.proposals, third.nonce), "the offer and the nonce stay");
}

#[test]
fn case_52_cookies_for_ever() {
    let (mut sim, request) = initiating();
    let mut transmissions = 0;
    for round in 0..100u8 {
        respond(&mut sim, &clear_answer(&request, 0, &[notify(NotifyType::Cookie, vec![round + 1; 8])]));
        transmissions += sent(&mut sim).len();
        let group = [0, if round % 2 == 0 { 19 } else { 31 }];
        respond(&mut sim, &clear_answer(&request, 0, &[notify(NotifyType::InvalidKePayload, group.to_vec())]));
        transmissions += sent(&mut sim).len();
    }
    assert_eq!(transmissions, 5 + 2, "five cookies and two groups are followed");
    assert_eq!(counted(&sim), 200 - 7, "the rest is counted");
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 1);
}

#[test]
fn case_52_a_repeated_cookie() {
    let (mut sim, request) = initiating();
    let octets = clear_answer(&request, 0, &[notify(NotifyType::Cookie, vec![1; 8])]);
    respond(&mut sim, &octets);
    assert_eq!(sent(&mut sim).len(), 1);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "repeated", |sim| respond(sim, &octets));
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_53_invalid_ke_that_cannot_be_followed() {
    for data in [vec![], vec![31], vec![0, 0, 31], vec![0, 2], vec![0, 14], vec![0xff, 0xff], vec![0, 31]] {
        let (mut sim, request) = initiating();
        let octets = clear_answer(&request, 0, &[notify(NotifyType::InvalidKePayload, data)]);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "group", |sim| respond(sim, &octets));
        assert!(sent(&mut sim).is_empty());
    }
}

#[test]
fn case_54_forged_errors_are_hints_and_the_real_answer_wins() {
    let (mut sim, request) = initiating();
    for kind in [NotifyType::NoProposalChosen, NotifyType::AuthenticationFailed, NotifyType::InvalidSyntax] {
        let octets = clear_answer(&request, 0, &[notify(kind, vec![])]);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "forged error", |sim| respond(sim, &octets));
    }
    respond(&mut sim, &good_answer(&request, 1));
    let next = sent(&mut sim).pop().expect("IKE_AUTH leaves");
    assert_eq!(Message::parse(&next).expect("it parses").header.exchange, ExchangeType::IkeAuth);
}

#[test]
fn case_54_a_hint_becomes_the_reason_when_nobody_answers() {
    let (mut sim, request) = initiating();
    respond(&mut sim, &clear_answer(&request, 0, &[notify(NotifyType::NoProposalChosen, vec![])]));
    sim.run_for(std::time::Duration::from_secs(29));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 1, "we keep asking");
    assert!(sent(&mut sim).len() >= 5);
    sim.run_for(std::time::Duration::from_secs(2));
    let reason = CloseReason::PeerRefused { notify: "NO_PROPOSAL_CHOSEN".to_owned(), authenticated: false };
    assert!(sim.hosts[0].events.contains(&Event::InitiateFailed { peer: HOST[1], reason }));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0);
}

#[test]
fn answers_from_elsewhere_do_not_count() {
    let (mut sim, request) = initiating();
    let octets = good_answer(&request, 1);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "another address", |sim| {
        sim.inject(0, "203.0.113.9:500".parse().expect("an address"), Transport::Plain, &octets);
    });
}

#[test]
fn case_56_the_same_request_a_thousand_times() {
    let mut sim = alone(Proof::Psk);
    let octets = Greeting::new(1).message();
    inject(&mut sim, &octets);
    let first = sent(&mut sim);
    for _ in 0..1000 {
        inject(&mut sim, &octets);
        assert_eq!(sent(&mut sim), first);
    }
    assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), counted(&sim)), (1, 0));
}

#[test]
fn case_57_another_request_under_the_same_name() {
    let mut sim = alone(Proof::Psk);
    let mut greeting = Greeting::new(1);
    inject(&mut sim, &greeting.message());
    sent(&mut sim);
    greeting.payloads[2] = Payload::Nonce(Bytes::from(vec![3; 32]));
    must_only_count(&mut sim, DropReason::IkeUnexpected, "other content", |sim| inject(sim, &greeting.message()));
    // Also once the IKE SA is up.
    let mut sim = alone(Proof::Psk);
    let hand = Hand::establish(&mut sim, 5);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "late duplicate", |sim| inject(sim, &hand.record.request));
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_58_half_open_limits() {
    let mut sim = alone(Proof::Psk);
    let flood = |sim: &mut Simulator, source: u32, seed: u64| {
        let from = std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + source), 4500));
        sim.inject(0, from, Transport::Natt, &Greeting::new(seed).message());
    };
    for seed in 0..20 {
        flood(&mut sim, 1, seed);
    }
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), HALF_OPEN_PER_SOURCE);
    for seed in 0..200u32 {
        flood(&mut sim, 100 + seed, u64::from(seed) + 1000);
    }
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), HALF_OPEN_LIMIT);
    let refused = 220 - HALF_OPEN_LIMIT as u64;
    assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeHalfOpenLimit), refused);
    sim.run_for(std::time::Duration::from_secs(16));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0, "they are forgotten");
}

#[test]
fn case_59_nat_detection_of_any_length_and_number() {
    for (length, number) in [(0, 1), (19, 1), (20, 1), (21, 1), (20, 50)] {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(1);
        for kind in [NotifyType::NatDetectionSourceIp, NotifyType::NatDetectionDestinationIp] {
            let count = if kind == NotifyType::NatDetectionSourceIp { number } else { 1 };
            greeting.payloads.extend((0..count).map(|_| notify(kind, vec![1; length])));
        }
        inject(&mut sim, &greeting.message());
        assert!(answer(&mut sim).nonce.is_some());
    }
}

#[test]
fn case_60_redirect() {
    let (mut sim, request) = initiating();
    let mut payloads = Message::parse(&good_answer(&request, 1)).expect("good").payloads;
    payloads.push(notify(NotifyType::Redirect, vec![1, 4, 203, 0, 113, 9]));
    respond(&mut sim, &clear_answer(&request, 77, &payloads));
    let waiting = &sim.waiting;
    assert!(waiting.iter().all(|datagram| datagram.path.remote.ip() == address(1)), "we stay with the peer");
    assert_eq!(sent(&mut sim).len(), 1);
}

#[test]
fn a_request_when_nobody_is_configured() {
    let mut sim = Simulator::new(1, 1, Proof::Psk);
    sim.by_hand = true;
    must_only_count(&mut sim, DropReason::IkeNoPeer, "no peers", |sim| inject(sim, &Greeting::new(1).message()));
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn nothing_in_common() {
    let mut sim = alone(Proof::Psk);
    let mut greeting = Greeting::new(1);
    let mut proposals = offer_ike(&AeadAlgorithm::ALL, KeGroup::X25519, PostQuantum::No, None);
    proposals[0].transforms.retain(|transform| transform.kind.value() != 1);
    greeting.payloads[0] = Payload::SecurityAssociation(proposals);
    let before = Snapshot::of(&sim);
    inject(&mut sim, &greeting.message());
    assert_eq!(errors(&answer(&mut sim)), [NotifyType::NoProposalChosen]);
    assert_eq!((Snapshot::of(&sim), counted(&sim)), (before, 1));
    assert!(matches!(&sim.hosts[0].events[..], [Event::Refused { peer: None, .. }]));
}
