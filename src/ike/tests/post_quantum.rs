//! ML-KEM-768 beside X25519 (RFC 9242, RFC 9370), and AUTH over both IKE_SA_INIT messages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::HOST;
use super::hand::{Greeting, Hand, Snapshot, alone, counted, errors, must_only_count, own_config, sent};
use crate::crypto;
use crate::ike::channel::Channel;
use crate::ike::contents::Contents;
use crate::ike::exchange::auth::FULL_TRANSCRIPT;
use crate::ike::exchange::negotiate::{FRAGMENTATION_SUPPORTED, INTERMEDIATE_SUPPORTED, key_exchange_payload};
use crate::ike::keymat;
use crate::ike::limits::MAX_MESSAGE_LEN;
use crate::ike::proposals::{choose_ike, offer_ike};
use crate::ike::simulator::{Content, Faults, Proof, Simulator, address};
use crate::ike::{CloseReason, Command, Event, PostQuantum};
use crate::model::{AeadAlgorithm, DropReason, IkeSpi, KeGroup, SeededRng, Transport};
use crate::wire::ike::{
    ExchangeType, Flags, Header, KeyExchangePayload, Message, Notify, NotifyType, Payload, Transform, TransformType,
};

/// The datagram that waits first, as a message.
fn first(sim: &Simulator) -> (Vec<u8>, Message) {
    let Content::Ike(octets) = &sim.waiting[0].content else { panic!("an IKE message") };
    (octets.to_vec(), Message::parse(octets).expect("valid"))
}

/// Changes the IKE_SA_INIT message that waits first.
fn tamper(sim: &mut Simulator, change: impl FnOnce(&mut Vec<Payload>)) {
    let (_, message) = first(sim);
    let mut payloads = message.payloads;
    change(&mut payloads);
    sim.waiting[0].content = Content::Ike(Message::emit_clear(&message.header, &payloads).into());
}

fn require_pq(sim: &mut Simulator, host: usize) {
    let shared = &mut sim.hosts[host].endpoint.shared;
    let config = shared.peers.get_mut(&HOST[1 - host]).expect("a peer");
    Arc::make_mut(config).post_quantum = PostQuantum::Required;
}

/// Makes a host one that knows nothing of additional key exchanges: what it hears and says in IKE_SA_INIT is stripped of them.
fn strip_additional(payloads: &mut Vec<Payload>) {
    payloads.retain(|payload| *payload != INTERMEDIATE_SUPPORTED);
    for payload in payloads {
        let Payload::SecurityAssociation(proposals) = payload else { continue };
        for transforms in proposals.iter_mut().map(|proposal| &mut proposal.transforms) {
            transforms.retain(|transform| !matches!(transform.kind, TransformType::AdditionalKeyExchange(_)));
        }
    }
}

fn failures(sim: &Simulator, host: usize) -> Vec<String> {
    sim.hosts[host].complaints()
}

#[test]
fn two_of_ours_add_ml_kem() {
    for proof in [Proof::Psk, Proof::HostKeys] {
        let mut sim = Simulator::new(1, 2, proof);
        sim.command(0, Command::Initiate(HOST[1]));
        sim.run_for(Duration::from_secs(1));
        super::must_be_settled(&sim);
        for host in 0..2 {
            let sa = &sim.hosts[host].endpoint.ike_sas(HOST[1 - host])[0];
            assert_eq!(sa.suite.to_string(), "aes256gcm16-prfsha256-x25519-ke1_mlkem768");
            assert!(sa.post_quantum);
        }
        // So do its successors.
        for asks in [1, 0] {
            let old = sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi;
            sim.command(asks, Command::RekeyIke(HOST[1 - asks]));
            sim.run_for(Duration::from_secs(1));
            super::must_be_settled(&sim);
            let sa = &sim.hosts[0].endpoint.ike_sas(HOST[1])[0];
            assert!(sa.local_spi != old && sa.post_quantum);
            assert_eq!(sa.suite.to_string(), "aes256gcm16-prfsha256-x25519-ke1_mlkem768");
        }
    }
}

#[test]
fn what_travels() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    let exchanges = deliver_and_note(&mut sim);
    let expected = [(34, 0, 0), (34, 0, 0), (43, 1, 1), (43, 1, 2), (43, 1, 0), (35, 2, 0), (35, 2, 0)];
    assert_eq!(exchanges, expected, "the encapsulation key needs two fragments, the ciphertext one datagram");
    super::must_be_settled(&sim);
}

/// What waits, message by message, is delivered until nothing does: exchange, message ID, fragment number.
fn deliver_and_note(sim: &mut Simulator) -> Vec<(u8, u32, u16)> {
    let mut exchanges = Vec::new();
    while !sim.waiting.is_empty() {
        let (octets, message) = first(sim);
        assert!(octets.len() <= MAX_MESSAGE_LEN);
        let fragment = message.protected.and_then(|view| view.fragment).map_or(0, |fragment| fragment.number);
        exchanges.push((message.header.exchange.value(), message.header.message_id, fragment));
        sim.deliver(0);
    }
    exchanges
}

#[test]
fn what_travels_in_a_rekey() {
    let mut sim = super::pair_by_hand(1);
    sim.command(0, Command::RekeyIke(HOST[1]));
    let exchanges = deliver_and_note(&mut sim);
    let expected = [(36, 3, 0), (36, 3, 0), (44, 4, 1), (44, 4, 2), (44, 4, 0), (37, 5, 0), (37, 5, 0)];
    assert_eq!(exchanges, expected);
    super::must_be_settled(&sim);
}

#[test]
fn rekeys_with_additional_key_exchanges_that_meet_are_tried_again() {
    let mut sim = super::pair(1);
    for _ in 0..10 {
        let old = sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi;
        sim.command(0, Command::RekeyIke(HOST[1]));
        sim.command(1, Command::RekeyIke(HOST[0]));
        sim.run_for(Duration::from_secs(20));
        super::must_be_settled(&sim);
        assert!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi != old);
        assert_eq!(sim.most_ike_sas, 1, "nothing is made anew beside it");
    }
}

/// A hand-written peer with a tunnel that asks to rekey the IKE SA; the link that it gets.
fn half_rekeyed() -> (Simulator, Hand, Bytes) {
    let mut sim = alone(Proof::Psk);
    let hand = Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim);
    let mut hand = hand.prove(&mut sim);
    let spi = IkeSpi::new(0x0102_0304_0506_0708);
    let offer = offer_ike(&AeadAlgorithm::ALL, KeGroup::X25519, PostQuantum::Preferred, spi);
    let half = crypto::key_exchange(KeGroup::X25519, &mut hand.rng);
    let payloads = [Payload::SecurityAssociation(offer), hand.nonce(), key_exchange_payload(half.as_ref())];
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    let link = answer.notify(NotifyType::AdditionalKeyExchange).expect("a link").data.clone();
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 1, "nothing is there before the second exchange");
    (sim, hand, link)
}

fn follow_up(hand: &mut Hand, link: Option<Bytes>) -> Vec<Payload> {
    let half = crypto::key_exchange(KeGroup::ADDITIONAL, &mut hand.rng);
    let link = link.map(|link| Payload::Notify(Notify::new(NotifyType::AdditionalKeyExchange, link)));
    std::iter::once(key_exchange_payload(half.as_ref())).chain(link).collect()
}

#[test]
fn case_94_followup_ke_with_a_wrong_link_and_at_the_wrong_time() {
    let (mut sim, mut hand, link) = half_rekeyed();
    let mut wrong = link.to_vec();
    wrong[0] ^= 1;
    for bad in [Some(Bytes::from(wrong)), Some(Bytes::new()), None] {
        let payloads = follow_up(&mut hand, bad);
        let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
        assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
    }
    assert_eq!(counted(&sim), 3);
    // The right one still counts, once.
    let payloads = follow_up(&mut hand, Some(link.clone()));
    let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
    assert_eq!(answer.key_exchange.expect("a ciphertext").value.len(), 1088);
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].remote_spi.value(), 0x0102_0304_0506_0708);
    // Without a rekey before it.
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::establish(&mut sim, 5);
    let payloads = follow_up(&mut hand, Some(link));
    let before = Snapshot::of(&sim);
    let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &payloads);
    assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
    assert_eq!((Snapshot::of(&sim), counted(&sim)), (before, 1));
}

#[test]
fn case_48_values_in_followup_ke() {
    for value in [vec![0xff; 1184], vec![0; 1183], vec![]] {
        let (mut sim, mut hand, link) = half_rekeyed();
        let ke = Payload::KeyExchange(KeyExchangePayload { group: 36, value: value.into() });
        let link = Payload::Notify(Notify::new(NotifyType::AdditionalKeyExchange, link));
        let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &[ke, link.clone()]);
        assert_eq!((errors(&answer), counted(&sim)), (vec![NotifyType::InvalidSyntax], 1));
        // The rekey is off, the IKE SA is not.
        let answer = hand.ask(&mut sim, ExchangeType::IkeFollowupKe, &[link]);
        assert_eq!(errors(&answer), [NotifyType::StateNotFound]);
        assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 1);
    }
}

#[test]
fn a_rekey_that_is_never_followed_up_holds_nothing_for_long() {
    let (mut sim, mut hand, _) = half_rekeyed();
    let child = sim.hosts[0].plane.installed[0].inbound_spi;
    sim.command(0, Command::RekeyChild(child));
    assert!(sent(&mut sim).is_empty(), "we wait for the second exchange");
    sim.command(0, Command::Probe(HOST[1]));
    let (probe, _) = hand.read(&mut sim).pop().expect("but we may ask for a sign of life");
    assert_eq!(probe.exchange, ExchangeType::Informational);
    hand.respond(&mut sim, probe, &[]);
    sim.run_for(Duration::from_secs(46));
    let (request, _) = hand.read(&mut sim).pop().expect("then the job goes on");
    assert_eq!(request.exchange, ExchangeType::CreateChildSa);
}

#[test]
fn ml_kem_under_loss_and_disorder() {
    for seed in 0..30 {
        let mut sim = Simulator::new(seed, 2, Proof::Psk);
        require_pq(&mut sim, 0);
        require_pq(&mut sim, 1);
        sim.faults = Faults { loss: 0.3, duplication: 0.3, reordering: 0.3 };
        sim.reconcile();
        sim.run_for(Duration::from_secs(60));
        sim.faults = Faults::default();
        sim.run_for(Duration::from_secs(60));
        super::must_be_settled(&sim);
        assert!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].post_quantum);
    }
}

#[test]
fn a_peer_without_it_gets_the_second_proposal() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    hand.send(&mut sim, ExchangeType::IkeAuth, &payloads);
    let sa = &sim.hosts[0].endpoint.ike_sas(HOST[1])[0];
    assert_eq!((sa.suite.to_string().as_str(), sa.post_quantum), ("aes256gcm16-prfsha256-x25519", false));
    // As initiator we offer both ways.
    let mut sim = alone(Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    let offer = Contents::of(first(&sim).1.payloads).proposals.expect("SA");
    let additional = |index: usize| offer[index].transforms.iter().filter(|transform| transform.kind.value() > 5).count();
    assert_eq!((offer.len(), additional(0), additional(1)), (2, 1, 0));
}

#[test]
fn require_pq_refuses_who_does_not_add_it() {
    let mut sim = alone(Proof::Psk);
    require_pq(&mut sim, 0);
    let mut hand = Hand::greet(&mut sim, 5);
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
    assert_eq!(errors(&answer), [NotifyType::AuthenticationFailed]);
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
    let said = failures(&sim, 0).join(" ");
    assert!(
        said.contains("host1") && said.contains("require_pq") && said.contains("aes256gcm16-prfsha256-x25519"),
        "{said}"
    );
    // As initiator we offer nothing else.
    sim.command(0, Command::Initiate(HOST[1]));
    assert_eq!(Contents::of(first(&sim).1.payloads).proposals.expect("SA").len(), 1);
    // And who adds it is welcome.
    let mut sim = alone(Proof::Psk);
    require_pq(&mut sim, 0);
    Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim).prove(&mut sim);
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].post_quantum);
}

#[test]
fn case_42_additional_key_exchanges_that_cannot_be() {
    // Without INTERMEDIATE_EXCHANGE_SUPPORTED the second proposal is taken.
    let mut sim = alone(Proof::Psk);
    let mut greeting = Greeting::post_quantum(5);
    greeting.payloads.retain(|payload| *payload != INTERMEDIATE_SUPPORTED);
    let hand = Hand::greet_with(&mut sim, 5, greeting);
    let answer = Contents::of(Message::parse(&hand.record.response).expect("valid").payloads);
    assert_eq!(answer.proposals.as_ref().expect("SA")[0].number, 2);
    assert!(answer.notify(NotifyType::IntermediateExchangeSupported).is_none());
    // An answer that chooses it without speaking it.
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    sim.deliver(0);
    tamper(&mut sim, |payloads| payloads.retain(|payload| *payload != INTERMEDIATE_SUPPORTED));
    must_only_count(&mut sim, DropReason::IkeUnexpected, "without IKE_INTERMEDIATE", |sim| sim.deliver(0));
    assert!(sim.waiting.is_empty());
}

/// Only in proposals that nobody could take: the same method as the first, a gap, two that both are wanted.
#[test]
fn case_42_proposals_of_nothing_else() {
    let kind = TransformType::AdditionalKeyExchange;
    let bad: [&[(u8, u16)]; 5] = [&[(1, 31)], &[(1, 35)], &[(1, 36), (3, 36)], &[(1, 36), (2, 37)], &[(1, 0xffff)]];
    for transforms in bad {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::post_quantum(5);
        let Payload::SecurityAssociation(proposals) = &mut greeting.payloads[0] else { panic!("SA comes first") };
        proposals.truncate(1);
        let transforms = transforms.iter().map(|&(number, id)| (kind(number), id));
        proposals[0].transforms.retain(|transform| !matches!(transform.kind, TransformType::AdditionalKeyExchange(_)));
        let transform = |(kind, id)| Transform { kind, id, key_length: None, unusable: false };
        proposals[0].transforms.extend(transforms.map(transform));
        let before = Snapshot::of(&sim);
        sim.inject(0, super::hand::source(), Transport::Natt, &greeting.message());
        let answer = sent(&mut sim).pop().expect("an answer");
        assert_eq!(errors(&Contents::of(Message::parse(&answer).expect("valid").payloads)), [NotifyType::NoProposalChosen]);
        assert_eq!((Snapshot::of(&sim), counted(&sim)), (before, 1));
    }
}

#[test]
fn case_48_values_of_the_additional_key_exchange() {
    let ke = |group: u16, octet: u8, length: usize| {
        vec![Payload::KeyExchange(KeyExchangePayload { group, value: vec![octet; length].into() })]
    };
    let bad = [ke(36, 0xff, 1184), ke(36, 0, 1183), ke(36, 0, 1185), ke(36, 0, 0), ke(31, 9, 32), ke(35, 0, 800), vec![]];
    for payloads in bad {
        let mut sim = alone(Proof::Psk);
        let mut hand = Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5));
        let answer = hand.ask(&mut sim, ExchangeType::IkeIntermediate, &payloads);
        assert_eq!(errors(&answer), [NotifyType::InvalidSyntax]);
        assert_eq!(counted(&sim), 1);
        // Nothing comes of it any more, and it ends.
        let payloads = hand.auth_payloads(&own_config(Proof::Psk));
        hand.send(&mut sim, ExchangeType::IkeAuth, &payloads);
        assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
        sim.run_for(Duration::from_secs(16));
        assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0);
    }
}

/// Answers our IKE_SA_INIT as a responder that takes the first proposal; what comes back seals its later answers.
fn respond_by_hand(sim: &mut Simulator) -> (Header, Channel) {
    let (_, request) = first(sim);
    sim.waiting.clear();
    let mut rng = SeededRng::new(8);
    let contents = Contents::of(request.payloads);
    let (value, nonce_i) = (contents.key_exchange.expect("KE").value, contents.nonce.expect("Ni"));
    let chosen = choose_ike(&AeadAlgorithm::ALL, &contents.proposals.expect("SA"), Some(31), true).expect("ours");
    let (public, secret) = crypto::answer_key_exchange(KeGroup::X25519, &value, &mut rng).expect("an honest value");
    let nonce_r = vec![5; 32];
    let payloads = [
        Payload::SecurityAssociation(vec![chosen.answer]),
        Payload::KeyExchange(KeyExchangePayload { group: 31, value: public.into() }),
        Payload::Nonce(nonce_r.clone().into()),
        INTERMEDIATE_SUPPORTED,
        FRAGMENTATION_SUPPORTED,
    ];
    let flags = Flags { initiator: false, version: false, response: true };
    let header = Header { responder_spi: 77, flags, ..request.header };
    sim.inject(0, SocketAddr::new(address(1), 500), Transport::Plain, &Message::emit_clear(&header, &payloads));
    let keys = keymat::initial(chosen.suite, &secret, &nonce_i, &nonce_r, header.initiator_spi, 77);
    (header, Channel::new(chosen.suite.aead, &keys, false))
}

/// What a responder may answer to our IKE_INTERMEDIATE besides what it should.
#[test]
fn case_48_answers_of_the_additional_key_exchange() {
    let ke = |group, length| Payload::KeyExchange(KeyExchangePayload { group, value: vec![7; length].into() });
    let refused = Payload::Notify(Notify::new(NotifyType::InvalidSyntax, vec![]));
    let bad = [vec![ke(36, 1087)], vec![ke(36, 1089)], vec![ke(36, 0)], vec![ke(31, 32)], vec![], vec![refused]];
    for payloads in bad {
        let mut sim = alone(Proof::Psk);
        sim.command(0, Command::Initiate(HOST[1]));
        let (header, mut channel) = respond_by_hand(&mut sim);
        assert_eq!(sent(&mut sim).len(), 2, "IKE_INTERMEDIATE in two fragments");
        let header = Header { exchange: ExchangeType::IkeIntermediate, message_id: 1, ..header };
        let answer = channel.seal(&header, &payloads);
        sim.inject(0, SocketAddr::new(address(1), 4500), Transport::Natt, &answer);
        let failed = |event: &&Event| matches!(event, Event::InitiateFailed { .. });
        // A better answer to IKE_SA_INIT may still come.
        sim.run_for(Duration::from_millis(2100));
        assert_eq!(sim.hosts[0].events.iter().filter(failed).count(), 1);
        // A refusal is an answer like any other; what makes no sense is counted.
        let is_refusal = matches!(payloads[..], [Payload::Notify(_)]);
        assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), counted(&sim)), (0, u64::from(!is_refusal)), "{payloads:?}");
    }
    // Any 1088 octets are a ciphertext (FIPS 203 §6.3), so IKE_AUTH follows, under keys that nobody else has.
    let mut sim = alone(Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    let (header, mut channel) = respond_by_hand(&mut sim);
    sent(&mut sim);
    let header = Header { exchange: ExchangeType::IkeIntermediate, message_id: 1, ..header };
    let answer = channel.seal(&header, &[ke(36, 1088)]);
    sim.inject(0, SocketAddr::new(address(1), 4500), Transport::Natt, &answer);
    let next = sent(&mut sim).pop().expect("IKE_AUTH");
    let message = Message::parse(&next).expect("valid");
    assert_eq!((message.header.exchange, message.header.message_id), (ExchangeType::IkeAuth, 2));
    assert!(channel.open(&message, &next).is_err(), "not under the old keys");
}

#[test]
fn case_69_ike_auth_before_intermediate_and_intermediate_after_auth() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5));
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    for message_id in [1, 2] {
        let header = hand.header(ExchangeType::IkeAuth, message_id, false);
        let message = hand.seal(&header, &payloads);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "IKE_AUTH too early", |sim| hand.inject(sim, &message));
    }
    let mut hand = hand.add_key_exchange(&mut sim);
    let header = hand.header(ExchangeType::IkeIntermediate, 2, false);
    let again = hand.seal(&header, &[]);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "a second one", |sim| hand.inject(sim, &again));
    let mut hand = hand.prove(&mut sim);
    for message_id in [1, 2, 3] {
        let header = hand.header(ExchangeType::IkeIntermediate, message_id, false);
        let message = hand.seal(&header, &[]);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "after AUTH", |sim| hand.inject(sim, &message));
    }
}

#[test]
fn intermediate_that_was_not_agreed_on() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let half = crypto::key_exchange(KeGroup::ADDITIONAL, &mut hand.rng);
    let payloads = [key_exchange_payload(half.as_ref())];
    let header = hand.header(ExchangeType::IkeIntermediate, 1, false);
    let message = hand.seal(&header, &payloads);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "unasked", |sim| hand.inject(sim, &message));
}

#[test]
fn a_repeated_intermediate_gets_the_same_answer_and_auth_goes_on() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    sim.deliver(0);
    sim.deliver(0);
    let (one, two) = (sim.waiting.remove(0), sim.waiting.remove(0));
    sim.deliver_again(&two);
    sim.deliver_again(&one);
    let answer = sim.waiting.remove(0);
    // The answer is lost, twice; the request comes again, although the keys are new.
    for _ in 0..2 {
        sim.deliver_again(&one);
        sim.deliver_again(&two);
        assert_eq!(sim.waiting, std::slice::from_ref(&answer));
        sim.waiting.clear();
    }
    sim.deliver_again(&answer);
    sim.deliver_all();
    super::must_be_settled(&sim);
}

#[test]
fn every_octet_of_intermediate_is_under_auth() {
    // The hand-written peer proves itself over other octets than those that travelled.
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim);
    let last = hand.record.int_auth.len() - 1;
    for place in [0, 31, 32, 63, last] {
        let mut sim = alone(Proof::Psk);
        let mut hand = Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim);
        hand.record.int_auth[place] ^= 1;
        let payloads = hand.auth_payloads(&own_config(Proof::Psk));
        let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
        assert_eq!(errors(&answer), [NotifyType::AuthenticationFailed], "octet {place}");
    }
    hand.record.int_auth.clear();
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    assert_eq!(errors(&hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads)), [NotifyType::AuthenticationFailed]);
}

/// Who stands between both and can break X25519, but cannot sign, wants them to leave out ML-KEM.
#[test]
fn a_downgrade_is_noticed() {
    // The initiator's request is stripped on its way, so the responder agrees on X25519 alone; to the initiator nothing of
    // that can be told, as the answer's proposal is the second one, which it offered too.
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    tamper(&mut sim, |payloads| {
        strip_additional(payloads);
        let Some(Payload::SecurityAssociation(proposals)) = payloads.first_mut() else { panic!("SA comes first") };
        proposals.remove(0);
    });
    sim.deliver_all();
    for host in 0..2 {
        assert!(sim.hosts[host].endpoint.ike_sas(HOST[1 - host]).is_empty());
        assert!(sim.hosts[host].plane.installed.is_empty());
    }
    assert!(failures(&sim, 1).join(" ").contains("AUTH value does not match"), "{:?}", failures(&sim, 1));
}

#[test]
fn a_stripped_transcript_notify_is_noticed() {
    // In the request or in the answer: then only one end signs both messages.
    for in_answer in [false, true] {
        let mut sim = Simulator::new(1, 2, Proof::HostKeys);
        sim.by_hand = true;
        sim.command(0, Command::Initiate(HOST[1]));
        if in_answer {
            sim.deliver(0);
        }
        tamper(&mut sim, |payloads| payloads.retain(|payload| *payload != FULL_TRANSCRIPT));
        sim.deliver_all();
        for host in 0..2 {
            assert!(sim.hosts[host].endpoint.ike_sas(HOST[1 - host]).is_empty(), "in the answer: {in_answer}");
        }
    }
}

/// An AUTH over both messages is what a peer wants that sent the notify, and only that one.
#[test]
fn both_messages_are_under_auth_if_both_ends_say_so() {
    for said in [false, true] {
        for signed in [false, true] {
            let mut sim = alone(Proof::HostKeys);
            let mut greeting = Greeting::new(5);
            if said {
                greeting.payloads.push(FULL_TRANSCRIPT);
            }
            let mut hand = Hand::greet_with(&mut sim, 5, greeting);
            let answer = Message::parse(&hand.record.response).expect("valid");
            assert!(answer.payloads.contains(&FULL_TRANSCRIPT), "whether the initiator said it or not");
            hand.record.full_transcript = signed;
            let payloads = hand.auth_payloads(&own_config(Proof::HostKeys));
            let before = Snapshot::of(&sim);
            hand.send(&mut sim, ExchangeType::IkeAuth, &payloads);
            assert_eq!(!sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty(), said == signed);
            assert_eq!(Snapshot::of(&sim) == before, said != signed);
            sent(&mut sim);
        }
    }
}

#[test]
fn nobody_answers_intermediate() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    sim.deliver(0);
    sim.deliver(0);
    sim.waiting.clear();
    for _ in 0..31 {
        sim.run_for(Duration::from_secs(1));
        sim.waiting.clear();
    }
    let reason = sim.hosts[0].events.iter().find_map(|event| match event {
        Event::InitiateFailed { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(matches!(reason, Some(CloseReason::NoAnswer { request: "IKE_INTERMEDIATE", .. })), "{reason:?}");
}
